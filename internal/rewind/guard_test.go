package rewind

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// fileCopy is how a database is made by copying files.
func fileCopy(n *pgtest.Node, name, template string) string {
	sql := "CREATE DATABASE " + name + " TEMPLATE " + template
	if n.Major >= 15 {
		sql += " STRATEGY file_copy"
	}
	return sql
}

// newTemplated is a pair with a database that may be copied, changed by the
// target after the fork: the rewind copies these blocks.
func newTemplated(t *testing.T, major int) *pair {
	p := newPair(t, pgtest.Options{Major: major})
	p.old.Exec("CREATE DATABASE tmpl")
	p.old.ExecIn("tmpl", "CREATE TABLE y AS SELECT g AS i, 'before' AS v FROM generate_series(1, 5000) g")
	p.old.Exec("CHECKPOINT")
	p.new.WaitFor(p.old)
	p.new.Exec("CHECKPOINT") // replay begins behind tmpl's own making
	p.new.Promote()
	p.old.ExecIn("tmpl", "UPDATE y SET v = 'lost' WHERE i % 10 = 0")
	p.old.Stop()
	return p
}

// TestFileCopyOnSource: the source made a database by copying another one's
// files and changed those since. Replay copies the target's files, which the
// rewind has just brought up to date: rows would appear in the new database
// that were never there. Refused before anything is written.
func TestFileCopyOnSource(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		p := newTemplated(t, major)
		p.new.Exec(fileCopy(p.new, "made", "tmpl"))
		p.new.ExecIn("tmpl", "UPDATE y SET v = 'after'")
		execEach(p.new, "CHECKPOINT")
		p.refusedByGuard()
		if tool := pgRewind(p.old); tool != "" {
			p.pgRewindGoesWrong(tool)
		}
	})
}

// waitForRecord waits until the last record that says whether pages are logged
// in full says so.
func waitForRecord(t *testing.T, n *pgtest.Node, on bool) {
	t.Helper()
	ok := pgtest.Wait(t, func() bool {
		n.Exec("UPDATE t SET v = v WHERE i = 1") // nobody else would write that record to disk
		c, err := volume.ReadControl(n.Dir)
		if err != nil {
			return false
		}
		h, err := postgres.ReadHistory(volume.OS, filepath.Join(n.Dir, "pg_wal"), 2)
		if err != nil {
			t.Fatal(err)
		}
		m, _, err := wal.ScanMap(t.Context(), postgres.WALDir{Dir: filepath.Join(n.Dir, "pg_wal"), Size: c.XLogSegSize, History: h}, wal.ScanOptions{
			Options: wal.Options{Start: c.CheckPointCopy.Redo, SegmentSize: c.XLogSegSize, PageSize: c.XLogBlockSize, BlockSize: c.BlockSize, Major: c.Major()}})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range slices.Backward(m.Settings) {
			if s.FullPageWrites != nil {
				return s.FullPageWrites.On == on
			}
		}
		return false
	})
	if !ok {
		t.Fatal("the server does not log what full_page_writes is")
	}
}

// refusedByGuard wants the guard's refusal before anything is written; check
// foretells it.
func (p *pair) refusedByGuard() {
	t := p.t
	t.Helper()
	before := tree(t, p.old.Dir)
	_, err := Run(t.Context(), p.options())
	var u *unsafeReplay
	if !errors.As(err, &u) || exit.CodeOf(err) != exit.Refused || !strings.Contains(exit.HintOf(err), "--compare") {
		t.Fatalf("code %d: %v\n%s", exit.CodeOf(err), err, exit.HintOf(err))
	}
	sameTree(t, before, p.old.Dir)
	rep, err := Check(t.Context(), p.options())
	if err != nil || !strings.Contains(strings.Join(rep.Warnings, "\n"), "would be refused now") {
		t.Errorf("%v: %+v", err, rep)
	}
	sameTree(t, before, p.old.Dir)
}

// TestFullPageWritesOff: the source wrote without page images for a while. As
// long as it has not written out what it changed then, a rewind is refused
// before anything is written; a checkpoint there is all that is needed. Where
// it happens while blocks are copied, it is refused at the end and undone.
func TestFullPageWritesOff(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		p := newPair(t, pgtest.Options{Major: major})
		p.new.Exec("CHECKPOINT")
		p.diverge()
		p.old.Stop()
		offAndOn := func() {
			for _, v := range []string{"off", "on"} {
				p.new.Exec("ALTER SYSTEM SET full_page_writes = " + v)
				p.new.Reload()
				p.new.WaitSQL("SHOW full_page_writes", v)
				waitForRecord(t, p.new, v == "on")
				p.new.Exec("UPDATE t SET v = 'without images ' || i WHERE i % 3 = 0")
			}
		}
		before := tree(t, p.old.Dir)
		want := func(err error) {
			t.Helper()
			var u *unsafeReplay
			if !errors.As(err, &u) || exit.CodeOf(err) != exit.Refused || !strings.Contains(exit.HintOf(err), "CHECKPOINT") {
				t.Fatalf("code %d: %v\n%s", exit.CodeOf(err), err, exit.HintOf(err))
			}
		}
		offAndOn()
		_, err := Run(t.Context(), p.options())
		want(err)
		sameTree(t, before, p.old.Dir)

		p.new.Exec("CHECKPOINT")
		o, begun := p.options(), false
		o.Progress = atPhase(func(name string) {
			if name == "copying" && !begun {
				begun = true
				offAndOn()
				p.new.Exec("CHECKPOINT")
			}
		})
		_, err = Run(t.Context(), o)
		want(err)
		p.refusesToStart()
		if _, err := Undo(t.Context(), UndoOptions{Target: p.old.Dir}); err != nil {
			t.Fatal(err)
		}
		sameTree(t, before, p.old.Dir)
		mustRun(t, p.options())
		p.proveEqual(p.new)
	})
}

// pgRewindGoesWrong shows what the guard is for.
func (p *pair) pgRewindGoesWrong(tool string) {
	t := p.t
	t.Helper()
	dir := filepath.Join(p.old.TempDir("peer"), "data")
	copyCluster(t, p.old.Dir, dir)
	if out, err := exec.Command(tool, "-D", dir, "--source-server", p.new.ConnInfo(), "--no-sync").CombinedOutput(); err != nil {
		t.Logf("pg_rewind: %v\n%s", err, out)
		return
	}
	peer := pgtest.Attach(t, "peer", dir)
	peer.Follow(p.new)
	peer.AppendFile("standby.signal", "")
	peer.Start()
	peer.WaitFor(p.new)
	const count = "SELECT count(*) FROM y WHERE v = 'after'"
	t.Logf("rows that are newer than their database: %s at the source, %s after pg_rewind", p.new.SQLIn("made", count), peer.SQLIn("made", count))
}

// TestFileCopyOfTheUntouched: databases made by copying files that nobody
// changed since are what a rewind must live with.
func TestFileCopyOfTheUntouched(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		p := newTemplated(t, major)
		p.new.Exec(fileCopy(p.new, "one", "template0"))
		p.new.Exec(fileCopy(p.new, "two", "tmpl"))
		p.new.ExecIn("two", "UPDATE y SET v = 'two'")
		p.new.Exec(fileCopy(p.new, "three", "two"))
		p.new.ExecIn("two", "UPDATE y SET v = 'more'")
		p.new.ExecIn("two", "VACUUM y")
		if res := mustRun(t, p.options()); len(res.Warnings) > 0 {
			t.Errorf("%q", res.Warnings)
		}
		p.proveEqual(p.new)
	})
}

// TestMoveDatabaseOnSource: ALTER DATABASE SET TABLESPACE copies files and
// removes the old ones; replay would find nothing to copy.
func TestMoveDatabaseOnSource(t *testing.T) {
	p := newPair(t, pgtest.Options{Config: []string{"allow_in_place_tablespaces = on"}})
	p.old.Exec("CREATE DATABASE moved")
	p.old.ExecIn("moved", "CREATE TABLE y AS SELECT generate_series(1, 5000) AS i")
	execEach(p.old, "CREATE TABLESPACE sp LOCATION ''; CHECKPOINT")
	p.new.WaitFor(p.old)
	p.new.Promote()
	p.old.Exec("INSERT INTO grows VALUES (1)")
	p.old.Stop()
	p.new.Exec("ALTER DATABASE moved SET TABLESPACE sp")
	p.refusedByGuard()
}

// TestFileCopyWhileCopying: the database is made, and its template changed,
// after the plan was made.
func TestFileCopyWhileCopying(t *testing.T) {
	p := newTemplated(t, 0)
	before := tree(t, p.old.Dir)
	o := p.options()
	begun := false
	o.Progress = atPhase(func(name string) {
		if name == "copying" && !begun {
			begun = true
			p.new.Exec(fileCopy(p.new, "made", "tmpl"))
			p.new.ExecIn("tmpl", "UPDATE y SET v = 'after' WHERE i < 3000; CHECKPOINT")
		}
	})
	res, err := Run(t.Context(), o)
	var u *unsafeReplay
	if !errors.As(err, &u) {
		t.Fatalf("%v, %+v", err, res)
	}
	if _, err := Undo(t.Context(), UndoOptions{Target: p.old.Dir}); err != nil {
		t.Fatal(err)
	}
	sameTree(t, before, p.old.Dir)
}

// TestTablespaceElsewhere: the source's new tablespace is mapped to another
// place here; replay of CREATE TABLESPACE would lead it to the source's.
func TestTablespaceElsewhere(t *testing.T) {
	p := newPair(t, pgtest.Options{})
	p.new.Promote()
	p.old.Exec("INSERT INTO grows VALUES (1)")
	p.old.Stop()
	theirs, ours := p.new.TempDir("theirs"), p.old.TempDir("ours")
	p.new.Exec("CREATE TABLESPACE sp LOCATION '" + theirs + "'")
	p.new.Exec("CREATE TABLE far TABLESPACE sp AS SELECT 1 AS i")
	o := p.options()
	if _, err := Run(t.Context(), o); exit.CodeOf(err) != exit.Refused || !strings.Contains(exit.HintOf(err), "--tablespace-mapping") {
		t.Fatal(err)
	}
	o.TablespaceMap = map[string]string{theirs: ours}
	before := tree(t, p.old.Dir)
	_, err := Run(t.Context(), o)
	var u *unsafeReplay
	if !errors.As(err, &u) || !strings.Contains(err.Error(), theirs) {
		t.Fatal(err)
	}
	sameTree(t, before, p.old.Dir)
	if _, err := os.Stat(filepath.Join(theirs)); err != nil {
		t.Error(err)
	}
}

// atPhase is a progress.Reporter that is told of phases.
type atPhase func(name string)

func (f atPhase) Phase(name string, _ int64, _ progress.Unit) { f(name) }
func (atPhase) Grow(int64)                                    {}
func (atPhase) Add(int64)                                     {}
func (atPhase) Note(string, ...any)                           {}
