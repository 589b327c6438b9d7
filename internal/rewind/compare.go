package rewind

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/progress"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// A rewind by comparison needs none of the target's WAL. Every block that is on
// both sides is hashed on both, and those that differ are fetched:
//
//	source   checkpoint's redo ---- hashing ---- fetching ---- end
//	                  |-------------- this WAL travels ----------|
//
// A block that is not fetched equals the source's at a moment after that redo
// point, just as one that is fetched: together they are a fuzzy copy of the
// source, and replay from the redo point to the end makes it consistent. So
// replay begins at the source's last checkpoint as of before the first hash
// (a standby's last restartpoint), no common checkpoint is looked for, and
// nothing of the target's own pg_wal is of any use. Whether the target crashed,
// has checksums, or was edited by hand does not matter either.

// Comparison is what a comparison of both sides found.
type Comparison struct {
	Files          int   `json:"files"`           // on both sides, and compared
	Bytes          int64 `json:"bytes"`           // compared, on each side
	DigestBytes    int64 `json:"digest_bytes"`    // hashes that travelled
	DifferingFiles int   `json:"differing_files"` // of those compared
	DifferingBytes int64 `json:"differing_bytes"` // blocks of theirs that differ, and will travel
	WALHeld        bool  `json:"wal_held"`        // a temporary replication slot keeps the source's WAL meanwhile
}

// prepareCompare is everything up to the plan of a rewind by comparison.
func (j *job) prepareCompare(ctx context.Context, mayChange bool) (*Divergence, *planner, error) {
	if err := j.readTarget(mayChange); err != nil {
		return nil, nil, err
	}
	if mayChange {
		j.holdWAL(ctx) // before the checkpoint is read from which on WAL is needed
	}
	if err := j.check(ctx); err != nil {
		return nil, nil, err
	}
	if err := j.openSearch(ctx); err != nil {
		return nil, nil, err
	}
	d, err := j.compareDivergence(ctx)
	if err != nil {
		return nil, nil, err
	}
	j.Log.Info("comparing", "checkpoint", d.Start.LSN, "redo", d.Start.Redo, "wal_held", j.hold != nil)
	p, err := j.makePlan(ctx, d, &changes{})
	if err != nil {
		return nil, nil, err
	}
	return d, p, p.checkWAL(ctx)
}

// compareDivergence says of both sides what can be said without the target's
// WAL. Replay will begin at the source's own checkpoint.
func (j *job) compareDivergence(ctx context.Context) (*Divergence, error) {
	end, _, err := j.source.position(ctx, j.sc)
	if err != nil {
		return nil, err
	}
	if j.sh, err = readHistory(j.sourceTimeline(ctx), "the source", j.orArchived(ctx, j.source.read(ctx))); err != nil {
		return nil, err
	}
	c := j.sc.CheckPointCopy
	d := &Divergence{
		Target: Side{Name: j.targetName(), Timeline: j.tc.Timeline(), End: max(j.tc.CheckPoint, j.tc.MinRecoveryPoint), State: j.tc.State.String()},
		Source: Side{j.source.Name(), j.sh.Timeline, j.sh.Spans(), end, j.sc.State.String()},
		Start:  &Checkpoint{LSN: j.sc.CheckPoint, Redo: c.Redo, Timeline: c.ThisTimeLineID, nextXID: c.NextXid},
		Reason: "both sides are compared block by block",
	}
	j.th, err = readHistory(d.Target.Timeline, "the target", j.orArchived(ctx, func(path string) ([]byte, error) {
		return os.ReadFile(filepath.Join(j.Target, path))
	}))
	if err != nil {
		j.Log.Info("the target's history is not known", "error", err)
		j.th = timeline.Root(d.Target.Timeline)
		return d, nil
	}
	d.Target.Spans = j.th.Spans()
	fork, err := timeline.Diverge(j.th, j.sh)
	if err != nil || fork.LSN == 0 {
		return d, nil // unrelated histories, or one: the comparison is what counts
	}
	d.Fork = &fork
	if d.Target.End > fork.LSN {
		d.Diverged = true
		d.Reason = fmt.Sprintf("they parted at %s on timeline %d, and the target wrote WAL up to %s at least", fork.LSN, fork.Timeline, d.Target.End)
	}
	return d, nil
}

// compare hashes what is on both sides.
func (p *planner) compare(ctx context.Context, theirs []blockcopy.Entry) error {
	var ranges []blockcopy.Range
	var total int64
	for _, e := range theirs {
		t, have := p.target[e.Path]
		if n := p.bothHave(e, t, have); n > 0 {
			ranges = append(ranges, blockcopy.Range{Path: e.Path, Length: n})
			total += n
		}
	}
	p.job.Progress.Phase("comparing with the source", total, progress.Bytes)
	c := blockcopy.Comparer{Source: p.job.source.Source, Target: p.Target, BlockSize: int64(p.tc.BlockSize), Jobs: p.Jobs, Progress: p.job.Progress.Add}
	var err error
	p.hashed, err = c.Compare(ctx, ranges)
	if errors.Is(err, blockcopy.ErrNoHashes) {
		return exit.Wrap(err, exit.Usage, "compare with a live server or a data directory", "--compare")
	}
	if err != nil {
		return exit.Wrap(err, exit.CodeOf(err), exit.HintOf(err), "comparing with the source")
	}
	p.compared = &Comparison{Files: len(ranges), Bytes: p.hashed.Compared, DigestBytes: p.hashed.Digests,
		DifferingFiles: len(p.hashed.Spans), DifferingBytes: p.hashed.Bytes(), WALHeld: p.hold != nil}
	return nil
}

// bothHave is how much of a file is compared: what both sides have of a
// relation, in whole blocks where they are not equally long, and other files
// where they are. It is negative for what is planned as in any rewind.
func (p *planner) bothHave(e, t blockcopy.Entry, have bool) int64 {
	if !have || e.Type != blockcopy.File || t.Type != blockcopy.File || own(e.Path) || skipped(e) ||
		strings.HasPrefix(e.Path, "pg_wal/") || p.unlogged.Omit(e.Path) {
		return -1
	}
	switch volume.Classify(e.Path) {
	case volume.ClassRelMain, volume.ClassRelFork:
		if e.Size != t.Size {
			bs := int64(p.tc.BlockSize)
			return min(e.Size, t.Size) / bs * bs
		}
		return e.Size
	case volume.ClassCopy:
		if e.Size == t.Size {
			return e.Size
		}
	}
	return -1
}

// byHash plans a file that was compared.
func (p *planner) byHash(e, t blockcopy.Entry, have bool) bool {
	if p.hashed == nil {
		return false
	}
	both := p.bothHave(e, t, have)
	if both < 0 {
		return false
	}
	spans := p.hashed.Spans[e.Path]
	if len(spans) > 0 {
		p.add(blockcopy.Action{Kind: blockcopy.CopyBlocks, Path: e.Path, Spans: spans})
	}
	switch {
	case e.Size > t.Size:
		p.add(blockcopy.Action{Kind: blockcopy.CopyTail, Path: e.Path, From: both, Size: e.Size})
	case e.Size < t.Size:
		p.add(blockcopy.Action{Kind: blockcopy.Truncate, Path: e.Path, Size: e.Size})
	case len(spans) == 0:
		p.unchanged(e)
	}
	return true
}

// replaceWAL decides about pg_wal: the source's from the redo point on
// travels, with its history files, and all that the target has goes.
func (p *planner) replaceWAL(ctx context.Context) error {
	size := p.tc.XLogSegSize
	copied := p.historyFiles()
	for n := size.Number(p.d.Start.Redo); n < p.lastPlanned(); n++ {
		names := candidates(p.sh, size, n)
		if len(names) == 0 {
			continue
		}
		need := walNeed{n, names[0], ""}
		if i := slices.IndexFunc(names, func(name string) bool { _, ok := p.source["pg_wal/"+name]; return ok }); i >= 0 {
			need = walNeed{n, names[i], inSource}
			copied[need.name] = true
			p.copySegment(need.name, "")
		}
		p.needs = append(p.needs, need)
	}
	if err := p.restoreSegments(ctx, p.meta.forkSegment(size), copied); err != nil {
		return err
	}
	waiting := 0
	for name, e := range p.target {
		base, ok := strings.CutPrefix(name, "pg_wal/")
		if !ok || e.Type != blockcopy.File || copied[base] {
			continue
		}
		p.add(blockcopy.Action{Kind: blockcopy.Remove, Path: name})
		if strings.HasPrefix(base, "archive_status/") && strings.HasSuffix(base, ".ready") {
			waiting++
		}
	}
	if waiting > 0 {
		p.warn("%d files of the target's WAL were not archived yet and go with the rest; where the archive needs them, archive them before (undo brings them back)", waiting)
	}
	return nil
}

// forkSegment is the segment from which on an archive may hold two of the same
// name: the fork's, or the first where no fork is known.
func (m meta) forkSegment(size wal.SegmentSize) wal.SegmentNumber {
	if m.Divergence.Fork == nil {
		return 0
	}
	return size.Number(m.Divergence.Fork.LSN)
}

// checkWAL looks once more, after the comparison, for the WAL that the plan
// copies: a source that was asked for hashes for an hour may have recycled it.
func (p *planner) checkWAL(ctx context.Context) error {
	var names []string
	for _, a := range p.walFirst {
		if a.Required && !slices.Contains(p.meta.Restored, strings.TrimPrefix(a.Path, "pg_wal/")) {
			names = append(names, a.Path)
		}
	}
	found, err := p.job.source.has(ctx, names)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !found[name] {
			p.missing = append(p.missing, strings.TrimPrefix(name, "pg_wal/"))
		}
	}
	if len(p.missing) > 0 {
		return recycledMeanwhile(p.missing, exit.Refused, p.hold != nil)
	}
	return nil
}

// recycledMeanwhile is the error of a source that recycled WAL which it wrote
// while it was compared or copied.
func recycledMeanwhile(names []string, code exit.Code, held bool) error {
	hint := "keep it there (wal_keep_size), or let the role create a temporary replication slot (REPLICATION), and run this again"
	if held {
		hint = "raise max_slot_wal_keep_size there, and run this again"
	}
	if code == exit.Partial {
		hint = "copy it from the WAL archive into the source's pg_wal and go on; or undo, keep WAL at the source " +
			"(wal_keep_size, or a role with REPLICATION) and compare anew"
	}
	return exit.New(code, hint, "the source has recycled WAL that replay needs and that it wrote meanwhile: %s", strings.Join(names, ", "))
}
