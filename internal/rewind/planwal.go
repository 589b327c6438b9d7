package rewind

import (
	"context"
	"path"
	"slices"
	"strconv"
	"strings"

	"tidemark/internal/blockcopy"
	"tidemark/pkg/timeline"
	"tidemark/pkg/wal"
)

// planWAL decides about pg_wal:
//
//   - segments of common timelines up to the fork's stay; those from the redo
//     point on that are not here come from the source;
//   - the source's segments after the fork travel, and its history files;
//   - what the source recycled of either comes from where else WAL is found;
//   - everything that the target wrote after the fork goes: segments, history
//     files, summaries, and what archive_status says of them. A recovering
//     server would take them for the source's.
//
// The source's running segment is copied at the end (see finish.go).
func (p *planner) planWAL(ctx context.Context) error {
	size := p.tc.XLogSegSize
	forkSeg := size.Number(p.d.Fork.LSN)
	copied := p.historyFiles()
	first := size.Number(p.d.Start.Redo)
	for n := first; n < max(forkSeg+1, p.lastPlanned()); n++ {
		p.segment(n, forkSeg, copied)
	}
	if err := p.restoreSegments(ctx, forkSeg, copied); err != nil {
		return err
	}
	p.settleForkSegment(forkSeg)
	for name, e := range p.target {
		if base, ok := strings.CutPrefix(name, "pg_wal/"); ok && e.Type == blockcopy.File && p.foreign(base, copied) {
			p.add(blockcopy.Action{Kind: blockcopy.Remove, Path: name})
		}
	}
	return nil
}

// segment sees to it that a segment from the redo point on is there after the
// run, where either side has it.
func (p *planner) segment(n, forkSeg wal.SegmentNumber, copied map[string]bool) {
	names := candidates(p.sh, p.tc.XLogSegSize, n)
	if len(names) == 0 {
		return
	}
	theirs := slices.IndexFunc(names, func(name string) bool { _, ok := p.source["pg_wal/"+name]; return ok })
	mine := slices.IndexFunc(names, func(name string) bool {
		_, ok := p.target["pg_wal/"+name]
		return ok && !p.foreign(name, copied)
	})
	late := n >= p.lastPlanned()
	if p.job.source.repo != nil {
		own := ""
		if mine >= 0 {
			own = names[mine]
		}
		p.archivedSegment(n, forkSeg, own, copied)
		return
	}
	switch {
	case n < forkSeg && mine >= 0:
		p.needs = append(p.needs, walNeed{n, names[mine], inTarget})
	case theirs >= 0 && !late:
		copied[names[theirs]] = true
		p.copySegment(names[theirs], "")
		p.needs = append(p.needs, walNeed{n, names[theirs], inSource})
	case !late:
		p.needs = append(p.needs, walNeed{n, names[0], ""})
	}
}

// restoreSegments plans the segments that neither side has any more.
func (p *planner) restoreSegments(ctx context.Context, forkSeg wal.SegmentNumber, copied map[string]bool) error {
	var at []int // which of the needs
	var list []walNeed
	for i, need := range p.needs {
		if need.where == "" {
			at, list = append(at, i), append(list, need)
		}
	}
	found, errs := p.job.locateAll(ctx, p.th.Spans(), forkSeg, list)
	for i, need := range list {
		where := found[i]
		if errs[i] != nil {
			return errs[i]
		}
		if p.needs[at[i]].where = where; where == "" {
			p.missing = append(p.missing, need.name)
			continue
		}
		copied[need.name] = true
		p.copySegment(need.name, "restored from "+where)
		p.meta.Restored = append(p.meta.Restored, need.name)
	}
	return nil
}

// settleForkSegment marks the target's own segment with the fork in it as
// archived: what it holds behind the fork must never reach an archive, nor be
// taken for the segment of that name that belongs there.
func (p *planner) settleForkSegment(n wal.SegmentNumber) {
	name := wal.SegmentName(p.d.Fork.Timeline, n, p.tc.XLogSegSize)
	ready := "pg_wal/archive_status/" + name + ".ready"
	if _, ok := p.target[ready]; ok && !slices.Contains(p.meta.Done, name) {
		p.add(blockcopy.Action{Kind: blockcopy.Remove, Path: ready, Reason: "holds WAL from behind the fork"})
		p.meta.Done = append(p.meta.Done, name)
	}
}

func (p *planner) copySegment(name, reason string) {
	p.walFirst = append(p.walFirst, blockcopy.Action{Kind: blockcopy.Copy, Path: "pg_wal/" + name, Size: int64(p.tc.XLogSegSize), Required: true, Reason: reason})
	if _, ok := p.target["pg_wal/archive_status"]; ok {
		p.meta.Done = append(p.meta.Done, name)
	}
}

// historyFiles plans the history files on the source's line of descent.
func (p *planner) historyFiles() map[string]bool {
	copied := map[string]bool{}
	for _, s := range p.sh.Spans() {
		name := wal.HistoryName(s.Timeline)
		if e, ok := p.source["pg_wal/"+name]; ok {
			copied[name] = true
			p.walFirst = append(p.walFirst, blockcopy.Action{Kind: blockcopy.Copy, Path: e.Path, Size: e.Size})
		}
	}
	return copied
}

// lastPlanned is the first segment that is left to the end of the run. A
// stopped source has none.
func (p *planner) lastPlanned() wal.SegmentNumber {
	size := p.tc.XLogSegSize
	switch {
	case p.job.source.live():
		return size.Number(p.meta.SourceEnd)
	case p.job.source.repo != nil: // whose WAL ends with a segment
		return size.NumberBefore(p.meta.SourceEnd) + 1
	}
	return size.Number(p.meta.SourceEnd) + 1
}

// foreign tells whether a file of the target's pg_wal must go: it belongs to
// the target's WAL after the fork and the source's does not take its place.
func (p *planner) foreign(name string, copied map[string]bool) bool {
	dir, base := path.Split(name)
	switch {
	case dir == "archive_status/":
		base = strings.TrimSuffix(strings.TrimSuffix(base, ".ready"), ".done")
		if copied[base] {
			return true // it told of another file of that name
		}
	case dir == "summaries/":
		return p.foreignSummary(base)
	case dir != "":
		return false
	}
	if copied[base] {
		return false
	}
	f, ok := wal.ParseFileName(base)
	if !ok {
		return false
	}
	span, common := p.common(f.Timeline)
	if f.Kind == wal.FileHistory {
		return !common
	}
	n, ok := f.Number(p.tc.XLogSegSize)
	return !common || !ok || n > p.tc.XLogSegSize.Number(p.d.Fork.LSN) || span.End != 0 && p.tc.XLogSegSize.Start(n) >= span.End
}

// common returns a timeline's span where it lies before the fork.
func (p *planner) common(id timeline.ID) (timeline.Span, bool) {
	spans := p.th.Spans()
	last := slices.IndexFunc(spans, func(s timeline.Span) bool { return s.Timeline == p.d.Fork.Timeline && s.Begin == p.d.Fork.Begin })
	for _, s := range spans[:last+1] {
		if s.Timeline == id {
			return s, true
		}
	}
	return timeline.Span{}, false
}

// foreignSummary tells whether a WAL summary (17 and up, named by timeline,
// start and end) covers WAL after the fork.
func (p *planner) foreignSummary(name string) bool {
	name, ok := strings.CutSuffix(name, ".summary")
	if !ok || len(name) != 40 {
		return false
	}
	tli, err1 := strconv.ParseUint(name[:8], 16, 32)
	end, err2 := strconv.ParseUint(name[24:], 16, 64)
	_, common := p.common(timeline.ID(tli))
	return err1 != nil || err2 != nil || !common || wal.LSN(end) > p.d.Fork.LSN
}

// lateSegments names, for each segment from the one on that was running when
// the plan was made, the files that may hold it, the best first.
func lateSegments(h *timeline.History, size wal.SegmentSize, from, end wal.LSN) [][]string {
	var out [][]string
	for n := size.Number(from); n <= size.NumberBefore(end); n++ {
		out = append(out, candidates(h, size, n))
	}
	return out
}
