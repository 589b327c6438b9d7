package blockcopy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/internal/exit"
	"tidemark/pkg/volume"
)

// mapSource is a source in memory. die, where positive, is how many pieces it
// still delivers before its connection breaks.
type mapSource struct {
	mu    sync.Mutex
	files map[string]string
	die   int
	bytes int64
}

func (s *mapSource) Name() string                              { return "map" }
func (s *mapSource) Close() error                              { return nil }
func (s *mapSource) List(ctx context.Context) ([]Entry, error) { return nil, errors.New("not used") }

func (s *mapSource) ReadFile(_ context.Context, name string) ([]byte, error) {
	if data, ok := s.files[name]; ok {
		return []byte(data), nil
	}
	return nil, fs.ErrNotExist
}

var errConnection = errors.New("the connection is broken")

func (s *mapSource) Fetch(_ context.Context, ranges []Range, deliver Deliver) error {
	for _, r := range ranges {
		s.mu.Lock()
		s.die--
		dead := s.die == 0
		s.mu.Unlock()
		data, ok := s.files[r.Path]
		if dead {
			return errConnection
		}
		if !ok {
			if err := deliver(r, nil, true); err != nil {
				return err
			}
			continue
		}
		from := min(r.Offset, int64(len(data)))
		to := min(r.End(), int64(len(data)))
		s.mu.Lock()
		s.bytes += to - from
		s.mu.Unlock()
		if err := deliver(r, []byte(data[from:to]), false); err != nil {
			return err
		}
	}
	return nil
}

const testTarget = "/data"

func fill(c string, blocks int) string { return strings.Repeat(c, blocks*8192) }

// testCase is a target, a source, a plan with one action of every kind and
// with the surprises that a live source has, and the expected result.
type testCase struct {
	fs     *memFS
	source *mapSource
	plan   *Plan
	before map[string]string
	want   map[string]string
}

func newTestCase() *testCase {
	m := newMemFS()
	old := map[string]string{
		"global/pg_control": "old control", "PG_VERSION": "15", "base/5/100": fill("a", 20), "base/5/101": fill("b", 4),
		"base/5/102": fill("c", 9), "base/5/103": fill("d", 2), "base/9/1": "x", "base/9/2": "y", "pg_xact/0000": fill("t", 3),
		"base/5/104": fill("e", 1), "base/5/105": fill("f", 6), "postgresql.conf": "mine",
	}
	for name, data := range old {
		m.put(testTarget+"/"+name, data)
	}
	m.put("/ts/keep", "")
	_, _, dir, _ := m.find(testTarget, true)
	tblspc := newDir()
	dir.children["pg_tblspc"], dir.durable["pg_tblspc"] = tblspc, tblspc
	src := &mapSource{files: map[string]string{
		"base/5/100": fill("A", 20), "base/5/101": fill("B", 12), "base/5/102": fill("C", 9), "base/5/200": fill("N", 11),
		"base/5/105": fill("F", 2), "pg_xact/0000": fill("T", 1), "base/7/1": fill("Z", 5), "empty": "",
		"pg_tblspc/77/v/5/300": fill("S", 3), "pg_wal/late": fill("W", 4),
	}}
	plan := &Plan{Operation: "rewind", Command: "dbrewind ...", Source: "map", TaskBytes: 5 * 8192, Actions: []Action{
		{Kind: CreateDir, Path: "base/7"},
		{Kind: CreateDir, Path: "pg_wal"},
		{Kind: CreateLink, Path: "pg_tblspc/77", LinkTarget: "/ts/new"},
		{Kind: CreateDir, Path: "pg_tblspc/77/v"},
		{Kind: CreateDir, Path: "pg_tblspc/77/v/5"},
		{Kind: CopyBlocks, Path: "base/5/100", Spans: BlockSpans([]uint32{0, 1, 5, 19}, 8192)},
		{Kind: CopyBlocks, Path: "base/5/101", Spans: BlockSpans([]uint32{2}, 8192)},
		{Kind: CopyTail, Path: "base/5/101", From: 4 * 8192, Size: 12 * 8192},
		{Kind: Copy, Path: "base/5/105", Size: 6 * 8192},               // ends earlier meanwhile
		{Kind: CopyBlocks, Path: "base/5/104", Spans: []Span{{0, 10}}}, // gone meanwhile
		{Kind: Copy, Path: "base/5/106", Size: 100},                    // gone meanwhile, never here
		{Kind: Copy, Path: "base/5/200", Size: 11 * 8192},
		{Kind: Copy, Path: "base/7/1", Size: 5 * 8192},
		{Kind: Copy, Path: "empty"},
		{Kind: Copy, Path: "pg_xact/0000", Size: 8192}, // shorter than here
		{Kind: Copy, Path: "pg_tblspc/77/v/5/300", Size: 3 * 8192},
		{Kind: Truncate, Path: "base/5/103", Size: 8192},
		{Kind: Remove, Path: "base/9"},
		{Kind: Remove, Path: "base/9/1"},
		{Kind: Remove, Path: "base/9/2"},
		{Kind: Keep, Path: "postgresql.conf"},
	}}
	want := map[string]string{
		"global/pg_control": "new control", "PG_VERSION": "15", "postgresql.conf": "mine", "backup_label": "valid",
		"base/5/100": fill("A", 2) + fill("a", 3) + fill("A", 1) + fill("a", 13) + fill("A", 1),
		"base/5/101": fill("b", 2) + fill("B", 1) + fill("b", 1) + fill("B", 8),
		"base/5/102": fill("c", 9), "base/5/103": fill("d", 1), "base/5/105": fill("F", 2), "base/5/200": fill("N", 11),
		"base/7/1": fill("Z", 5), "empty": "", "pg_xact/0000": fill("T", 1), "standby.signal": "",
		"pg_tblspc/77": "-> /ts/new", "pg_wal/late": fill("W", 4),
		"global": "/", "base": "/", "base/5": "/", "base/7": "/", "pg_xact": "/", "pg_tblspc": "/", "pg_wal": "/",
	}
	return &testCase{fs: m, source: src, plan: plan, before: m.tree(testTarget), want: want}
}

func (tc *testCase) options() Options {
	return Options{Target: testTarget, FS: tc.fs, Source: tc.source, Plan: tc.plan, Jobs: 1,
		Finish: func(context.Context) (Finish, error) {
			return Finish{Late: []Action{{Kind: Copy, Path: "pg_wal/late", Size: 4 * 8192, Required: true}},
				Files:   []FinalFile{{Path: "standby.signal"}},
				Control: []byte("new control"), Label: []byte("valid")}, nil
		}}
}

// whole says whether the target is the wanted result but for the journal.
func (tc *testCase) whole() string {
	got := tc.fs.tree(testTarget)
	maps.DeleteFunc(got, func(name, _ string) bool { return strings.HasPrefix(name, JournalDir) })
	if d := cmp.Diff(tc.want, got); d != "" {
		return d
	}
	ts := tc.fs.tree("/ts/new")
	return cmp.Diff(map[string]string{"v": "/", "v/5": "/", "v/5/300": fill("S", 3)}, ts)
}

// untouched says how the target differs from what it was before the run.
func (tc *testCase) untouched() string {
	got := tc.fs.tree(testTarget)
	maps.DeleteFunc(got, func(name, _ string) bool {
		return strings.HasPrefix(name, JournalDir) || strings.HasSuffix(name, volume.TempSuffix)
	})
	return cmp.Diff(tc.before, got)
}

func TestRun(t *testing.T) {
	for _, jobs := range []int{1, 3} {
		tc := newTestCase()
		o := tc.options()
		o.Jobs = jobs
		res, err := Run(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if d := tc.whole(); d != "" {
			t.Error(d)
		}
		if p, err := Pending(tc.fs, testTarget); p != nil || err != nil {
			t.Errorf("left over: %v %v", p, err)
		}
		if _, ok := tc.fs.tree(testTarget)[JournalDir]; ok {
			t.Error("the journal is left")
		}
		if res.FetchedBytes+res.LateBytes != tc.source.bytes {
			t.Errorf("%+v, but %d bytes read", res, tc.source.bytes)
		}
	}
}

// TestEveryOperation fails and crashes at operation n for n = 0, 1, 2, ...
// until the run succeeds. After each, the target is as it was, or tombstoned,
// or whole; and the resumed run ends with the same bytes.
func TestEveryOperation(t *testing.T) {
	modes := []struct {
		name        string
		crash, lose bool
		err         error
	}{
		{"crash, unsynced lost", true, true, nil},
		{"crash, unsynced kept", true, false, nil},
		{"i/o error", false, false, syscall.EIO},
		{"full disk", false, false, syscall.ENOSPC},
	}
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			for n := 0; ; n++ {
				tc := newTestCase()
				tc.fs.failAt, tc.fs.crash, tc.fs.err = n, mode.crash, mode.err
				_, err := Run(t.Context(), tc.options())
				if err == nil && tc.fs.ops <= n {
					t.Logf("%d operations", n)
					return
				}
				if mode.crash {
					tc.fs = tc.fs.afterCrash(mode.lose)
				}
				tc.fs.failAt = -1
				checkInterrupted(t, tc, err, fmt.Sprintf("operation %d", n))
				if t.Failed() {
					return
				}
			}
		})
	}
}

// checkInterrupted checks what an interrupted run left, and resumes it.
func checkInterrupted(t *testing.T, tc *testCase, runErr error, when string) {
	t.Helper()
	pending, err := Pending(tc.fs, testTarget)
	if err != nil {
		t.Errorf("%s: %v", when, err)
		return
	}
	state := State(0)
	done := int64(0)
	if pending != nil {
		state, done = pending.State, pending.DoneBytes
	}
	_, stone := volume.ReadTombstone(tc.fs, testTarget)
	complaint := ""
	switch {
	case state == Partial && stone != nil:
		complaint = "changed and not tombstoned"
	case state == Planned:
		complaint = tc.untouched()
	case state == Finished:
		complaint = tc.whole()
	case state == 0 && tc.untouched() != "" && tc.whole() != "":
		complaint = "neither as it was nor whole:\n" + tc.untouched()
	case state == Partial && exit.CodeOf(runErr) != exit.Partial && runErr != nil && !crashed(runErr):
		complaint = fmt.Sprintf("the error does not say that it is incomplete: %v", runErr)
	}
	if complaint != "" {
		t.Errorf("%s: %v, state %v: %s", when, runErr, state, complaint)
		return
	}
	o := tc.options()
	if pending != nil {
		o.Plan, o.Resume = nil, true
	}
	res, err := Run(context.Background(), o)
	if err != nil {
		t.Errorf("%s: resuming from %v: %v", when, state, err)
		return
	}
	if d := tc.whole(); d != "" {
		t.Errorf("%s: resumed from %v: %s", when, state, d)
	}
	if state == Partial && res.SkippedBytes != done {
		t.Errorf("%s: %d bytes were durable, %d skipped", when, done, res.SkippedBytes)
	}
	if _, ok := tc.fs.tree(testTarget)[JournalDir]; ok && err == nil && state != 0 {
		t.Errorf("%s: the journal is left", when)
	}
}

// crashed: nobody was left to tell.
func crashed(err error) bool { return errors.Is(err, errCrashed) }

// TestSourceDies breaks the connection at every piece, again and again until
// the run ends: no durable byte is fetched twice.
func TestSourceDies(t *testing.T) {
	for die := 1; die < 20; die++ {
		tc := newTestCase()
		tc.source.die = die
		_, err := Run(t.Context(), tc.options())
		if err == nil {
			continue
		}
		if !errors.Is(err, errConnection) || exit.CodeOf(err) != exit.Partial || exit.HintOf(err) == "" {
			t.Fatalf("die %d: %v, code %d, hint %q", die, err, exit.CodeOf(err), exit.HintOf(err))
		}
		checkInterrupted(t, tc, err, fmt.Sprintf("piece %d", die))
	}
}

func TestCancelled(t *testing.T) {
	tc := newTestCase()
	ctx, cancel := context.WithCancel(t.Context())
	o := tc.options()
	o.Finish = func(context.Context) (Finish, error) { cancel(); return Finish{}, context.Canceled }
	_, err := Run(ctx, o)
	if exit.CodeOf(err) != exit.Partial || !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	checkInterrupted(t, tc, err, "cancelled")
}

func TestRequiredMissing(t *testing.T) {
	tc := newTestCase()
	tc.plan.Actions = append(tc.plan.Actions, Action{Kind: Copy, Path: "pg_wal/needed", Size: 10, Required: true})
	_, err := Run(t.Context(), tc.options())
	if err == nil || !strings.Contains(err.Error(), "pg_wal/needed") {
		t.Fatal(err)
	}
}

func TestTombstoneRemovedByHand(t *testing.T) {
	tc := newTestCase()
	tc.source.die = 6
	if _, err := Run(t.Context(), tc.options()); err == nil {
		t.Fatal("did not die")
	}
	if err := tc.fs.Remove(testTarget + "/backup_label"); err != nil {
		t.Fatal(err)
	}
	if p, err := Pending(tc.fs, testTarget); err != nil || p.State != Partial {
		t.Fatal(p, err)
	}
	tc.fs.put(testTarget+"/global/pg_control", "a server has started")
	if _, err := Pending(tc.fs, testTarget); exit.CodeOf(err) != exit.Refused {
		t.Fatal(err)
	}
}

func TestNewRunRefusesPending(t *testing.T) {
	tc := newTestCase()
	tc.source.die = 6
	if _, err := Run(t.Context(), tc.options()); err == nil {
		t.Fatal("did not die")
	}
	if _, err := Run(t.Context(), tc.options()); exit.CodeOf(err) != exit.Refused {
		t.Fatal(err)
	}
	if err := Discard(tc.fs, testTarget); exit.CodeOf(err) != exit.Refused {
		t.Fatal(err)
	}
}

func TestJournalLostIsRefused(t *testing.T) {
	tc := newTestCase()
	tc.source.die = 6
	if _, err := Run(t.Context(), tc.options()); err == nil {
		t.Fatal("did not die")
	}
	if err := volume.RemoveAll(tc.fs, testTarget+"/"+JournalDir); err != nil {
		t.Fatal(err)
	}
	if _, err := Pending(tc.fs, testTarget); exit.CodeOf(err) != exit.Refused {
		t.Fatal(err)
	}
}

func TestPlanRefusesUnsafeNames(t *testing.T) {
	for _, name := range []string{"", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", JournalDir + "/plan.json", JournalDir, "a\x00"} {
		p, err := newPlan(&Plan{Actions: []Action{{Kind: Copy, Path: name, Size: 1}}})
		if err == nil {
			t.Errorf("%q: %+v", name, p)
		}
	}
	for _, name := range []string{"a b", "it's", `q"uote`, "base/5/1", "päth"} {
		if _, err := newPlan(&Plan{Actions: []Action{{Kind: Copy, Path: name, Size: 1}}}); err != nil {
			t.Error(err)
		}
	}
}

func TestFactsSurviveATornTail(t *testing.T) {
	line := func(text string) string { return lineSum(text) + " " + text + "\n" }
	log := line("begun") + line("task 0") + line("task 3 7=81920 2=gone") + line("task 4 7=4096")
	for cut := range len(log) + 1 {
		m := newMemFS()
		m.put(testTarget+"/"+JournalDir+"/log", log[:cut])
		f, good, err := readFacts(m, testTarget)
		if err != nil || int(good) > cut {
			t.Fatal(cut, good, err)
		}
		if whole := strings.LastIndexByte(log[:cut], '\n') + 1; int(good) != whole {
			t.Errorf("cut at %d: %d of %d bytes good", cut, good, whole)
		}
		if cut == len(log) && (f.short[7] != 4096 || !f.gone[2] || len(f.tasks) != 3 || !f.begun || f.finishing) {
			t.Errorf("%+v", f)
		}
	}
	if slices.Contains([]bool{new(facts).learn("task -1"), new(facts).learn("nonsense")}, true) {
		t.Error("foreign lines are taken in")
	}
}
