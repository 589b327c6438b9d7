package backup

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tidemark/internal/repo"
	"tidemark/pkg/timeline"
	"tidemark/pkg/wal"
)

const logSize = wal.SegmentSize(1 << 20)

// at is a position in the middle of a segment.
func at(segment int) wal.LSN { return wal.LSN(segment)<<20 + 0x1000 }

// taken is a backup that begins in one segment and ends in another.
func taken(id string, tli wal.TimelineID, first, last int) *repo.Summary {
	return &repo.Summary{ID: id, Start: repo.Point{LSN: at(first), Timeline: tli}, Stop: repo.Point{LSN: at(last) + 0x100, Timeline: tli},
		Finished: time.Unix(int64(last), 0), WAL: []repo.WALRange{{Timeline: tli,
			First: wal.SegmentName(tli, wal.SegmentNumber(first), logSize), Last: wal.SegmentName(tli, wal.SegmentNumber(last), logSize)}}}
}

// TestLogTimelines: gaps at, before and behind a switch of timelines, what
// they are put down to, and what they cost. A gap is written as timeline:first-last,
// what it breaks, the window of segments that is lost, from which backups, and
// which one ends it.
func TestLogTimelines(t *testing.T) {
	type runs map[wal.TimelineID][][2]wal.SegmentNumber // first and last
	for _, tt := range []struct {
		name    string
		runs    runs
		partial wal.SegmentNumber // on timeline 1
		backups []*repo.Summary
		want    []string
		cause   string // part of the first gap's
	}{
		{name: "a switch without a gap", runs: runs{1: {{1, 5}}, 2: {{6, 9}}},
			backups: []*repo.Summary{taken("a", 1, 2, 3), taken("b", 2, 7, 8)}},
		{name: "the switch's segment under both names", runs: runs{1: {{1, 6}}, 2: {{6, 9}}},
			backups: []*repo.Summary{taken("a", 1, 2, 3)}},
		{name: "the old primary's last segments are not there", runs: runs{1: {{1, 3}}, 2: {{6, 9}}},
			backups: []*repo.Summary{taken("a", 1, 2, 3)},
			want:    []string{"1:4-5 lost 4-10 from a"}, cause: "the old primary did not archive its last segments before"},
		{name: "the same with a partial one", runs: runs{1: {{1, 3}}, 2: {{6, 9}}}, partial: 4,
			backups: []*repo.Summary{taken("a", 1, 2, 3)},
			want:    []string{"1:4-5 lost 4-10 from a"}, cause: ".partial"},
		{name: "a backup on the new timeline ends the window", runs: runs{1: {{1, 3}}, 2: {{6, 9}}},
			backups: []*repo.Summary{taken("a", 1, 2, 3), taken("b", 2, 7, 8)},
			want:    []string{"1:4-5 lost 4-8 from a until b"}},
		{name: "the new primary archives late", runs: runs{1: {{1, 5}}, 2: {{8, 9}}},
			backups: []*repo.Summary{taken("a", 1, 2, 3)},
			want:    []string{"2:6-7 lost 6-10 from a"}, cause: "the new primary did not archive from the promotion"},
		{name: "a gap behind the switch costs backups before it", runs: runs{1: {{1, 5}}, 2: {{6, 6}, {8, 12}}},
			backups: []*repo.Summary{taken("a", 1, 2, 3), taken("b", 2, 9, 10)},
			want:    []string{"2:7-7 lost 7-10 from a until b"}, cause: "not known"},
		{name: "the old primary went on alone: that is no way to the new timeline", runs: runs{1: {{1, 5}, {7, 9}}, 2: {{6, 6}, {8, 9}}},
			backups: []*repo.Summary{taken("astray", 1, 7, 8)},
			want:    []string{"1:6-6", "2:7-7"}},
		{name: "its gap is the old timeline's own", runs: runs{1: {{1, 7}, {9, 11}}, 2: {{6, 12}}},
			backups: []*repo.Summary{taken("a", 1, 2, 3), taken("b", 2, 9, 10)},
			want:    []string{"1:8-8 lost 8-12 from a"}},
		{name: "a gap within a backup", runs: runs{1: {{1, 5}}, 2: {{6, 7}, {9, 10}}},
			backups: []*repo.Summary{taken("a", 2, 7, 9)},
			want:    []string{"2:8-8 breaks a"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			child, err := timeline.Root(1).Child(2, at(6), "no recovery target specified")
			if err != nil {
				t.Fatal(err)
			}
			w := &walLogger{size: logSize, backups: tt.backups, byTimeline: map[wal.TimelineID]*repo.WALCoverage{},
				histories: map[wal.TimelineID]*timeline.History{1: timeline.Root(1), 2: child}}
			for tli, list := range tt.runs {
				w.byTimeline[tli] = &repo.WALCoverage{Timeline: tli}
				for _, r := range list {
					w.byTimeline[tli].Runs = append(w.byTimeline[tli].Runs, repo.SegmentRun{First: r[0], Last: r[1]})
				}
			}
			if tt.partial > 0 {
				w.byTimeline[1].Partials = []wal.SegmentNumber{tt.partial}
			}
			var got []string
			cause := ""
			for tli := wal.TimelineID(1); tli <= 2; tli++ {
				for _, g := range w.timeline(w.byTimeline[tli]).Gaps {
					got = append(got, describeGap(tli, &g))
					if cause == "" {
						cause = g.Cause
					}
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(tt.want) || !strings.Contains(cause, tt.cause) {
				t.Errorf("got  %q (%s)\nwant %q (%s)", got, cause, tt.want, tt.cause)
			}
		})
	}
}

func describeGap(tli wal.TimelineID, g *WALGap) string {
	number := func(l wal.LSN) wal.SegmentNumber { return logSize.Number(l) }
	s := fmt.Sprintf("%d:%d-%d", uint32(tli), number(g.Begin), number(g.End)-1)
	if len(g.Broken) > 0 {
		s += " breaks " + strings.Join(g.Broken, ",")
	}
	if l := g.Lost; l != nil {
		s += fmt.Sprintf(" lost %d-%d from %s", number(l.From), number(l.To), strings.Join(l.Backups, ","))
		if l.Next != "" {
			s += " until " + l.Next
		}
	}
	return s
}
