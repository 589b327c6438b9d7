package rewind

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"tidemark/internal/pgtest"
	"tidemark/pkg/timeline"
	"tidemark/pkg/wal"
)

// fakePlace answers by a function and counts its calls.
type fakePlace struct {
	name   string
	answer func(call int, file string) ([]byte, error)
	mu     sync.Mutex
	calls  map[string]int
}

func (f *fakePlace) String() string { return f.name }

func (f *fakePlace) fetch(_ context.Context, name, path string) error {
	f.mu.Lock()
	if f.calls == nil {
		f.calls = map[string]int{}
	}
	f.calls[name]++
	call := f.calls[name]
	f.mu.Unlock()
	data, err := f.answer(call, name)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

const testSystem = 42

// segment is a segment file with a right first header and nothing else.
func segment(name string, system uint64) []byte {
	f, _ := wal.ParseFileName(name)
	n, _ := f.Number(1 << 20)
	b := make([]byte, 1<<20)
	binary.LittleEndian.PutUint16(b, 0xD110)
	binary.LittleEndian.PutUint16(b[2:], 2)
	binary.LittleEndian.PutUint32(b[4:], uint32(f.Timeline))
	binary.LittleEndian.PutUint64(b[8:], uint64(n)<<20)
	binary.LittleEndian.PutUint64(b[24:], system)
	binary.LittleEndian.PutUint32(b[32:], 1<<20)
	binary.LittleEndian.PutUint32(b[36:], 8192)
	return b
}

func newTestSearch(t *testing.T, places ...place) (*walSearch, *[]string) {
	var warnings []string
	var mu sync.Mutex
	s := newSearch(t.Context(), testSystem, slog.New(slog.DiscardHandler), func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		warnings = append(warnings, fmt.Sprintf(format, args...))
	}, places...)
	t.Cleanup(s.close)
	return s, &warnings
}

func TestWALSearch(t *testing.T) {
	const name = "000000010000000000000003"
	has := func(_ int, file string) ([]byte, error) { return segment(file, testSystem), nil }
	lacks := func(int, string) ([]byte, error) { return nil, &absent{} }
	surely := func(int, string) ([]byte, error) { return nil, &absent{sure: true} }
	broken := func(int, string) ([]byte, error) { return nil, errors.New("no route to host") }
	first := func(n int, err error) func(int, string) ([]byte, error) {
		return func(call int, file string) ([]byte, error) {
			if call <= n {
				return nil, err
			}
			return has(call, file)
		}
	}
	for what, tc := range map[string]struct {
		a, b    func(int, string) ([]byte, error)
		where   string
		fault   bool
		warns   int
		calls   int // of a
		message string
	}{
		"the first has it":               {a: has, b: broken, where: "A", calls: 1},
		"the second has it":              {a: lacks, b: has, where: "B", calls: 1},
		"the first is broken":            {a: broken, b: has, where: "B", warns: 1, calls: 1},
		"broken for a moment":            {a: first(2, errors.New("busy")), b: surely, where: "A", calls: 3},
		"said no, and had it":            {a: first(1, &absent{}), b: surely, where: "A", calls: 2},
		"nobody has it":                  {a: lacks, b: surely, calls: 2, message: "A (not there)|B (not there)"},
		"one cannot tell, the other not": {a: broken, b: surely, fault: true, calls: 3},
		"it gives another cluster's":     {a: func(_ int, f string) ([]byte, error) { return segment(f, 7), nil }, b: has, where: "B", warns: 1, calls: 1},
		"it gives another segment":       {a: func(int, string) ([]byte, error) { return segment("000000010000000000000004", testSystem), nil }, b: has, where: "B", warns: 1, calls: 1},
		"it gives half a segment":        {a: func(_ int, f string) ([]byte, error) { return segment(f, testSystem)[:5000], nil }, b: has, where: "B", warns: 1, calls: 1},
		"both are sure":                  {a: surely, b: surely, calls: 1, message: "A (not there)|B (not there)"},
	} {
		t.Run(what, func(t *testing.T) {
			a, b := &fakePlace{name: "A", answer: tc.a}, &fakePlace{name: "B", answer: tc.b}
			s, warnings := newTestSearch(t, a, b)
			l, err := s.find(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			if l.where != tc.where || (l.path != "") != (tc.where != "") || (l.fault != nil) != tc.fault || a.calls[name] != tc.calls || len(*warnings) != tc.warns {
				t.Errorf("%+v, A was asked %d times, warnings %q", l, a.calls[name], *warnings)
			}
			if tc.message != "" && strings.Join(l.asked, "|") != tc.message {
				t.Errorf("%q", l.asked)
			}
			again, err := s.find(t.Context(), name)
			if err != nil || again != l {
				t.Error("it was looked for twice", err)
			}
			if l.path != "" {
				if err := errors.Join(s.served(l, 1<<19, 1<<20), s.served(l, 1<<19, 1<<20)); err != nil {
					t.Error(err)
				}
				if _, err := os.Stat(l.path); !errors.Is(err, os.ErrNotExist) {
					t.Error("it still takes space", err)
				}
			}
		})
	}
}

// TestSearchedTogether: several readers share a fetched file, and the one that
// is through with the last of it does not take it away from one who comes.
func TestSearchedTogether(t *testing.T) {
	const name, size, parts, rounds = "000000010000000000000003", 1 << 20, 4, 200
	a := &fakePlace{name: "A", answer: func(_ int, file string) ([]byte, error) { return segment(file, testSystem), nil }}
	s, _ := newTestSearch(t, a)
	var readers sync.WaitGroup
	for range parts {
		readers.Go(func() {
			for range rounds {
				f, l, err := s.open(t.Context(), name)
				if err != nil || f == nil {
					t.Errorf("%+v, %v", l, err)
					return
				}
				f.Close()
				if err := s.served(l, size/parts, size); err != nil {
					t.Error(err)
				}
			}
		})
	}
	readers.Wait()
	if calls := a.calls[name]; calls < rounds/2 || calls > rounds+1 {
		t.Errorf("fetched %d times, read whole %d times", calls, rounds)
	}
}

// TestPrefetch: what a scan will need is fetched several at once, what a walk
// back will hardly need is not, and what is in pg_wal is not asked for.
func TestPrefetch(t *testing.T) {
	const size = wal.SegmentSize(1 << 20)
	began, gate := make(chan string, 100), make(chan struct{})
	a := &fakePlace{name: "A", answer: func(_ int, file string) ([]byte, error) {
		began <- file
		<-gate
		return segment(file, testSystem), nil
	}}
	s, _ := newTestSearch(t, a)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "pg_wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	here := wal.SegmentName(1, 13, size)
	if err := os.WriteFile(filepath.Join(dir, "pg_wal", here), segment(here, testSystem), 0o600); err != nil {
		t.Fatal(err)
	}
	w := newTargetWAL(dir, timeline.Root(1), size, s)
	open := func(n wal.SegmentNumber) {
		seg, err := w.OpenSegment(t.Context(), n)
		if err != nil {
			t.Error(err)
			return
		}
		seg.Close()
	}
	w.readingOn(10, 15)
	done := make(chan struct{})
	go func() { open(10); close(done) }()
	for range 5 { // 10, 11, 12, 14, 15, all before one is there
		<-began
	}
	close(gate)
	<-done
	for n := wal.SegmentNumber(11); n <= 15; n++ {
		open(n)
	}
	if names := a.names(); len(names) != 5 || slices.Contains(names, here) {
		t.Errorf("asked for %q", names)
	}
	w.readingBack(9)
	open(9)
	// 9, and beside it 8, which nobody waits for.
	if !pgtest.Wait(t, func() bool { return len(a.names()) == 7 }) {
		t.Errorf("asked for %q", a.names())
	}
	open(8)
	open(7)
	if names := a.names(); len(names) < 8 || len(names) > 12 {
		t.Errorf("asked for %q", names)
	}
	if want := "A"; w.found[10] != want || w.found[13] != inTarget {
		t.Errorf("%v", w.found)
	}
}

func (f *fakePlace) names() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for name := range f.calls {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// TestUnequivocal: which names may be searched for in an archive that both
// sides write to.
func TestUnequivocal(t *testing.T) {
	const size = wal.SegmentSize(1 << 20)
	promoted := []timeline.Span{{Timeline: 1, Begin: 0, End: 5<<20 + 100}, {Timeline: 2, Begin: 5<<20 + 100}}
	same := []timeline.Span{{Timeline: 1, Begin: 0}}
	for _, tc := range []struct {
		other []timeline.Span
		n     wal.SegmentNumber
		tli   wal.TimelineID
		want  bool
	}{
		{promoted, 4, 1, true}, {promoted, 5, 1, true}, {promoted, 6, 1, true}, {promoted, 6, 2, false}, {promoted, 6, 3, true},
		{same, 4, 1, true}, {same, 5, 1, false}, {same, 6, 1, false},
	} {
		if got := unequivocal(tc.other, size, 5, tc.n, wal.SegmentName(tc.tli, tc.n, size)); got != tc.want {
			t.Errorf("%+v: %t", tc, got)
		}
	}
}
