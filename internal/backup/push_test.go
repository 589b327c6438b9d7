package backup_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/internal/pgtest"
)

// pushFile runs the command as the server does: in the data directory.
func pushFile(t *testing.T, dir string, n *pgtest.Node, path string) pgtest.Result {
	t.Helper()
	return pgtest.Run(t, "/bin/sh", "-c", fmt.Sprintf("cd %s && %s push --repo %s -v %s", n.Dir, pgtest.Bin("dbbackup"), dir, path))
}

func TestPush(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		dir := newRepo(t)
		n := pgtest.New(t, pgtest.Options{Major: major, WALSegMB: 1})
		n.Exec("CREATE TABLE t AS SELECT generate_series(1, 20000) AS id")
		segment := n.SQL("SELECT pg_walfile_name(pg_current_wal_lsn())")
		n.SwitchWAL()
		path := "pg_wal/" + segment
		if r := pushFile(t, dir, n, path); r.Code != 0 || !strings.Contains(r.Stdout, "archived") {
			t.Fatalf("push: %+v", r)
		}
		if r := pushFile(t, dir, n, path); r.Code != 0 || !strings.Contains(r.Stdout, "already") {
			t.Errorf("push again: %+v", r)
		}
		good, err := os.ReadFile(filepath.Join(n.Dir, path))
		if err != nil {
			t.Fatal(err)
		}
		refused := func(what, name string, data []byte, want string) {
			t.Helper()
			scratch := filepath.Join(t.TempDir(), name)
			if err := os.WriteFile(scratch, data, 0o600); err != nil {
				t.Fatal(err)
			}
			r := pushFile(t, dir, n, scratch)
			if r.Code < 1 || r.Code > 125 || !strings.Contains(r.Stderr, want) || !strings.Contains(r.Stderr, "hint:") {
				t.Errorf("%s: %+v", what, r)
			}
		}
		flip := func(at int) []byte {
			b := bytes.Clone(good)
			b[at] ^= 1
			return b
		}
		refused("other content", segment, flip(2*8192+100), "other content")
		refused("truncated", segment, good[:len(good)-8192], "size of a segment")
		refused("flipped in the header", segment, flip(0), "header")
		refused("under another name", "0000000100000000000000EE", good, "begins at")
		refused("no WAL", "hello", good, "not the name")

		other := pgtest.New(t, pgtest.Options{Major: major, WALSegMB: 1, Fresh: true})
		foreign, err := os.ReadFile(filepath.Join(other.Dir, "pg_wal", other.SQL("SELECT pg_walfile_name(pg_current_wal_lsn())")))
		if err != nil {
			t.Fatal(err)
		}
		refused("of another cluster", segment, foreign, "system identifier")

		for what, r := range map[string]pgtest.Result{
			"no such file":   pushFile(t, dir, n, "pg_wal/0000000100000000000000FF"),
			"no repository":  pushFile(t, filepath.Join(dir, "nope"), n, path),
			"not in PGDATA":  pgtest.Run(t, "/bin/sh", "-c", "cd / && "+pgtest.Bin("dbbackup")+" push --repo "+dir+" "+filepath.Join(n.Dir, path)),
			"no file at all": pgtest.Run(t, "dbbackup", "push", "--repo", dir),
		} {
			if r.Code < 1 || r.Code > 125 || !strings.Contains(r.Stderr, "hint:") {
				t.Errorf("%s: %+v", what, r)
			}
		}
	})
}

// TestArchiver: the server archives everything that it has to, over a promotion.
func TestArchiver(t *testing.T) {
	dir := newRepo(t)
	n := pgtest.New(t, pgtest.Options{Config: archiving(dir)})
	s := n.Standby(pgtest.StandbyOptions{})
	n.Exec("CREATE TABLE t (id int)")
	n.SwitchWAL()
	s.WaitFor(n)
	archived := func(n *pgtest.Node) {
		t.Helper()
		n.WaitSQL("SELECT last_archived_wal IS NOT NULL AND (last_failed_time IS NULL OR last_failed_time < last_archived_time) FROM pg_stat_archiver", "t")
	}
	archived(n)
	n.Stop()
	s.Configure(archiving(dir)...)
	s.Restart()
	s.Promote()
	s.Exec("INSERT INTO t VALUES (1)")
	s.SwitchWAL()
	s.WaitSQL("SELECT last_archived_wal LIKE '00000002%' FROM pg_stat_archiver", "t")
	for _, want := range []string{"00000002.history"} {
		if _, err := os.Stat(filepath.Join(dir, s.SQL("SELECT system_identifier FROM pg_control_system()"), "wal", "00000002", want+".zst")); err != nil {
			t.Error(err)
		}
	}
	// A backup on the new timeline, and the history that it needs.
	c := create(t, dir, s)
	r := restore(t, dir, c.ID, s)
	if got := r.SQL("SELECT count(*) FROM t"); got != "1" {
		t.Errorf("%s rows", got)
	}
	list := pgtest.MustRun(t, "dbbackup", "list", "--repo", dir)
	if !strings.Contains(list, c.ID) || !strings.Contains(list, "present") {
		t.Errorf("list: %s", list)
	}
}

// TestClone: a clone that was started with its origin's settings cannot put
// its WAL in the place of the origin's.
func TestClone(t *testing.T) {
	dir := newRepo(t)
	n := pgtest.New(t, pgtest.Options{Config: archiving(dir)})
	n.Exec("CREATE TABLE t (id int)")
	n.Stop()
	copied := filepath.Join(t.TempDir(), "clone")
	if err := pgtest.CopyTree(n.Dir, copied); err != nil {
		t.Fatal(err)
	}
	n.Start()
	segment := n.SQL("SELECT pg_walfile_name(pg_current_wal_lsn())")
	n.Exec("INSERT INTO t VALUES (1)")
	n.SwitchWAL()
	n.WaitSQL("SELECT last_archived_wal >= '"+segment+"' FROM pg_stat_archiver", "t")
	c := pgtest.Attach(t, "clone", copied)
	c.Start()
	c.Exec("INSERT INTO t VALUES (2), (3)")
	c.SwitchWAL()
	c.WaitSQL("SELECT failed_count > 0 AND last_failed_wal = '"+segment+"' FROM pg_stat_archiver", "t")
	if !strings.Contains(c.Log(), "other content") {
		t.Error("the clone's log does not say why")
	}
	if r := pushFile(t, dir, n, "pg_wal/"+segment); r.Code != 0 || !strings.Contains(r.Stdout, "already") {
		t.Errorf("the archive does not hold the origin's segment: %+v", r)
	}
}
