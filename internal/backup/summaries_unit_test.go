package backup

import (
	"strings"
	"testing"

	"tidemark/pkg/timeline"
	"tidemark/pkg/wal"
)

func TestCovering(t *testing.T) {
	one := timeline.Root(1)
	two, err := timeline.Parse(2, []byte("1\t0/500\tno recovery target specified\n"))
	if err != nil {
		t.Fatal(err)
	}
	all := []walSummary{{1, 0x100, 0x200}, {1, 0x200, 0x300}, {1, 0x300, 0x500}, {1, 0x500, 0x700}, {2, 0x500, 0x600}, {2, 0x600, 0x800}, {2, 0x900, 0xa00}}
	alone := all[:4]
	for _, tt := range []struct {
		name     string
		history  *timeline.History
		from, to wal.LSN
		want     int // summaries; -1: not covered
	}{
		{"one", one, 0x100, 0x200, 1},
		{"several", one, 0x200, 0x700, 3},
		{"nothing", one, 0x300, 0x300, 0},
		{"behind the last", one, 0x500, 0x701, -1},
		{"behind all of the timeline", one, 0x700, 0x800, -1},
		{"no summary begins there", one, 0x250, 0x300, -1},
		{"before the first", one, 0x50, 0x300, -1},
		{"across a switch", two, 0x200, 0x800, 4},
		{"the parent goes on elsewhere", two, 0x300, 0x600, 2},
		{"a gap", two, 0x300, 0xa00, -1},
		{"the child from its switch", two, 0x500, 0x800, 2},
	} {
		known := all
		if tt.history == one {
			known = alone
		}
		got, behind, err := covering(known, tt.history, tt.from, tt.to)
		if behind != strings.HasPrefix(tt.name, "behind") {
			t.Errorf("%s: still to come: %v", tt.name, behind)
		}
		if (err != nil) != (tt.want < 0) || err == nil && len(got) != tt.want {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
	}
}
