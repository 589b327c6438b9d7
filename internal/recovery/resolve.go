package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/repo"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// Request is what the operator asks for.
type Request struct {
	Backup   string `json:"backup,omitempty"` // empty: the one that leads to the target soonest
	Target   Target `json:"target"`
	Timeline string `json:"timeline"` // "latest", "current" (the backup's), or a number
}

// Equal tells whether two requests ask for the same.
func (q Request) Equal(other Request) bool {
	sameTime := q.Target.Time.Equal(other.Target.Time)
	q.Target.Time, other.Target.Time = time.Time{}, time.Time{}
	return sameTime && q == other
}

// Resolution is what a request comes to: one backup, one timeline, a range of
// WAL that the archive holds without a gap.
type Resolution struct {
	Repository string      `json:"repository"`        // where the backup and the WAL are
	SystemID   string      `json:"system_identifier"` // of the cluster
	Major      int         `json:"major"`             // version of the server
	Backup     string      `json:"backup"`            // the one that is restored
	BackupEnd  time.Time   `json:"backup_finished"`   // when it was complete, by the clock of the machine that took it
	Target     Target      `json:"target"`            // where replay stops
	Timeline   timeline.ID `json:"timeline"`          // that replay follows
	Stop       *Stop       `json:"stop,omitempty"`    // the record at which replay stops; absent for a target that needs none
	From       wal.LSN     `json:"replay_from"`       // the backup's redo point
	To         wal.LSN     `json:"replay_to"`         // where replay ends; for the latest point the end of the archive's last segment
	FirstWAL   string      `json:"first_wal"`         // the first file that replay needs
	LastWAL    string      `json:"last_wal"`          // the last one
	Segments   int         `json:"wal_segments"`      // how many that are, all archived, or in the backup itself
	// Branches are other ways that the WAL goes on, and that replay does not take.
	Branches []Branch `json:"branches,omitempty"`
}

// Branch is archived WAL of an ancestor behind the point where the followed
// timeline left it.
type Branch struct {
	Timeline timeline.ID `json:"timeline"` // the ancestor
	Left     wal.LSN     `json:"left"`     // where the followed timeline left it
	Segments int         `json:"segments"` // archived behind that point
}

// ReplayBytes is how much WAL lies between the backup and the target.
func (r *Resolution) ReplayBytes() int64 { return int64(r.To - r.From) }

// Resolve finds out how a request can be met, or why it cannot. It reads the
// repository only.
func Resolve(ctx context.Context, c *repo.Cluster, q Request) (*Resolution, error) {
	k, err := openCatalog(ctx, c)
	if err != nil {
		return nil, err
	}
	if q.Target.Kind == "" {
		q.Target.Kind = Latest
	}
	r := &resolver{catalog: k, request: q}
	if err := r.chooseTimeline(ctx); err != nil {
		return nil, err
	}
	if err := r.chooseBackup(ctx); err != nil {
		return nil, err
	}
	return r.result()
}

type resolver struct {
	*catalog
	request Request
	archive *archive

	candidates []*repo.Summary // on the line of descent, the newest first
	backup     *repo.Summary
	stop       *Stop
	last       wal.SegmentNumber // the last one that replay needs
}

// chooseTimeline sets the line of descent to follow and the backups on it.
func (r *resolver) chooseTimeline(ctx context.Context) error {
	asked := r.request.Timeline
	if r.request.Target.Kind == Immediate && (asked == "" || asked == "latest") {
		asked = "current" // no other timeline is reached
	}
	switch asked {
	case "", "latest":
		return r.latestTimeline(ctx)
	case "current":
		b, err := r.catalog.backup(r.request.Backup)
		if err != nil {
			return err
		}
		return r.follow(ctx, b.Stop.Timeline)
	}
	n, err := strconv.ParseUint(asked, 10, 32)
	if err != nil || n == 0 {
		return exit.New(exit.Usage, "say latest, current or a number", "%q is no timeline", asked)
	}
	return r.follow(ctx, timeline.ID(n))
}

// latestTimeline follows the greatest timeline that a usable backup leads to.
func (r *resolver) latestTimeline(ctx context.Context) error {
	ids := map[timeline.ID]bool{}
	for id := range r.coverage {
		ids[id] = true
	}
	for _, b := range r.backups {
		ids[b.Stop.Timeline] = true
	}
	var order []timeline.ID
	for id := range ids {
		order = append(order, id)
	}
	slices.Sort(order)
	slices.Reverse(order)
	var first error
	for _, id := range order {
		err := r.follow(ctx, id)
		if err == nil {
			return r.unambiguous(ctx, id, order)
		}
		first = errors.Join(first, err)
		if !errors.Is(err, errNoBackup) {
			return err
		}
	}
	return first
}

// unambiguous refuses the latest timeline where the newest backup was taken on
// another branch: somebody promoted a copy that archives, or the old primary
// lives on, and either answer would silently lose the other's data.
func (r *resolver) unambiguous(ctx context.Context, latest timeline.ID, order []timeline.ID) error {
	newest := r.backups[len(r.backups)-1]
	if r.request.Backup != "" || r.candidates[0] == newest {
		return nil
	}
	other := newest.Stop.Timeline
	for _, id := range order { // the greatest first
		if a, err := r.along(ctx, id); err == nil && a.history.Contains(newest.Stop.Timeline, newest.Stop.LSN) {
			other = id
			break
		}
	}
	return exit.New(exit.Refused, fmt.Sprintf("say which one you mean: --timeline %d for the branch of the newest backup, --timeline %d for the other", other, latest),
		"the repository holds two branches: timeline %d, and timeline %d with the newest backup, %s", latest, other, newest.ID)
}

var errNoBackup = errors.New("no backup leads to the timeline")

func (r *resolver) follow(ctx context.Context, id timeline.ID) error {
	a, err := r.along(ctx, id)
	if err != nil {
		return err
	}
	r.archive, r.candidates = a, nil
	for _, b := range slices.Backward(r.backups) {
		wanted := r.request.Backup == "" || r.request.Backup == b.ID ||
			r.request.Backup == "latest" && b == r.backups[len(r.backups)-1]
		if wanted && a.history.Contains(b.Stop.Timeline, b.Stop.LSN) {
			r.candidates = append(r.candidates, b)
		}
	}
	if len(r.candidates) > 0 {
		return nil
	}
	if r.request.Backup != "" {
		if _, err := r.catalog.backup(r.request.Backup); err != nil {
			return err
		}
		return exit.Wrap(errNoBackup, exit.Refused, "choose another backup or timeline; dbbackup list shows them",
			"backup %s does not lie on the way to timeline %d", r.request.Backup, id)
	}
	return exit.Wrap(errNoBackup, exit.Refused, "say --timeline current to stay on the newest backup's own", "timeline %d", id)
}

// chooseBackup finds the target and the newest backup that ends before it.
func (r *resolver) chooseBackup(ctx context.Context) error {
	switch r.request.Target.Kind {
	case Latest:
		return r.toEnd(r.candidates[0])
	case Immediate:
		b := r.candidates[0]
		r.backup, r.last = b, r.size.NumberBefore(b.Stop.LSN)
		r.stop = &Stop{LSN: b.Stop.LSN, End: b.Stop.LSN}
		return r.checkRun()
	}
	return r.toRecord(ctx)
}

// toEnd resolves to the end of the archive behind a backup, and refuses when
// that is only the edge of a gap: what lies behind it would be lost silently.
func (r *resolver) toEnd(b *repo.Summary) error {
	first := r.size.Number(b.Start.LSN)
	last, inside, ok := r.reach(b)
	need := r.size.NumberBefore(b.Stop.LSN)
	if !ok || last < need {
		if !ok {
			last = first - 1
		}
		return r.missing(last+1, "backup "+b.ID+" cannot be made consistent")
	}
	r.backup, r.last = b, last
	next, gap := r.archive.nextAfter(last)
	if !gap {
		return nil
	}
	before, lacks := fmt.Sprintf("--to-lsn %s", r.size.End(last)-1), r.archive.wanted(last+1)
	if inside {
		before, lacks = "--to immediate", b.Tail
	}
	return exit.New(exit.Refused, "push the missing segments into the archive, or stop before the gap: "+before,
		"the archive lacks %s, and goes on with %s: replay to the latest point would silently end at the gap", lacks, r.archive.wanted(next))
}

// toRecord resolves a target that names a record: which backup ends before it,
// and where it is.
func (r *resolver) toRecord(ctx context.Context) error {
	switch r.request.Target.Kind {
	case AtLSN, AtTime:
		for _, b := range r.candidates {
			ok, err := r.endsBefore(ctx, b)
			if err != nil {
				return err
			}
			if ok {
				return r.findBehind(ctx, b)
			}
		}
		oldest := r.candidates[len(r.candidates)-1]
		return exit.New(exit.Refused, "dbbackup list shows what backups there are",
			"%s lies before the end of backup %s (%s, %s), and no older one leads to it",
			r.request.Target, oldest.ID, oldest.Stop.LSN, oldest.Finished.UTC().Format(time.RFC3339))
	}
	return r.search(ctx)
}

// endsBefore tells whether a backup is consistent before an LSN or a time.
//
// Times are compared with the server's own clock, never with the clock of the
// machine that took the backup: the last transaction that ended before the
// backup was consistent has to be one that the target includes.
func (r *resolver) endsBefore(ctx context.Context, b *repo.Summary) (bool, error) {
	t := r.request.Target
	if t.Kind == AtLSN {
		return b.Stop.LSN <= t.LSN, nil
	}
	if b.Began.Sub(t.Time) > 24*time.Hour { // no clock is that wrong: spare the reading
		return false, nil
	}
	first := r.size.Number(b.Start.LSN)
	last, ok := r.archive.lastFrom(first)
	if need := r.size.NumberBefore(b.Stop.LSN); !ok || last < need {
		return false, nil
	}
	for back := 0; back < lookBack && first > 0; back++ {
		if _, ok := r.archive.name(first - 1); !ok {
			break
		}
		first--
	}
	l := r.locator(b)
	at, ok, err := l.lastEnd(ctx, first, b.Stop.LSN)
	if err != nil {
		return false, fmt.Errorf("reading the archived WAL: %w", err)
	}
	if !ok {
		// An idle server. All that ended before the backup's checkpoint, whose
		// time is known to the second, had ended a second later.
		c, err := volume.ParseControl(b.Control)
		if err != nil {
			return false, fmt.Errorf("backup %s: %w", b.ID, err)
		}
		at = c.CheckPointCopy.Time.Add(time.Second)
	}
	return !l.past(at), nil
}

// lookBack is how many segments before a backup are searched for the end of a
// transaction, where none ended while the backup was taken.
const lookBack = 8

func (r *resolver) locator(b *repo.Summary) *locator {
	return &locator{archive: r.archive, target: r.request.Target, major: b.Major}
}

// findBehind finds the target in the WAL behind a backup.
func (r *resolver) findBehind(ctx context.Context, b *repo.Summary) error {
	last, ok := r.archive.lastFrom(r.size.Number(b.Stop.LSN))
	if !ok {
		return r.unreachable(ctx)
	}
	stop, err := r.locator(b).find(ctx, b.Stop.LSN, last)
	if errors.Is(err, errNotThere) {
		return r.unreachable(ctx)
	}
	if err != nil {
		return fmt.Errorf("reading the archived WAL: %w", err)
	}
	return r.use(b, stop)
}

func (r *resolver) use(b *repo.Summary, stop Stop) error {
	r.backup, r.stop, r.last = b, &stop, r.size.NumberBefore(max(stop.End, stop.LSN+1))
	return r.checkRun()
}

// search looks for a restore point or a transaction: behind the newest backup,
// then between it and the one before, and so on, so that what occurred last is
// found first, and no WAL is read twice.
func (r *resolver) search(ctx context.Context) error {
	var searched wal.SegmentNumber // from here on
	for i, b := range r.candidates {
		from := r.size.Number(b.Stop.LSN)
		last, ok := r.archive.lastFrom(from)
		if i > 0 {
			last = min(last, searched)
		}
		searched = from
		if !ok {
			continue
		}
		stop, err := r.locator(b).find(ctx, b.Stop.LSN, last)
		if err == nil {
			return r.use(b, stop)
		}
		if !errors.Is(err, errNotThere) {
			return fmt.Errorf("reading the archived WAL: %w", err)
		}
	}
	return r.unreachable(ctx)
}

// checkRun makes sure that no segment is missing between backup and target.
func (r *resolver) checkRun() error {
	first := r.size.Number(r.backup.Start.LSN)
	last, _, ok := r.reach(r.backup)
	switch {
	case !ok:
		return r.missing(first, "backup "+r.backup.ID+" cannot be made consistent")
	case last < r.last:
		return r.missing(last+1, fmt.Sprintf("%s cannot be reached from backup %s", r.request.Target, r.backup.ID))
	}
	return nil
}

func (r *resolver) missing(n wal.SegmentNumber, why string) error {
	return exit.New(exit.Refused, "push the segment into the archive, or choose another backup or target (dbbackup list)",
		"the archive in %s lacks %s: %s", r.cluster.Repository().Location(), r.archive.wanted(n), why)
}

// unreachable says how far the archive goes, for a target that is not in it.
func (r *resolver) unreachable(ctx context.Context) error {
	oldest := r.candidates[len(r.candidates)-1]
	newest := r.candidates[0]
	first := r.size.Number(newest.Start.LSN)
	last, inside, ok := r.reach(newest)
	if !ok {
		return r.missing(first, "backup "+newest.ID+" cannot be made consistent")
	}
	reach := "LSN " + r.size.End(last).String()
	if inside {
		reach = "LSN " + newest.Stop.LSN.String() + ", where that backup was consistent (--to immediate)"
	} else if at, ok, err := r.locator(newest).lastEnd(ctx, first, r.size.End(last)); err == nil && ok {
		reach = settingTime(at) + " (the last transaction)"
	}
	if next, gap := r.archive.nextAfter(last); gap {
		reach += fmt.Sprintf(", then there is a gap up to %s", r.archive.wanted(next))
	}
	hint := "choose an earlier target, or --to latest for all that there is"
	if r.request.Target.Kind == AtTime {
		hint = "a time can be reached only when a later transaction is archived too; " + hint
	}
	return exit.New(exit.Refused, hint, "%s is not in the archive: on timeline %d it begins with backup %s and reaches %s",
		r.request.Target, r.archive.history.Timeline, oldest.ID, reach)
}

func (r *resolver) result() (*Resolution, error) {
	b := r.backup
	first := r.size.Number(b.Start.LSN)
	to := r.size.End(r.last)
	if _, archived := r.archive.name(r.last); !archived {
		to = b.Stop.LSN
	}
	if r.stop != nil {
		to = r.stop.End
	}
	name := func(n wal.SegmentNumber) string { s, _ := r.archive.name(n); return s }
	return &Resolution{
		Repository: r.cluster.Repository().Location(), SystemID: strconv.FormatUint(r.cluster.SystemID(), 10),
		Major: b.Major, Backup: b.ID, BackupEnd: b.Finished.UTC(), Target: r.request.Target,
		Timeline: r.archive.history.Timeline, Stop: r.stop, From: b.Start.LSN, To: to,
		FirstWAL: cmp.Or(name(first), b.Tail), LastWAL: r.lastName(), Segments: int(r.last-first) + 1,
		Branches: r.archive.branches(),
	}, nil
}
