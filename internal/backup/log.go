package backup

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"tidemark/internal/repo"
	"tidemark/pkg/timeline"
	"tidemark/pkg/wal"
)

// WALLog is what WAL a repository holds of a cluster, and what is missing.
type WALLog struct {
	Repository  string          `json:"repository"`         // where it is
	SystemID    repo.SystemID   `json:"system_identifier"`  // of the cluster
	SegmentSize wal.SegmentSize `json:"wal_segment_size"`   // bytes
	Timelines   []TimelineLog   `json:"timelines"`          // ascending
	Costly      int             `json:"costly_gaps"`        // gaps that something cannot be recovered for
	Unlinked    []string        `json:"unlinked,omitempty"` // timelines whose history file is missing: what they come from is not known
}

// TimelineLog is what the archive holds of one timeline.
type TimelineLog struct {
	Timeline wal.TimelineID `json:"timeline"`           // its number
	Parent   wal.TimelineID `json:"parent,omitempty"`   // the timeline that it comes from
	Switch   wal.LSN        `json:"switch,omitempty"`   // where it left that one
	Segments int            `json:"segments"`           // how many are there
	Stored   int64          `json:"stored_bytes"`       // of all its files in the repository
	Runs     []WALRun       `json:"runs"`               // without a gap in themselves
	Partials []string       `json:"partials,omitempty"` // unfinished segments of a timeline's end
	Gaps     []WALGap       `json:"gaps"`               // between the runs, and at the ends
}

// WALRun is WAL without a gap.
type WALRun struct {
	First    string  `json:"first"`     // its first segment
	Last     string  `json:"last"`      // and its last
	Begin    wal.LSN `json:"begin_lsn"` // first byte
	End      wal.LSN `json:"end_lsn"`   // the byte behind the last one
	Segments int     `json:"segments"`  // how many
}

// WALGap is WAL that the archive lacks.
type WALGap struct {
	WALRun
	Cause string `json:"cause"` // as far as it can be told
	// Broken are the backups that need WAL of the gap to become consistent:
	// they cannot be restored at all.
	Broken []string    `json:"broken_backups,omitempty"`
	Lost   *LostWindow `json:"lost,omitempty"` // the recovery window that the gap costs; absent: none
}

// LostWindow is what cannot be recovered to because of a gap.
type LostWindow struct {
	From      wal.LSN    `json:"from_lsn"`                 // the gap's begin
	To        wal.LSN    `json:"to_lsn"`                   // where the next backup makes recovery possible again; else the end of the WAL
	Backups   []string   `json:"backups"`                  // the backups from which recovery ends at the gap
	Next      string     `json:"next_backup,omitempty"`    // the backup that ends the window
	After     *time.Time `json:"after_time,omitempty"`     // the last of those backups was complete then
	Recovered *time.Time `json:"recovered_time,omitempty"` // the next backup was complete then
}

// costly reports whether anything cannot be recovered because of the gap.
func (g *WALGap) costly() bool { return len(g.Broken) > 0 || g.Lost != nil }

// Log describes the WAL in the archive.
func Log(ctx context.Context, c *repo.Cluster) (*WALLog, error) {
	cat, err := c.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	var size wal.SegmentSize
	if n := len(cat.Backups); n > 0 {
		size = wal.SegmentSize(cat.Backups[n-1].WALSegmentSize)
	}
	coverage, err := c.WALCoverage(ctx, size)
	if err != nil {
		return nil, err
	}
	if size == 0 {
		if size, err = c.SegmentSize(ctx); err != nil {
			return nil, err
		}
	}
	w := &walLogger{ctx: ctx, cluster: c, size: size, backups: cat.Backups, byTimeline: map[wal.TimelineID]*repo.WALCoverage{}}
	l := &WALLog{Repository: c.Repository().Location(), SystemID: repo.SystemID(c.SystemID()), SegmentSize: size, Timelines: []TimelineLog{}}
	for _, t := range coverage {
		w.byTimeline[t.Timeline] = t
	}
	if err := w.readHistories(coverage); err != nil {
		return nil, err
	}
	for _, t := range coverage {
		one := w.timeline(t)
		for _, g := range one.Gaps {
			if g.costly() {
				l.Costly++
			}
		}
		if t.Timeline > 1 && w.histories[t.Timeline] == nil {
			l.Unlinked = append(l.Unlinked, t.Timeline.String())
		}
		l.Timelines = append(l.Timelines, one)
	}
	return l, nil
}

type walLogger struct {
	ctx        context.Context
	cluster    *repo.Cluster
	size       wal.SegmentSize
	backups    []*repo.Summary
	byTimeline map[wal.TimelineID]*repo.WALCoverage
	histories  map[wal.TimelineID]*timeline.History
}

func (w *walLogger) readHistories(coverage []*repo.WALCoverage) error {
	w.histories = map[wal.TimelineID]*timeline.History{1: timeline.Root(1)}
	for _, t := range coverage {
		if !t.History {
			continue
		}
		var buf bytes.Buffer
		if _, err := w.cluster.FetchWAL(w.ctx, wal.HistoryName(t.Timeline), &buf); err != nil {
			return err
		}
		h, err := timeline.Parse(t.Timeline, buf.Bytes())
		if err != nil {
			return err
		}
		w.histories[t.Timeline] = h
	}
	return nil
}

// origin is the timeline that tli comes from and where it left it; 0 where
// that is not known.
func (w *walLogger) origin(tli wal.TimelineID) (parent wal.TimelineID, at wal.LSN) {
	h := w.histories[tli]
	if h == nil || len(h.Entries) == 0 {
		return 0, 0
	}
	last := h.Entries[len(h.Entries)-1]
	return last.Timeline, last.Switch
}

func (w *walLogger) run(tli wal.TimelineID, first, last wal.SegmentNumber) WALRun {
	return WALRun{First: wal.SegmentName(tli, first, w.size), Last: wal.SegmentName(tli, last, w.size),
		Begin: w.size.Start(first), End: w.size.End(last), Segments: int(last-first) + 1}
}

func (w *walLogger) timeline(t *repo.WALCoverage) TimelineLog {
	l := TimelineLog{Timeline: t.Timeline, Segments: t.Segments, Stored: t.Stored, Runs: []WALRun{}, Gaps: []WALGap{}}
	l.Parent, l.Switch = w.origin(t.Timeline)
	for _, n := range t.Partials {
		l.Partials = append(l.Partials, wal.SegmentName(t.Timeline, n, w.size)+".partial")
	}
	for _, r := range t.Runs {
		l.Runs = append(l.Runs, w.run(t.Timeline, r.First, r.Last))
	}
	for _, g := range w.missing(t) {
		l.Gaps = append(l.Gaps, w.gap(t, g))
	}
	return l
}

// missing finds the segments of a timeline that should be there: between its
// runs, from where it begins, up to where a later one left it, and those that
// a backup needs.
func (w *walLogger) missing(t *repo.WALCoverage) []repo.SegmentRun {
	want := slices.Clone(t.Runs)
	need := func(first, last wal.SegmentNumber) {
		if first <= last {
			want = append(want, repo.SegmentRun{First: first, Last: last})
		}
	}
	if parent, at := w.origin(t.Timeline); parent != 0 && len(t.Runs) > 0 {
		need(w.size.Number(at), t.Runs[0].First)
	}
	for child := range w.histories {
		if parent, at := w.origin(child); parent == t.Timeline && len(t.Runs) > 0 && len(w.byTimeline[child].Runs) > 0 && w.size.Number(at) > 0 {
			// The segment of the switch is in the child's archive as well.
			need(t.Runs[len(t.Runs)-1].Last, w.size.Number(at)-1)
		}
	}
	for _, b := range w.backups {
		if first, last, ok := w.needs(b, t.Timeline); ok {
			need(first, last)
		}
	}
	return lacking(t, want)
}

// lacking returns the segments from the first to the last wanted one that the
// timeline lacks, in runs.
func lacking(t *repo.WALCoverage, want []repo.SegmentRun) []repo.SegmentRun {
	var out []repo.SegmentRun
	if len(want) == 0 {
		return nil
	}
	from := slices.MinFunc(want, func(a, b repo.SegmentRun) int { return cmp.Compare(a.First, b.First) }).First
	to := slices.MaxFunc(want, func(a, b repo.SegmentRun) int { return cmp.Compare(a.Last, b.Last) }).Last
	for _, r := range t.Runs {
		if r.First > from {
			out = append(out, repo.SegmentRun{First: from, Last: r.First - 1})
		}
		from = r.Last + 1
	}
	if from <= to {
		out = append(out, repo.SegmentRun{First: from, Last: to})
	}
	return out
}

// needs are the segments of a timeline that a backup needs to become consistent.
func (w *walLogger) needs(b *repo.Summary, tli wal.TimelineID) (first, last wal.SegmentNumber, ok bool) {
	for _, r := range b.WAL {
		f, ok1 := wal.ParseFileName(r.First)
		l, ok2 := wal.ParseFileName(r.Last)
		if r.Timeline == tli && ok1 && ok2 {
			first, ok1 = f.Number(w.size)
			last, ok2 = l.Number(w.size)
			return first, last, ok1 && ok2
		}
	}
	return 0, 0, false
}

func (w *walLogger) gap(t *repo.WALCoverage, g repo.SegmentRun) WALGap {
	out := WALGap{WALRun: w.run(t.Timeline, g.First, g.Last)}
	for _, b := range w.backups {
		if first, last, ok := w.needs(b, t.Timeline); ok && first <= g.Last && last >= g.First {
			out.Broken = append(out.Broken, b.ID)
		}
	}
	out.Lost = w.lost(t, out)
	out.Cause = w.cause(t, g)
	return out
}

// lost works out the window: from the gap to the end of the first backup
// behind it, for those that would be recovered from a backup before it. Where
// the timeline has none, one of a timeline that comes from it behind the gap ends
// the window.
func (w *walLogger) lost(t *repo.WALCoverage, g WALGap) *LostWindow {
	var lost LostWindow
	var next, elsewhere *repo.Summary
	for _, b := range w.backups {
		h := w.histories[t.Timeline]
		on := b.Stop.Timeline == t.Timeline || h != nil && h.Contains(b.Stop.Timeline, b.Stop.LSN)
		switch {
		case on && b.Stop.LSN <= g.Begin:
			lost.Backups = append(lost.Backups, b.ID)
			lost.After = &b.Finished
		case b.Start.LSN < g.End:
		case b.Stop.Timeline == t.Timeline && next == nil:
			next = b
		case w.passes(b.Stop.Timeline, t.Timeline, g.End) && elsewhere == nil:
			elsewhere = b
		}
	}
	if len(lost.Backups) == 0 {
		return nil
	}
	lost.From = g.Begin
	if next = cmp.Or(next, elsewhere); next != nil {
		lost.Next, lost.To, lost.Recovered = next.ID, next.Stop.LSN, &next.Finished
		return &lost
	}
	lost.To = g.End
	for tli, other := range w.byTimeline {
		if n := len(other.Runs); n > 0 && w.passes(tli, t.Timeline, g.End) {
			lost.To = max(lost.To, w.size.End(other.Runs[n-1].Last))
		}
	}
	return &lost
}

// passes tells whether the way to a timeline leads over a position of another
// one, or of itself. The segment of a switch is in the archive of both.
func (w *walLogger) passes(tli, over wal.TimelineID, at wal.LSN) bool {
	h := w.histories[tli]
	if tli == over || h == nil {
		return tli == over
	}
	s, ok := h.SpanOf(over)
	return ok && at > s.Begin && w.size.Number(s.End) >= w.size.Number(at)
}

// cause says what the repository shows of how the gap came to be.
func (w *walLogger) cause(t *repo.WALCoverage, g repo.SegmentRun) string {
	if parent, at := w.origin(t.Timeline); parent != 0 && g.First == w.size.Number(at) {
		return fmt.Sprintf("the new primary did not archive from the promotion at %s on", at)
	}
	if len(t.Runs) > 0 && g.First > t.Runs[len(t.Runs)-1].Last {
		if slices.Contains(t.Partials, g.First) {
			return "the old primary did not archive its last segments; of the first of them there is a .partial file"
		}
		return "the old primary did not archive its last segments before it was replaced"
	}
	before, after := false, false
	for _, b := range w.backups {
		if first, last, ok := w.needs(b, t.Timeline); ok {
			before = before || last+1 == g.First
			after = after || first == g.Last+1
		}
	}
	if before && after {
		return "only the backups' own WAL is there: the server did not archive between them, or the WAL between them was expired"
	}
	return "not known: see archive_mode and the archiver's failures in the server's log of that time"
}
