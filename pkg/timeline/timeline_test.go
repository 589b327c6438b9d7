package timeline

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tidemark/pkg/wal"
)

// two is the file of timeline 3 as a server wrote it.
const two = "1\t0/3000148\tno recovery target specified\n\n2\t0/50001C0\tbefore 2026-11-21 10:00:00+00\n"

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []Entry
	}{
		{"server's own", two, []Entry{
			{1, 0x3000148, "no recovery target specified"}, {2, 0x50001C0, "before 2026-11-21 10:00:00+00"}}},
		{"empty", "", nil},
		{"comments and blank lines", "# a\n\n  # b\n \t1\t1/2\n", []Entry{{1, 1<<32 | 2, ""}}},
		{"no reason, no final line feed", "1 0/10", []Entry{{1, 0x10, ""}}},
		{"carriage returns", "1\t0/10\tx\r\n", []Entry{{1, 0x10, "x"}}},
		{"greatest location", "1\tFFFFFFFF/FFFFFFFF\tx\n", []Entry{{1, 1<<64 - 1, "x"}}},
	} {
		h, err := Parse(3, []byte(tc.text))
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if d := cmp.Diff(tc.want, h.Entries, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("%s: -want +got\n%s", tc.name, d)
		}
		if got := string(h.Format()); got != tc.text {
			t.Errorf("%s: written back as %q", tc.name, got)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no number":          "x\t0/10\n",
		"no switch point":    "1\n",
		"half a position":    "1\t0/\n",
		"no slash":           "1\t10\n",
		"number too large":   "4294967296\t0/10\n",
		"position too large": "1\t100000000/0\n",
		"not increasing":     "2\t0/10\tx\n1\t0/20\tx\n",
		"twice":              "1\t0/10\tx\n1\t0/20\tx\n",
		"not below the own":  "3\t0/10\tx\n",
		"above the own":      "1\t0/10\tx\n4\t0/20\tx\n",
	} {
		_, err := Parse(3, []byte(text))
		var bad *ParseError
		if !errors.As(err, &bad) || bad.Timeline != 3 || bad.Line == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestChild writes what a server writes when it is promoted twice.
func TestChild(t *testing.T) {
	h2, err := Root(1).Child(2, 0x3000148, "no recovery target specified")
	if err != nil {
		t.Fatal(err)
	}
	h3, err := h2.Child(3, 0x50001C0, "before 2026-11-21 10:00:00+00")
	if err != nil {
		t.Fatal(err)
	}
	if got := string(h3.Format()); got != two {
		t.Errorf("wrote %q", got)
	}
	if len(h2.Entries) != 1 {
		t.Errorf("the parent was changed: %v", h2.Entries)
	}
	if _, err := h3.Child(3, 1, ""); err == nil {
		t.Error("a timeline became its own child")
	}
	made := &History{Timeline: 3, Entries: h3.Entries}
	if got := string(made.Format()); got != two {
		t.Errorf("from the entries alone: %q", got)
	}
}

func history(t *testing.T, id ID, text string) *History {
	t.Helper()
	h, err := Parse(id, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestAncestry(t *testing.T) {
	h := history(t, 3, two)
	want := []Span{{1, 0, 0x3000148}, {2, 0x3000148, 0x50001C0}, {3, 0x50001C0, 0}}
	if d := cmp.Diff(want, h.Spans()); d != "" {
		t.Errorf("spans: -want +got\n%s", d)
	}
	for lsn, id := range map[wal.LSN]ID{0: 1, 0x3000147: 1, 0x3000148: 2, 0x50001BF: 2, 0x50001C0: 3, 1 << 60: 3} {
		if got := h.TimelineAt(lsn); got != id {
			t.Errorf("%s is on timeline %d, want %d", lsn, got, id)
		}
	}
	for _, tc := range []struct {
		id   ID
		lsn  wal.LSN
		want bool
	}{{1, 0x3000148, true}, {1, 0x3000149, false}, {2, 0x3000000, false}, {2, 0x4000000, true}, {4, 0, false}} {
		if got := h.Contains(tc.id, tc.lsn); got != tc.want {
			t.Errorf("Contains(%d, %s) = %v", tc.id, tc.lsn, got)
		}
	}
}

func TestDiverge(t *testing.T) {
	for _, tc := range []struct {
		name string
		a, b *History
		want Fork
	}{
		{"never", Root(1), Root(1), Fork{1, 0, 0}},
		{"parent and child", Root(1), history(t, 2, "1\t0/100\tx\n"), Fork{1, 0, 0x100}},
		{"two children", history(t, 2, "1\t0/100\tx\n"), history(t, 3, "1\t0/200\tx\n"), Fork{1, 0, 0x100}},
		{"same number, other begin", history(t, 2, "1\t0/100\tx\n"), history(t, 2, "1\t0/200\tx\n"), Fork{1, 0, 0x100}},
		{"same number and begin", history(t, 2, "1\t0/100\tx\n"), history(t, 2, "1\t0/100\ty\n"), Fork{2, 0x100, 0}},
		{"grandchild", history(t, 2, "1\t0/100\tx\n"), history(t, 3, "1\t0/100\tx\n2\t0/300\tx\n"), Fork{2, 0x100, 0x300}},
	} {
		for _, pair := range [][2]*History{{tc.a, tc.b}, {tc.b, tc.a}} {
			got, err := Diverge(pair[0], pair[1])
			if err != nil || got != tc.want {
				t.Errorf("%s: %+v, %v, want %+v", tc.name, got, err, tc.want)
			}
		}
	}
	if _, err := Diverge(Root(1), Root(2)); !errors.Is(err, ErrNoCommonTimeline) {
		t.Errorf("strangers: %v", err)
	}
}

func TestTree(t *testing.T) {
	tree, err := NewTree(Root(1), history(t, 3, two), history(t, 4, "1\t0/3000148\tx\n2\t0/4000000\ty\n"),
		history(t, 5, "1\t0/6000000\tz\n"))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, r := range tree.Rows() {
		lines = append(lines, r.Prefix()+r.Node.Timeline.String())
	}
	want := []string{"1", "├─ 2", "│  ├─ 4", "│  └─ 3", "└─ 5"}
	if d := cmp.Diff(want, lines); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if tree.Latest() != 5 || tree.Find(3).Parent().Timeline != 2 || tree.Find(9) != nil {
		t.Error("Latest, Find or Parent is wrong")
	}
	_, err = NewTree(history(t, 2, "1\t0/100\tx\n"), history(t, 2, "1\t0/200\tx\n"))
	var c *Conflict
	if !errors.As(err, &c) || c.Timeline != 2 {
		t.Errorf("two different timelines 2: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{two, "", "# c\n1\t0/10", "1 0/0x10", "4294967295\tFFFFFFFF/FFFFFFFF\t\x00\n", "1\n2/3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		h, err := Parse(1<<32-1, []byte(text))
		if err != nil {
			return
		}
		if string(h.Format()) != text {
			t.Fatalf("%q written back as %q", text, h.Format())
		}
		again, err := Parse(h.Timeline, (&History{Timeline: h.Timeline, Entries: h.Entries}).Format())
		if err != nil || len(again.Entries) != len(h.Entries) {
			t.Fatalf("%q: entries do not survive: %v", text, err)
		}
		for _, s := range h.Spans() {
			h.TimelineAt(s.Begin)
		}
		if fork, err := Diverge(h, h); err != nil || fork.LSN != 0 || fork.Timeline != h.Timeline {
			t.Fatalf("a history parts from itself: %+v, %v", fork, err)
		}
	})
}
