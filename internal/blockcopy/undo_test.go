package blockcopy

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/internal/exit"
	"tidemark/pkg/volume"
	"tidemark/pkg/volume/faultfs"
)

// twoDisks is a file system whose /ts is another disk: nothing can be renamed
// between the two.
type twoDisks struct{ volume.FS }

func (d twoDisks) Rename(oldname, newname string) error {
	if strings.HasPrefix(d.real(oldname), "/ts/") != strings.HasPrefix(d.real(newname), "/ts/") {
		return &os.LinkError{Op: "rename", Old: oldname, New: newname, Err: syscall.EXDEV}
	}
	return d.FS.Rename(oldname, newname)
}

func (d twoDisks) real(name string) string {
	for link, target := range map[string]string{"/data/pg_tblspc/66": "/ts/old", "/data/pg_tblspc/65": "/ts/leaves"} {
		if rest, ok := strings.CutPrefix(name, link+"/"); ok {
			return target + "/" + rest
		}
	}
	return name
}

// undoCase is a testCase on a file system with modes and tablespaces, with
// files of every kind that a run overwrites, shortens, removes or replaces.
type undoCase struct {
	*testCase
	mem    *faultfs.Mem
	before map[string]string
}

func newUndoCase(t *testing.T) *undoCase {
	t.Helper()
	c := &undoCase{testCase: newTestCase(), mem: faultfs.NewMem()}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	put := func(name, data string, mode fs.FileMode) {
		t.Helper()
		_, err := volume.MkdirAll(c.mem, filepath.Dir(name), 0o750)
		must(err)
		must(volume.WriteFile(c.mem, name, []byte(data), mode))
	}
	for name, data := range c.testCase.before {
		if data == "/" {
			_, err := volume.MkdirAll(c.mem, testTarget+"/"+name, 0o750)
			must(err)
			continue
		}
		put(testTarget+"/"+name, data, 0o640)
	}
	put("/ts/keep", "", 0o600)
	put("/ts/old/v/5/400", fill("o", 3), 0o600)
	put("/ts/old/v/5/401", fill("p", 2), 0o600)
	put("/ts/leaves/v/6/500", fill("q", 2), 0o600)
	must(c.mem.Symlink("/ts/old", testTarget+"/pg_tblspc/66"))
	must(c.mem.Symlink("/ts/leaves", testTarget+"/pg_tblspc/65"))
	put(testTarget+"/backup_label", "START WAL LOCATION: of an earlier restore", 0o640)
	put(testTarget+"/tablespace_map", "66 /ts/old", 0o600)
	put(testTarget+"/postgresql.auto.conf", "port = 1", 0o600)
	put(testTarget+"/pg_wal/late", "mine", 0o600)
	put(testTarget+"/pg_wal/archive_status/a.done", "", 0o600)
	put(testTarget+"/tidemark/receiving.json", "{}", 0o600)
	must(c.mem.Chmod(testTarget+"/base/9", 0o700))
	c.plan.Actions = slices.DeleteFunc(c.plan.Actions, func(a Action) bool { return a.Path == "pg_wal" })
	c.plan.Actions = append(c.plan.Actions,
		Action{Kind: CopyBlocks, Path: "pg_tblspc/66/v/5/400", Spans: []Span{{8192, 8192}}},
		Action{Kind: Remove, Path: "pg_tblspc/66/v/5/401"},
		Action{Kind: Remove, Path: "pg_tblspc/65"},
		Action{Kind: Remove, Path: "pg_tblspc/65/v"},
		Action{Kind: Remove, Path: "pg_tblspc/65/v/6"},
		Action{Kind: Remove, Path: "pg_tblspc/65/v/6/500"},
		Action{Kind: Remove, Path: "pg_wal/archive_status/a.done"},
	)
	c.source.files["pg_tblspc/66/v/5/400"] = fill("O", 3)
	syncTree(t, c.mem, "/")
	c.before = c.tree(t, c.mem)
	return c
}

// syncTree makes everything durable.
func syncTree(t *testing.T, m *faultfs.Mem, dir string) {
	t.Helper()
	entries, err := m.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		switch {
		case e.IsDir():
			syncTree(t, m, name)
		case e.Type().IsRegular():
			err = volume.SyncFile(m, name)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := m.SyncDir(dir); err != nil {
		t.Fatal(err)
	}
}

// tree is everything below the data directory and in the tablespaces: modes,
// contents, links.
func (c *undoCase) tree(t *testing.T, m *faultfs.Mem) map[string]string {
	t.Helper()
	out := map[string]string{}
	var walk func(dir string)
	walk = func(dir string) {
		entries, err := m.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			name := filepath.Join(dir, e.Name())
			fi, err := m.Lstat(name)
			if err != nil {
				t.Fatal(err)
			}
			out[name] = fi.Mode().String()
			switch {
			case fi.IsDir():
				walk(name)
			case fi.Mode().IsRegular():
				data, err := volume.ReadFile(m, name, 0)
				if err != nil {
					t.Fatal(err)
				}
				out[name] += " " + string(data)
			default:
				target, _ := m.Readlink(name)
				out[name] += " " + target
			}
		}
	}
	walk("/")
	return out
}

func (c *undoCase) run(fsys volume.FS, resume bool) (Result, error) {
	o := c.options()
	o.FS, o.Undo, o.UndoFiles, o.UndoCommand = twoDisks{fsys}, true, []string{"postgresql.auto.conf", "standby.signal"}, "dbrewind undo -D /data"
	if o.Resume = resume; resume {
		o.Plan = nil
	}
	o.Finish = func(context.Context) (Finish, error) {
		return Finish{Late: []Action{{Kind: Copy, Path: "pg_wal/late", Size: 4 * 8192, Required: true}},
			Files: []FinalFile{{Path: "standby.signal"}, {Path: "postgresql.auto.conf", Data: []byte("port = 1\nprimary_conninfo = x")},
				{Path: "pg_wal/archive_status/a.done"}, {Path: "pg_xact/0000", Data: []byte("whole")}},
			Control: []byte("new control"), Label: []byte("valid")}, nil
	}
	return Run(context.Background(), o)
}

func (c *undoCase) undo(fsys volume.FS) (UndoResult, error) {
	return Undo(context.Background(), UndoOptions{Target: testTarget, FS: twoDisks{fsys}, Command: "dbrewind undo -D /data", Discard: "dbrewind undo --discard -D /data"})
}

// checkBefore complains where the disk is not what it was before the run.
func (c *undoCase) checkBefore(t *testing.T, m *faultfs.Mem, when string) {
	t.Helper()
	if d := cmp.Diff(c.before, c.tree(t, m)); d != "" {
		t.Fatalf("%s: not as before:\n%s", when, d)
	}
}

func TestUndo(t *testing.T) {
	for _, jobs := range []int{1, 3} {
		c := newUndoCase(t)
		res, err := c.run(c.mem, false)
		if err != nil || res.UndoBytes == 0 {
			t.Fatal(err, res)
		}
		if p, err := Pending(c.mem, testTarget); p != nil || err != nil {
			t.Errorf("a finished run is in the way: %v %v", p, err)
		}
		if k, err := Undoable(c.mem, testTarget); err != nil || k == nil || k.Started != "" {
			t.Errorf("%+v %v", k, err)
		}
		// What an operator sets up before the first start.
		if err := volume.WriteFile(c.mem, testTarget+"/postgresql.auto.conf", []byte("by hand"), 0o644); err != nil {
			t.Fatal(err)
		}
		u, err := c.undo(c.mem)
		if err != nil || !u.Finished || u.Bytes == 0 || u.Renamed != 6 || len(u.Notes) > 0 {
			t.Fatalf("%+v %v", u, err)
		}
		c.checkBefore(t, c.mem, fmt.Sprintf("%d jobs", jobs))
		if _, err := c.undo(c.mem); exit.CodeOf(err) != exit.Refused {
			t.Error(err)
		}
	}
}

// crashes are what a machine finds at its next start: with what was not
// synced lost, or kept.
var crashes = map[string]func(*faultfs.Mem) *faultfs.Mem{
	"unsynced lost": func(m *faultfs.Mem) *faultfs.Mem { return m.Crash(nil) },
	"unsynced kept": func(m *faultfs.Mem) *faultfs.Mem { return m },
}

// TestUndoAfterEveryOperation stops the run at operation n for n = 0, 1, 2,
// ..., by a crash or by an error, and undoes it.
func TestUndoAfterEveryOperation(t *testing.T) {
	for name, crash := range crashes {
		t.Run(name, func(t *testing.T) {
			for n := 0; ; n++ {
				c := newUndoCase(t)
				f := faultfs.Wrap(c.mem, faultfs.StopAt(n))
				_, runErr := c.run(f, false)
				c.undoInterrupted(t, crash(c.mem), fmt.Sprintf("operation %d (%v)", n, runErr))
				if f.Count() <= n {
					t.Logf("%d operations", n)
					return
				}
			}
		})
	}
	t.Run("i/o error", func(t *testing.T) {
		for n := 0; ; n++ {
			c := newUndoCase(t)
			f := faultfs.Wrap(c.mem, faultfs.FailAt(n, syscall.EIO))
			_, runErr := c.run(f, false)
			c.undoInterrupted(t, c.mem, fmt.Sprintf("operation %d (%v)", n, runErr))
			if f.Count() <= n {
				return
			}
		}
	})
}

// undoInterrupted undoes whatever the run left: nothing, a journal, a half.
func (c *undoCase) undoInterrupted(t *testing.T, m *faultfs.Mem, when string) {
	t.Helper()
	if _, err := readPlan(m, testTarget); err != nil {
		c.checkWithoutJournal(t, m, when)
		return
	}
	if _, err := c.undo(m); err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	c.checkBefore(t, m, when)
}

// checkWithoutJournal is for what has no plan yet or no more: garbage may be
// left in the journal directory, which the next run clears away.
func (c *undoCase) checkWithoutJournal(t *testing.T, m *faultfs.Mem, when string) {
	t.Helper()
	if err := removeJournal(m, testTarget); err != nil {
		t.Fatal(err)
	}
	c.checkBefore(t, m, when)
}

// TestUndoAfterEveryResume stops the run at operation n, resumes it, stops that
// too, and undoes it: what the first run saved is not saved again.
func TestUndoAfterEveryResume(t *testing.T) {
	for name, crash := range crashes {
		t.Run(name, func(t *testing.T) {
			count := 1 << 30
			for n := 7; n < count; n += 23 {
				for extra := 5; ; extra += 37 {
					c := newUndoCase(t)
					if _, err := c.run(faultfs.Wrap(c.mem, faultfs.StopAt(n)), false); err == nil {
						return
					}
					c.mem = crash(c.mem)
					if kept, _ := Undoable(c.mem, testTarget); kept != nil {
						break // it had come to its end: a new run gives the undo up
					}
					p, err := Pending(c.mem, testTarget)
					if err != nil {
						t.Fatal(err)
					}
					f := faultfs.Wrap(c.mem, faultfs.StopAt(extra))
					_, runErr := c.run(f, p != nil)
					c.undoInterrupted(t, crash(c.mem), fmt.Sprintf("operations %d and %d (%v)", n, extra, runErr))
					if runErr == nil {
						break
					}
				}
			}
		})
	}
}

// TestEveryUndoOperation stops the undo of a finished and of an interrupted
// run at operation m for m = 0, 1, 2, ... and undoes again. In between no
// server can start and the run cannot be resumed.
func TestEveryUndoOperation(t *testing.T) {
	for _, stop := range []int{1 << 30, 75} {
		for name, crash := range crashes {
			t.Run(fmt.Sprintf("run stopped at %d, %s", stop, name), func(t *testing.T) {
				for n := 0; ; n++ {
					c := newUndoCase(t)
					if _, err := c.run(faultfs.Wrap(c.mem, faultfs.StopAt(stop)), false); (err == nil) != (stop == 1<<30) {
						t.Fatal(err)
					}
					f := faultfs.Wrap(c.mem, faultfs.StopAt(n))
					_, undoErr := c.undo(f)
					m := crash(c.mem)
					when := fmt.Sprintf("operation %d (%v)", n, undoErr)
					c.checkHalfUndone(t, m, when)
					c.undoInterrupted(t, m, when)
					if f.Count() <= n {
						t.Logf("%d operations", n)
						return
					}
				}
			})
		}
	}
}

func (c *undoCase) checkHalfUndone(t *testing.T, m *faultfs.Mem, when string) {
	t.Helper()
	p, err := Pending(m, testTarget)
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	if _, err := volume.ReadTombstone(m, testTarget); (err == nil) != (p != nil && p.State == Partial) {
		t.Fatalf("%s: tombstone %v, %+v", when, err, p)
	}
	if p == nil || !p.Undoing {
		return
	}
	if p.Plan.Command != "dbrewind undo -D /data" {
		t.Fatalf("%s: to go on with: %s", when, p.Plan.Command)
	}
	if _, err := c.run(m, true); exit.CodeOf(err) != exit.Refused {
		t.Fatalf("%s: a run that is being undone was resumed: %v", when, err)
	}
}

// TestUndoFails lets single operations of the undo fail.
func TestUndoFails(t *testing.T) {
	for n := 0; ; n++ {
		c := newUndoCase(t)
		if _, err := c.run(c.mem, false); err != nil {
			t.Fatal(err)
		}
		f := faultfs.Wrap(c.mem, faultfs.FailAt(n, syscall.ENOSPC))
		_, err := c.undo(f)
		if _, stone := volume.ReadTombstone(c.mem, testTarget); stone == nil && (exit.CodeOf(err) != exit.Partial || exit.HintOf(err) == "") {
			t.Fatalf("operation %d: half undone, and says: %v", n, err)
		}
		c.undoInterrupted(t, c.mem, fmt.Sprintf("operation %d (%v)", n, err))
		if f.Count() <= n {
			return
		}
	}
}

func TestUndoRefusesAfterAStart(t *testing.T) {
	for name, start := range map[string]func(m *faultfs.Mem) error{
		"pg_control has changed": func(m *faultfs.Mem) error {
			return volume.WriteFile(m, testTarget+"/global/pg_control", []byte("in recovery"), 0o600)
		},
		"backup_label is gone": func(m *faultfs.Mem) error {
			return m.Rename(testTarget+"/backup_label", testTarget+"/backup_label.old")
		},
	} {
		c := newUndoCase(t)
		if _, err := c.run(c.mem, false); err != nil {
			t.Fatal(err)
		}
		if err := start(c.mem); err != nil {
			t.Fatal(err)
		}
		_, err := c.undo(c.mem)
		if exit.CodeOf(err) != exit.Refused || !strings.Contains(err.Error(), name) || !strings.Contains(exit.HintOf(err), "--discard") {
			t.Errorf("%s: %v, hint %s", name, err, exit.HintOf(err))
		}
		if err := GiveUp(c.mem, testTarget); err != nil {
			t.Fatal(err)
		}
		for path := range c.tree(t, c.mem) {
			if strings.Contains(path, "/tidemark") && !strings.HasSuffix(path, "/data/tidemark") && !strings.HasSuffix(path, "receiving.json") {
				t.Errorf("%s: %s is left", name, path)
			}
		}
	}
}

// TestGiveUpEveryOperation stops the removal of what is kept: afterwards it
// goes on, and an undo of the remains is refused.
func TestGiveUpEveryOperation(t *testing.T) {
	for n := 0; ; n++ {
		c := newUndoCase(t)
		if _, err := c.run(c.mem, false); err != nil {
			t.Fatal(err)
		}
		after := c.tree(t, c.mem)
		maps.DeleteFunc(after, func(path, _ string) bool { return strings.Contains(path, "/tidemark") })
		f := faultfs.Wrap(c.mem, faultfs.StopAt(n))
		if err := GiveUp(twoDisks{f}, testTarget); err == nil && f.Count() <= n {
			return
		}
		m := c.mem.Crash(nil)
		if facts, _, _ := readFacts(m, testTarget); facts.givenUp {
			if _, err := c.undo(m); exit.CodeOf(err) != exit.Refused {
				t.Fatalf("operation %d: undone with half of what it needs: %v", n, err)
			}
		}
		if err := GiveUp(m, testTarget); err != nil {
			t.Fatalf("operation %d: %v", n, err)
		}
		now := c.tree(t, m)
		maps.DeleteFunc(now, func(path, _ string) bool { return strings.HasPrefix(path, testTarget+"/tidemark") })
		if d := cmp.Diff(after, now); d != "" {
			t.Fatalf("operation %d: %s", n, d)
		}
	}
}

func TestWithoutUndo(t *testing.T) {
	c := newUndoCase(t)
	o := c.options()
	o.FS = faultfs.Wrap(twoDisks{c.mem}, faultfs.StopAt(60))
	if _, err := Run(t.Context(), o); err == nil {
		t.Fatal("not stopped")
	}
	if _, err := c.mem.Stat(undoDirOf(testTarget)); err == nil {
		t.Error("something is kept")
	}
	if _, err := c.undo(c.mem); exit.CodeOf(err) != exit.Refused || !strings.Contains(err.Error(), "keeps nothing") {
		t.Error(err)
	}
}

// TestANewRunDropsTheUndo: what a finished run keeps is no obstacle.
func TestANewRunDropsTheUndo(t *testing.T) {
	c := newUndoCase(t)
	if _, err := c.run(c.mem, false); err != nil {
		t.Fatal(err)
	}
	syncTree(t, c.mem, "/")
	c.before = c.tree(t, c.mem)
	maps.DeleteFunc(c.before, func(path, _ string) bool {
		return strings.Contains(path, "/tidemark") && path != "/data/tidemark" && !strings.HasSuffix(path, "receiving.json")
	})
	c.plan.Actions = slices.DeleteFunc(c.plan.Actions, func(a Action) bool { return strings.HasPrefix(a.Path, "pg_tblspc/65") })
	if _, err := c.run(c.mem, false); err != nil {
		t.Fatal(err)
	}
	if _, err := c.undo(c.mem); err != nil {
		t.Fatal(err)
	}
	c.checkBefore(t, c.mem, "the second of two runs undone")
}

func TestDamagedUndoLogIsNoticed(t *testing.T) {
	c := newUndoCase(t)
	if _, err := c.run(c.mem, false); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(undoDirOf(testTarget), "batch-0")
	data, err := volume.ReadFile(c.mem, name, 0)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := volume.WriteFile(c.mem, name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.undo(c.mem); exit.CodeOf(err) != exit.Partial || !strings.Contains(err.Error(), errUndoDamaged.Error()) {
		t.Error(err)
	}
}
