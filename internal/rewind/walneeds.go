package rewind

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"tidemark/pkg/timeline"
	"tidemark/pkg/wal"
)

// searchesAtOnce is how many segments are looked for together where only
// their places are asked for.
const searchesAtOnce = 64

// walNeed is a segment that is needed, and where it lies.
type walNeed struct {
	number wal.SegmentNumber
	name   string
	where  string // "" where it is missing
}

// WALRun is a run of segments that lie in one place.
type WALRun struct {
	First    string `json:"first"`              // name of the first segment
	Last     string `json:"last"`               // name of the last one
	Segments int    `json:"segments"`           // how many
	FoundIn  string `json:"found_in,omitempty"` // where they lie, in words; absent: they are missing
}

// WALNeeds says which WAL a rewind needs, and where that is.
type WALNeeds struct {
	Target []WALRun `json:"target"` // read to find the changed blocks: from the last common checkpoint's redo point to the target's end
	Replay []WALRun `json:"replay"` // replayed by the rewound server: from its redo point to the source's end, without the running segment
}

// runs joins neighbours that lie in one place.
func runs(needs []walNeed) []WALRun {
	var list []WALRun
	for i, n := range needs {
		if k := len(list) - 1; k >= 0 && list[k].FoundIn == n.where && needs[i-1].number+1 == n.number {
			list[k].Last = n.name
			list[k].Segments++
			continue
		}
		list = append(list, WALRun{First: n.name, Last: n.name, Segments: 1, FoundIn: n.where})
	}
	return list
}

// needs lists the target's segments that were read, from a position on.
func (t *targetWAL) needs(from wal.LSN) []walNeed {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []walNeed
	for n, where := range t.found {
		if names := candidates(t.history, t.size, n); n >= t.size.Number(from) && len(names) > 0 {
			list = append(list, walNeed{n, names[0], where})
		}
	}
	slices.SortFunc(list, func(a, b walNeed) int { return int(int64(a.number) - int64(b.number)) })
	return list
}

// alsoMissing names the segments from the fork to the target's end that are
// nowhere: all of them are needed, beside those back to the checkpoint.
func (j *job) alsoMissing(ctx context.Context, end wal.LSN) string {
	var list []walNeed
	for n := j.wal.fork; n <= j.wal.size.NumberBefore(end); n++ {
		if names := candidates(j.th, j.wal.size, n); len(names) > 0 && !j.wal.atHand(names) {
			list = append(list, walNeed{n, names[0], ""})
		}
	}
	where, errs := j.locateAll(ctx, j.sh.Spans(), j.wal.fork, list)
	var missing []walNeed
	for i, need := range list {
		if errs[i] == nil && where[i] == "" {
			missing = append(missing, need)
		}
	}
	if len(missing) < 2 {
		return ""
	}
	var names []string
	for _, r := range runs(missing) {
		if names = append(names, r.First); r.Segments > 1 {
			names[len(names)-1] += " to " + r.Last
		}
	}
	return fmt.Sprintf(" (missing from there on: %s)", strings.Join(names, ", "))
}

// locateAll is locate for segments that are all asked for, many at once: each
// may take several questions and pauses. The answers are in the list's order.
func (j *job) locateAll(ctx context.Context, other []timeline.Span, forkSeg wal.SegmentNumber, list []walNeed) (where []string, errs []error) {
	where, errs = make([]string, len(list)), make([]error, len(list))
	var g errgroup.Group
	g.SetLimit(searchesAtOnce)
	for i, need := range list {
		g.Go(func() error {
			where[i], errs[i] = j.locate(ctx, other, forkSeg, need.number, need.name)
			return nil
		})
	}
	_ = g.Wait() // each error is in its place
	return where, errs
}

// locate finds out where else than in the two pg_wal a segment on one side's
// history lies; "" says nowhere. The other side may have archived another
// segment of the same name.
func (j *job) locate(ctx context.Context, other []timeline.Span, forkSeg, n wal.SegmentNumber, name string) (string, error) {
	if !unequivocal(other, j.tc.XLogSegSize, forkSeg, n, name) {
		return "", nil
	}
	l, err := j.search.locate(ctx, name)
	if err != nil {
		return "", err
	}
	if l.where == "" && l.fault != nil {
		return "", j.explainWAL(&archiveFault{name, l.fault}, "looking for WAL that replay needs")
	}
	return l.where, nil
}

// unequivocal tells whether an archive can hold only one side's segment under
// a name. From the fork on the other side may have written, and archived,
// another one of the same name: where both call their timeline by the same
// number.
func unequivocal(other []timeline.Span, size wal.SegmentSize, forkSeg, n wal.SegmentNumber, name string) bool {
	if n < forkSeg {
		return true
	}
	f, _ := wal.ParseFileName(name)
	return !slices.ContainsFunc(other, func(s timeline.Span) bool {
		return s.Timeline == f.Timeline && s.Begin < size.End(n) && (s.End == 0 || s.End >= size.End(n))
	})
}
