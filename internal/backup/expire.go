package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/progress"
	"tidemark/internal/repo"
	"tidemark/pkg/wal"
)

// ExpireResult is what an expiry did, or would do.
type ExpireResult struct {
	Repository string          `json:"repository"` // where it is
	DryRun     bool            `json:"dry_run"`    // nothing was changed
	Clusters   []ExpireCluster `json:"clusters"`   // by system identifier
}

// ExpireCluster is what an expiry did to the backups of one cluster.
type ExpireCluster struct {
	SystemID   repo.SystemID `json:"system_identifier"` // of the cluster
	Kept       []KeptBackup  `json:"kept"`              // the oldest first
	Removed    []KeptBackup  `json:"removed"`           // the oldest first
	Unfinished []string      `json:"unfinished"`        // interrupted backups whose leavings were removed
	WaitsFor   []string      `json:"waits_for"`         // backups that run: packs stay until they are done
	Packs      int           `json:"packs"`             // how many packs were removed
	PackBytes  int64         `json:"pack_bytes"`        // their size
	WALFiles   int           `json:"wal_files"`         // how many WAL files were removed
	WALBytes   int64         `json:"wal_bytes"`         // their size in the repository
	Locked     int           `json:"locked"`            // objects that would go and that the store's lock keeps for now
	WALFrom    string        `json:"wal_from"`          // WAL is kept without a gap from this segment on
	Notes      []string      `json:"notes"`             // what is worth knowing
}

// KeptBackup is one backup that an expiry judged.
type KeptBackup struct {
	ID      string    `json:"id"`                // identifier
	Label   string    `json:"label,omitempty"`   // the operator's words
	Began   time.Time `json:"began"`             // when it began
	Reasons []string  `json:"reasons,omitempty"` // why it is kept
}

// ExpireOptions say what is to be kept.
type ExpireOptions struct {
	Keep     Retention
	SystemID uint64 // only this cluster, 0 for all
	DryRun   bool
	Progress progress.Reporter
}

// Expire removes the backups that the policy does not keep, the packs that no
// backup names, and WAL that none needs. Why that is safe while backups are
// taken and others expire is said in repo's sweep.go.
func Expire(ctx context.Context, r *repo.Repository, o ExpireOptions) (*ExpireResult, error) {
	if o.Keep.empty() {
		return nil, exit.New(exit.Usage, "say --keep-last, --keep-within, --keep-daily, --keep-weekly, --keep-monthly or --keep-yearly, or put [retention] into tidemark.toml",
			"no rule says which backups to keep")
	}
	ids := []uint64{o.SystemID}
	if o.SystemID == 0 {
		var err error
		if ids, err = r.Clusters(ctx); err != nil {
			return nil, err
		}
	}
	res := &ExpireResult{Repository: r.Location(), DryRun: o.DryRun, Clusters: []ExpireCluster{}}
	for _, id := range ids {
		c, err := expireCluster(ctx, r.Cluster(id), o)
		if c != nil {
			res.Clusters = append(res.Clusters, *c)
		}
		if err != nil {
			return res, err
		}
	}
	return res, nil
}

func expireCluster(ctx context.Context, c *repo.Cluster, o ExpireOptions) (*ExpireCluster, error) {
	cat, err := c.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	archive, err := listArchive(ctx, c)
	if err != nil {
		return nil, err
	}
	lacking := map[string]bool{}
	for _, s := range cat.Backups {
		missing, err := archive.missing(s)
		if err != nil {
			return nil, err
		}
		lacking[s.ID] = len(missing) > 0
	}
	out := &ExpireCluster{SystemID: repo.SystemID(c.SystemID()), Kept: []KeptBackup{}, Removed: []KeptBackup{},
		Unfinished: []string{}, WaitsFor: []string{}, Notes: []string{}}
	choices := o.Keep.choose(cat.Backups, cat.Pins, lacking, time.Now())
	var gone []string // for a plan: what is not deleted, and counts as if it were
	for i := range choices {
		ch := &choices[i]
		if !ch.kept() && !o.DryRun {
			if err := deleteUnlocked(ctx, c, ch, out); err != nil {
				return out, err
			}
		}
		b := KeptBackup{ch.s.ID, ch.s.Label, ch.s.Began, ch.reasons}
		if ch.kept() {
			out.Kept = append(out.Kept, b)
			continue
		}
		out.Removed = append(out.Removed, b)
		if o.DryRun {
			gone = append(gone, b.ID)
		}
	}
	plan, err := c.Sweep(ctx, gone, o.DryRun)
	out.Unfinished, out.WaitsFor = append(out.Unfinished, plan.Unfinished...), append(out.WaitsFor, plan.Waits...)
	out.Packs, out.PackBytes, out.Locked = len(plan.Packs), plan.Bytes, out.Locked+len(plan.Locked)
	if err != nil {
		return out, err
	}
	if err := expireWAL(ctx, c, cat, choices, archive, out, o.DryRun); err != nil {
		return out, err
	}
	if out.Locked > 0 {
		out.Notes = append(out.Notes, fmt.Sprintf("%d objects would go and are locked in the store: an expiry after their retention removes them", out.Locked))
	}
	return out, nil
}

// deleteUnlocked deletes a backup. One that the store's lock keeps, or a pin
// that came meanwhile, is kept with all that it needs.
func deleteUnlocked(ctx context.Context, c *repo.Cluster, ch *choice, out *ExpireCluster) error {
	err := c.DeleteBackup(ctx, ch.s.ID)
	if errors.Is(err, repo.ErrLocked) {
		out.Locked++
		ch.keep("locked in the store")
		return nil
	}
	if errors.Is(err, repo.ErrPinned) {
		ch.keep("pinned in this moment")
		return nil
	}
	return err
}

// expireWAL removes the WAL that no kept backup needs.
func expireWAL(ctx context.Context, c *repo.Cluster, cat *repo.Catalog, choices []choice, archive *archive, out *ExpireCluster, dry bool) error {
	if len(cat.Damaged) > 0 {
		out.Notes = append(out.Notes, fmt.Sprintf("no WAL is removed, for it is not known what backup %s needs: its manifest cannot be read", cat.Damaged[0].ID))
		return nil
	}
	k := keptWAL(choices)
	if k == nil {
		return nil
	}
	out.WALFrom = wal.SegmentName(k.timeline, k.floor, k.size)
	if len(out.WaitsFor) > 0 {
		// One from a standby may begin before the oldest backup that is kept.
		out.Notes = append(out.Notes, "no WAL is removed while a backup runs: the next expiry does that")
		return nil
	}
	for _, f := range archive.files {
		if k.needs(f.FileName) {
			continue
		}
		if !dry {
			err := c.DeleteWAL(ctx, f.FileName)
			if errors.Is(err, repo.ErrLocked) {
				out.Locked++
				continue
			}
			if err != nil {
				return err
			}
		}
		out.WALFiles++
		out.WALBytes += f.Stored
	}
	return nil
}

// neededWAL says which WAL files kept backups need.
//
// All WAL from the floor on stays, whatever its timeline: the floor is the
// lowest start of the backups from which any moment shall be recoverable.
// Positions of different timelines compare, for a timeline goes on counting
// where it left its parent. A timeline that is newer than every kept backup
// stays whole: a backup may be running on it, or about to be taken.
type neededWAL struct {
	size     wal.SegmentSize
	floor    wal.SegmentNumber
	timeline wal.TimelineID // of the backup that sets the floor
	newest   wal.TimelineID
	ranges   map[wal.TimelineID][]repo.SegmentRun
}

func keptWAL(choices []choice) *neededWAL {
	k := &neededWAL{ranges: map[wal.TimelineID][]repo.SegmentRun{}}
	any := false
	for _, ch := range choices {
		if !ch.kept() {
			continue
		}
		s := ch.s
		k.size = wal.SegmentSize(s.WALSegmentSize)
		first, last := k.size.Number(s.Start.LSN), k.size.Number(s.Stop.LSN)
		k.newest = max(k.newest, s.Stop.Timeline, s.Start.Timeline)
		k.ranges[s.Start.Timeline] = append(k.ranges[s.Start.Timeline], repo.SegmentRun{First: first, Last: last})
		if s.Stop.Timeline != s.Start.Timeline {
			k.ranges[s.Stop.Timeline] = append(k.ranges[s.Stop.Timeline], repo.SegmentRun{First: first, Last: last})
		}
		if ch.whole && (!any || first < k.floor) {
			any, k.floor, k.timeline = true, first, s.Start.Timeline
		}
	}
	if !any {
		return nil
	}
	return k
}

func (k *neededWAL) needs(f wal.FileName) bool {
	n, ok := f.Number(k.size)
	if f.Kind == wal.FileHistory || !ok || n >= k.floor || f.Timeline > k.newest {
		return true
	}
	return slices.ContainsFunc(k.ranges[f.Timeline], func(r repo.SegmentRun) bool { return n >= r.First && n <= r.Last })
}

// archive is what WAL the repository holds.
type archive struct {
	files []repo.WALObject
	names map[string]bool
}

func listArchive(ctx context.Context, c *repo.Cluster) (*archive, error) {
	a := &archive{names: map[string]bool{}}
	err := c.ListWAL(ctx, func(f repo.WALObject) error {
		a.files = append(a.files, f)
		a.names[f.String()] = true
		return nil
	})
	slices.SortFunc(a.files, func(x, y repo.WALObject) int { return strings.Compare(x.String(), y.String()) })
	return a, err
}

// missing returns the WAL files that a backup needs and the archive lacks.
func (a *archive) missing(s *repo.Summary) ([]string, error) {
	missing := []string{}
	err := needed(s, func(name string) error {
		if !a.names[name] {
			missing = append(missing, name)
		}
		return nil
	})
	return missing, err
}
