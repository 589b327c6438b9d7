package rewind

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"tidemark/internal/exit"
	"tidemark/internal/repo"
	"tidemark/pkg/wal"
)

// A timeline's last segment may be in the archive as a .partial file alone. Two
// kinds of servers make one, and they must not be mixed up:
//
//	00000001...05.partial  a standby's that was promoted within segment 5: the
//	                       OLD timeline, up to the fork. The new one's segment,
//	                       00000002...05, begins with the same WAL.
//	00000002...09.partial  what somebody saved of the running segment of a
//	                       primary that is lost: the timeline's own end.
//
// Only a file of the timeline that the target is rewound to counts, only where
// no complete segment has its number or a greater one, only when its records
// prove that they are of that timeline, and only as far as they are valid. No
// server asks an archive for such a file. So it is copied into pg_wal, under
// the segment's name and marked as archived: there the server finds it when
// the archive has no more, and it never reaches an archive as a whole segment.
//
// A backup that was taken from a standby may hold the timeline's last segment
// itself, up to where the backup ended (repo.Summary.Tail). It is used alike.
type partialSegment struct {
	number wal.SegmentNumber
	name   string  // of the file in the archive, with ".partial"; or of the segment in the backup
	end    wal.LSN // where its valid records end; 0 where it is of no use
	why    string  // it is of no use, or not whole: for people
	inside bool    // the backup holds it
}

// runningName is the name by which a server looks for the segment.
func (p *partialSegment) runningName() string { return strings.TrimSuffix(p.name, ".partial") }

// is tells whether the segment is this one.
func (p *partialSegment) is(n wal.SegmentNumber) bool { return p != nil && p.end > 0 && p.number == n }

// findPartial looks for the timeline's end in a .partial file, and in the backup.
func (r *repoSource) findPartial(ctx context.Context) error {
	whole := wal.SegmentNumber(0) // behind the last segment that is archived whole
	w := r.coverage[r.history.Timeline]
	if w != nil && len(w.Runs) > 0 {
		whole = w.Runs[len(w.Runs)-1].Last + 1
	}
	if w != nil && len(w.Partials) > 0 && w.Partials[len(w.Partials)-1] >= whole {
		n := w.Partials[len(w.Partials)-1]
		p := &partialSegment{number: n, name: wal.PartialName(r.history.Timeline, n, r.size)}
		r.partial = p
		if err := r.readPartial(ctx, p); err != nil {
			return exit.Wrap(err, exit.Failed, "push the segment under its own name when it is whole, or look at the repository: dbbackup verify",
				"reading %s in the repository %s", p.name, r.cluster.Repository().Location())
		}
	}
	if r.backup == nil {
		return nil
	}
	s := r.backup.Summary()
	if s.Tail == "" || s.Stop.Timeline != r.history.Timeline || s.TailNumber() < whole || r.partial != nil && r.partial.end >= s.Stop.LSN {
		return nil
	}
	r.partial = &partialSegment{number: s.TailNumber(), name: s.Tail, end: s.Stop.LSN, inside: true}
	return nil
}

// openSegment opens a segment under the name that segmentName returns.
func (r *repoSource) openSegment(ctx context.Context, n wal.SegmentNumber, name string) (wal.Segment, error) {
	if !r.partial.is(n) || !r.partial.inside {
		return r.cluster.OpenWAL(ctx, name)
	}
	data, err := r.backup.ReadFile(ctx, repo.TailPath(name))
	if err != nil {
		return nil, err
	}
	return wal.MemorySource{n: data}.OpenSegment(ctx, n)
}

// where says in which part of the repository a segment lies, for people.
func (r *repoSource) where(n wal.SegmentNumber) string {
	if r.partial.is(n) && r.partial.inside {
		return fmt.Sprintf("the backup %s in the repository %s", r.backup.Summary().ID, r.cluster.Repository().Location())
	}
	return "the repository " + r.cluster.Repository().Location()
}

// readPartial finds where the valid records of a partial segment end, and
// whether they are of the timeline. The record that begins in the segment
// before it and ends in this one counts only where that segment is there.
func (r *repoSource) readPartial(ctx context.Context, p *partialSegment) error {
	span, _ := r.history.SpanOf(r.history.Timeline)
	from := r.size.Start(p.number)
	if p.number > r.size.Number(span.Begin) {
		if _, ok := r.segmentName(p.number - 1); ok {
			from = r.size.Start(p.number - 1)
		}
	}
	reader, err := wal.NewReader(ctx, r.archived(p), wal.Options{Start: from, FindFirst: true, SegmentSize: r.size,
		PageSize: r.control.XLogBlockSize, BlockSize: r.control.BlockSize, SystemID: r.control.SystemIdentifier, Major: r.control.Major()})
	if err != nil {
		return err
	}
	defer reader.Close()
	own := false
	for reader.Next() {
		rec := reader.Record()
		if rec.LSN < span.Begin {
			continue
		}
		tli, err := writtenOn(rec)
		if err != nil {
			return err
		}
		if tli > r.history.Timeline || tli < r.history.Timeline && rec.LSN >= r.nextPage(span.Begin) {
			break // the name is not what the file is
		}
		if own = own || tli == r.history.Timeline; own {
			p.end = rec.End
		}
	}
	var torn *wal.TornTail
	var damage *wal.Corruption
	switch err := reader.Err(); {
	case err != nil && !errors.As(err, &torn) && !errors.As(err, &damage):
		return err
	case p.end <= r.size.Start(p.number):
		p.end = 0
		p.why = fmt.Sprintf("%s holds no WAL of timeline %d", p.name, r.history.Timeline)
	case damage != nil:
		p.why = fmt.Sprintf("%s is damaged at %s; what follows is not used", p.name, damage.Fault)
	}
	return nil
}

// nextPage is where the page behind the one with a position begins.
func (r *repoSource) nextPage(at wal.LSN) wal.LSN {
	page := wal.LSN(r.control.XLogBlockSize)
	return (at/page + 1) * page
}

// writtenOn is the timeline that a record was written on. The page in which a
// timeline begins was begun by the one before, whose number its header keeps:
// there only the records by which a recovery ends can tell.
func writtenOn(r *wal.Record) (wal.TimelineID, error) {
	detail, err := wal.Decode(r)
	switch d := detail.(type) {
	case *wal.EndOfRecovery:
		return d.Timeline, err
	case *wal.Checkpoint:
		return d.Timeline, err
	}
	return r.Timeline, err
}

// archived is the WAL of the archive alone, the partial segment with it.
func (r *repoSource) archived(p *partialSegment) wal.Source {
	return wal.SourceFunc(func(ctx context.Context, n wal.SegmentNumber) (wal.Segment, error) {
		name, ok := r.segmentName(n)
		if n == p.number {
			name, ok = p.name, true
		}
		if !ok {
			return nil, fmt.Errorf("segment %d in the archive: %w", n, wal.ErrNoSegment)
		}
		return r.openSegment(ctx, n, name)
	})
}

// tellPartial says what is doubtful about the end of the archive.
func (j *job) tellPartial(d *Divergence) {
	if j.source.repo == nil || j.source.repo.partial == nil {
		return
	}
	switch p := j.source.repo.partial; {
	case p.why != "":
		j.warn("%s", p.why)
	case !p.inside && !d.Diverged && d.Target.End > d.Source.End:
		j.warn("the archive ends within a segment (%s): if its server was promoted there, the history file of the new timeline is missing in the archive, and the target has diverged", p.name)
	}
}
