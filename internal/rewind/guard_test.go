package rewind

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/internal/progress"
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
// that were never there. Refused, and taken back.
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

// refusedByGuard wants the guard's refusal, a target that does not start, and
// an undo that brings it back.
func (p *pair) refusedByGuard() {
	t := p.t
	t.Helper()
	before := tree(t, p.old.Dir)
	_, err := Run(t.Context(), p.options())
	var u *unsafeReplay
	if !errors.As(err, &u) || exit.CodeOf(err) != exit.Refused || !strings.Contains(exit.HintOf(err), "--compare") {
		t.Fatalf("code %d: %v\n%s", exit.CodeOf(err), err, exit.HintOf(err))
	}
	p.refusesToStart()
	if _, err := Undo(t.Context(), UndoOptions{Target: p.old.Dir}); err != nil {
		t.Fatal(err)
	}
	sameTree(t, before, p.old.Dir)
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
	_, err := Run(t.Context(), o)
	var u *unsafeReplay
	if !errors.As(err, &u) || !strings.Contains(err.Error(), theirs) {
		t.Fatal(err)
	}
	if _, err := Undo(t.Context(), UndoOptions{Target: p.old.Dir}); err != nil {
		t.Fatal(err)
	}
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
