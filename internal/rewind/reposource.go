package rewind

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/repo"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// A repository as the source: an old primary is rewound while no other server
// is up. The new primary is then the archived WAL of a timeline, and a backup
// that lies on its line of descent.
//
//	common   ----[ backup ]----C---- fork                  or:   ----C---- fork
//	source                             |------- archived WAL             |---[ backup ]---- archived WAL
//	                S = the backup's start                        S = C's redo point
//
// C is the last common checkpoint. Why the result is right:
//
//   - Replay starts at S, the smaller of C's redo point and the backup's start,
//     and all WAL from there to the end of the archive is there, or it is refused.
//   - A block that the target keeps was not changed by the target since C's
//     redo point. So it is the block as it was at that point, on the common
//     history, and not older than S. Replay passes over what it holds already,
//     or writes an older page image over it and brings that up again.
//   - A block that is copied was read by the backup between its start and its
//     stop, on the source's history, and not before S: the same holds.
//   - A file that the target has and the backup has not came after the backup
//     (replay makes it anew) or went before it (replay drops it again): it is
//     removed. Sizes are the backup's, replay settles them.
//   - The copy is consistent where both kinds of blocks are: at the greater of
//     the backup's stop and the fork. That is the minimum recovery point.
//   - pg_control is the backup's, and the label names the checkpoint of S.
//
// WAL is not copied: the server fetches it by its restore_command, which is
// dbrecover fetch. It comes up as a primary on a timeline of its own when it
// has replayed all there is (recovery.signal), or with -R stays a standby that
// goes on asking the archive (standby.signal).
type repoSource struct {
	cluster  *repo.Cluster
	backup   *repo.Source // nil: no backup leads to the timeline, there is only WAL
	control  *volume.Control
	history  *timeline.History
	size     wal.SegmentSize
	coverage map[timeline.ID]*repo.WALCoverage
	newest   bool            // no timeline in the archive has a greater number
	partial  *partialSegment // the timeline's end, where there is only a .partial file of it
}

// openRepoSource opens the repository for the target's cluster and finds out
// which timeline is meant and which backup leads there.
func openRepoSource(ctx context.Context, o Options) (*repoSource, error) {
	control, err := volume.ReadControl(o.Target)
	if err != nil {
		return nil, exit.Wrap(err, exit.Failed, "the target cannot be read: seed it anew (dbrepl seed)", "the target's control file")
	}
	if err := o.asBegun(); err != nil {
		return nil, err
	}
	c, err := openRepository(ctx, o.SourceRepo, control.SystemIdentifier)
	if err != nil {
		return nil, err
	}
	r := &repoSource{cluster: c, control: control.Clone(), size: control.XLogSegSize, coverage: map[timeline.ID]*repo.WALCoverage{}}
	list, err := c.WALCoverage(ctx, r.size)
	if err != nil {
		return nil, err
	}
	for _, w := range list {
		r.coverage[w.Timeline] = w
	}
	if r.history, err = r.chooseTimeline(ctx, o.SourceTimeline, control.Timeline()); err != nil {
		return nil, err
	}
	if err := r.chooseBackup(ctx, o.SourceBackup); err != nil {
		return nil, err
	}
	return r, r.findPartial(ctx)
}

// asBegun has an unfinished rewind go on from the backup that it was begun
// with, whatever was backed up meanwhile.
func (o *Options) asBegun() error {
	p, err := blockcopy.Pending(volume.OS, o.Target)
	if err != nil || p == nil || p.State != blockcopy.Partial || p.Plan.Operation != "rewind" {
		return err
	}
	if m, err := decodeMeta(p.Plan); err == nil && m.Backup != "" && o.SourceBackup == "" && o.SourceTimeline == 0 {
		o.SourceBackup, o.SourceTimeline = m.Backup, m.SourceTLI
	}
	return nil
}

// chooseTimeline returns the history of the timeline to rewind to: the one
// that was asked for, or the only one that nothing else descends from, the
// target's own left aside.
func (r *repoSource) chooseTimeline(ctx context.Context, asked, own timeline.ID) (*timeline.History, error) {
	if asked != 0 {
		if r.coverage[asked] == nil {
			return nil, exit.New(exit.Refused, "the archive holds: "+r.timelines(), "the repository %s holds no WAL of timeline %d", r.cluster.Repository().Location(), asked)
		}
		r.newest = asked == slices.Max(r.ids())
		return r.readHistory(ctx, asked)
	}
	histories := map[timeline.ID]*timeline.History{}
	for _, id := range r.ids() {
		h, err := r.readHistory(ctx, id)
		if err != nil {
			return nil, err
		}
		histories[id] = h
	}
	leaves := leafTimelines(histories)
	if len(leaves) > 1 {
		leaves = slices.DeleteFunc(leaves, func(id timeline.ID) bool { return id == own })
	}
	switch len(leaves) {
	case 0:
		return nil, exit.New(exit.Refused, "archive the source's WAL there: archive_command = 'dbbackup push --repo DIR %p'",
			"the repository %s holds no WAL of the cluster", r.cluster.Repository().Location())
	case 1:
		r.newest = leaves[0] == slices.Max(r.ids())
		return histories[leaves[0]], nil
	}
	return nil, exit.New(exit.Refused, "say which one is the source: --source-timeline N",
		"the repository %s holds several branches: %s", r.cluster.Repository().Location(), r.timelines())
}

// leafTimelines are those that no other one descends from, ascending.
func leafTimelines(histories map[timeline.ID]*timeline.History) []timeline.ID {
	parents := map[timeline.ID]bool{}
	for _, h := range histories {
		for _, e := range h.Entries {
			parents[e.Timeline] = true
		}
	}
	var leaves []timeline.ID
	for id := range histories {
		if !parents[id] {
			leaves = append(leaves, id)
		}
	}
	slices.Sort(leaves)
	return leaves
}

func (r *repoSource) ids() []timeline.ID {
	var ids []timeline.ID
	for id, w := range r.coverage {
		if w.Segments > 0 || w.History || len(w.Partials) > 0 {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (r *repoSource) timelines() string {
	var names []string
	for _, id := range r.ids() {
		names = append(names, "timeline "+id.String())
	}
	return strings.Join(names, ", ")
}

func (r *repoSource) readHistory(ctx context.Context, id timeline.ID) (*timeline.History, error) {
	return readHistory(id, "the repository "+r.cluster.Repository().Location(), func(path string) ([]byte, error) { return r.ReadFile(ctx, path) })
}

// chooseBackup opens the newest backup on the line of descent, or the one that
// was asked for. There may be none: a look needs none.
func (r *repoSource) chooseBackup(ctx context.Context, id string) error {
	list, err := r.cluster.Catalog(ctx)
	if err != nil {
		return err
	}
	for _, b := range slices.Backward(list.Backups) {
		onLine := r.history.Contains(b.Stop.Timeline, b.Stop.LSN)
		switch {
		case id != "" && id != b.ID:
			continue
		case id != "" && !onLine:
			return exit.New(exit.Refused, "dbbackup list shows the others", "backup %s does not lead to timeline %d", id, r.history.Timeline)
		case !onLine:
			continue
		}
		if r.backup, err = r.cluster.OpenSource(ctx, b.ID); err != nil {
			return err
		}
		r.control, err = volume.ParseControl(b.Control)
		return exit.Wrap(err, exit.Failed, "name another one with --source-backup", "backup %s", b.ID)
	}
	if id != "" {
		return exit.New(exit.Refused, "dbbackup list shows what there is", "there is no backup %s in %s", id, r.cluster.Repository().Location())
	}
	return nil
}

// needBackup refuses a rewind that would have no blocks to copy.
func (r *repoSource) needBackup() error {
	if r.backup != nil {
		return nil
	}
	return exit.New(exit.Refused, "take one with dbbackup create, or rewind to a server or a data directory",
		"no backup in %s leads to timeline %d", r.cluster.Repository().Location(), r.history.Timeline)
}

// start is where replay begins: at the common checkpoint, or where the backup
// begins if that is earlier.
func (r *repoSource) start(common *Checkpoint) *Checkpoint {
	if r.backup == nil || r.backup.Summary().Start.LSN >= common.Redo {
		return common
	}
	s := r.backup.Summary()
	return &Checkpoint{LSN: s.Checkpoint, Redo: s.Start.LSN, Timeline: s.Start.Timeline}
}

// consistent is the position that replay has to reach.
func (r *repoSource) consistent(fork wal.LSN) (wal.LSN, timeline.ID) {
	at := max(fork, r.backup.Summary().Stop.LSN)
	return at, r.history.TimelineAt(at - 1)
}

// end is where the archived WAL of the timeline ends: with a segment, or with
// the last valid record of a partial one. It is the point where the timeline
// begins, where none of its own is archived.
func (r *repoSource) end() wal.LSN {
	span, _ := r.history.SpanOf(r.history.Timeline)
	end := span.Begin
	if w := r.coverage[r.history.Timeline]; w != nil && len(w.Runs) > 0 {
		end = max(end, r.size.End(w.Runs[len(w.Runs)-1].Last))
	}
	if r.partial != nil {
		end = max(end, r.partial.end)
	}
	return end
}

// segmentName returns the name under which segment n is archived, and false
// where it is not. The newest timeline's file holds the older ones' part too.
func (r *repoSource) segmentName(n wal.SegmentNumber) (string, bool) {
	names := candidates(r.history, r.size, n)
	if len(names) == 0 {
		return "", false
	}
	if r.partial.is(n) {
		return r.partial.name, true
	}
	f, _ := wal.ParseFileName(names[0])
	w := r.coverage[f.Timeline]
	return names[0], w != nil && w.Has(n)
}

// Name says which backup and which timeline.
func (r *repoSource) Name() string {
	if r.backup == nil {
		return fmt.Sprintf("timeline %d in the repository %s", r.history.Timeline, r.cluster.Repository().Location())
	}
	return fmt.Sprintf("backup %s and timeline %d in the repository %s", r.backup.Summary().ID, r.history.Timeline, r.cluster.Repository().Location())
}

// Close does nothing.
func (r *repoSource) Close() error { return nil }

// List returns what the backup holds.
func (r *repoSource) List(ctx context.Context) ([]blockcopy.Entry, error) {
	if r.backup == nil {
		return nil, nil
	}
	return r.backup.List(ctx)
}

// archivedName is the WAL file that a path names, "" for any other path.
func archivedName(path string) string {
	name, ok := strings.CutPrefix(path, "pg_wal/")
	if _, is := wal.ParseFileName(name); !ok || !is {
		return ""
	}
	return name
}

// ReadFile returns a small file of the backup, or of the archive.
func (r *repoSource) ReadFile(ctx context.Context, path string) ([]byte, error) {
	if name := archivedName(path); name != "" {
		var b bytes.Buffer
		_, err := r.cluster.FetchWAL(ctx, name, &b)
		if errors.Is(err, repo.ErrNotArchived) {
			return nil, &fs.PathError{Op: "read", Path: path, Err: fs.ErrNotExist}
		}
		return b.Bytes(), err
	}
	if r.backup == nil {
		return nil, &fs.PathError{Op: "read", Path: path, Err: fs.ErrNotExist}
	}
	return r.backup.ReadFile(ctx, path)
}

// Fetch reads blocks of the backup, and archived WAL under pg_wal.
func (r *repoSource) Fetch(ctx context.Context, ranges []blockcopy.Range, deliver blockcopy.Deliver) error {
	for len(ranges) > 0 {
		own := slices.IndexFunc(ranges, func(x blockcopy.Range) bool { return archivedName(x.Path) != "" })
		if own < 0 {
			own = len(ranges)
		}
		if own > 0 {
			if err := r.fetchBlocks(ctx, ranges[:own], deliver); err != nil {
				return err
			}
		} else {
			if err := r.fetchWAL(ctx, ranges[0], deliver); err != nil {
				return err
			}
			own = 1
		}
		ranges = ranges[own:]
	}
	return nil
}

func (r *repoSource) fetchBlocks(ctx context.Context, ranges []blockcopy.Range, deliver blockcopy.Deliver) error {
	if r.backup == nil {
		return r.needBackup()
	}
	return r.backup.Fetch(ctx, ranges, deliver)
}

func (r *repoSource) fetchWAL(ctx context.Context, x blockcopy.Range, deliver blockcopy.Deliver) error {
	name := archivedName(x.Path)
	f, err := r.cluster.OpenWAL(ctx, name)
	if p := r.partial; errors.Is(err, repo.ErrNotArchived) && p != nil && name == p.runningName() && p.is(p.number) {
		if p.inside {
			return r.backup.Fetch(ctx, []blockcopy.Range{x}, deliver)
		}
		f, err = r.cluster.OpenWAL(ctx, p.name)
	}
	if errors.Is(err, repo.ErrNotArchived) {
		return deliver(x, nil, true)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return deliverFile(f, x, deliver)
}
