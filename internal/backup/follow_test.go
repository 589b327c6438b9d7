package backup_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/internal/pgtest"
	"tidemark/internal/postgres"
)

// background runs a create that prints JSON, and returns what it says so far
// and how to wait for it.
func background(t *testing.T, args ...string) (said func() string, wait func() created) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "said"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(pgtest.Bin("dbbackup"), append([]string{"create", "--json"}, args...)...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said = func() string {
		text, err := os.ReadFile(log.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	return said, func() (c created) {
		t.Helper()
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%v: %s", err, said())
		}
		if err := json.Unmarshal([]byte(out.String()), &c); err != nil {
			t.Fatal(err)
		}
		return c
	}
}

// TestStandbyFollowed: a standby that has gone over to another timeline and has
// no restart point there waits for the new primary's checkpoint, says what makes
// it come, and is backed up then.
func TestStandbyFollowed(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		dir := newRepo(t)
		slow := []string{"checkpoint_timeout = 1h", "checkpoint_completion_target = 1", "wal_retrieve_retry_interval = 100ms"}
		n := pgtest.New(t, pgtest.Options{Major: major, Checksums: true})
		next := n.Standby(pgtest.StandbyOptions{Config: slow})
		next.WaitFor(n)
		s := next.Standby(pgtest.StandbyOptions{Config: slow})
		n.Exec("CREATE TABLE t AS SELECT g AS id, repeat('x', 500) AS t FROM generate_series(1, 20000) g") // dirty buffers: the checkpoint takes minutes
		s.WaitFor(n)
		n.StopMode(postgres.StopImmediate)
		next.Promote()
		next.Exec("UPDATE t SET t = 'followed' WHERE id % 100 = 0")
		s.WaitFor(next)
		r := pgtest.Run(t, "dbbackup", "create", "--repo", dir, "-d", s.ConnInfo(), "--timeout", "2s")
		if r.Code != 1 || !strings.Contains(r.Stderr, "hint: run CHECKPOINT on the primary of timeline 2 (this standby receives from host="+next.SocketDir) {
			t.Errorf("without waiting long: %+v", r)
		}
		r = pgtest.Run(t, "dbbackup", "create", "--stream", "--repo", dir, "-d", s.ConnInfo())
		if r.Code != 1 || !strings.Contains(r.Stderr, "hint: run CHECKPOINT on the primary of timeline 2") {
			t.Errorf("streamed: %+v", r)
		}
		said, wait := background(t, "--repo", dir, "-d", s.ConnInfo())
		pgtest.Wait(t, func() bool {
			return strings.Contains(said(), "the standby waits for the first checkpoint of the primary of timeline 2")
		})
		next.Exec("CHECKPOINT") // as it says
		c := wait()
		if c.Source.Role != "standby" || c.Start.Timeline != 2 {
			t.Errorf("%+v\n%s", c, said())
		}
		sameContents(t, recovered(t, dir, c.ID, "followed").Digest(), next.Digest())
	})
}

// TestPlainPromoted: a standby that is promoted while the last WAL is copied
// from it loses the segment that the copy ends in. It is copied again as a
// primary, and what there was until then would not start.
func TestPlainPromoted(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		n := pgtest.New(t, pgtest.Options{Major: major, Checksums: true, WALSegMB: 1})
		n.Exec("CREATE TABLE t AS SELECT g AS id, repeat('x', 500) AS t FROM generate_series(1, 5000) g")
		s := n.Standby(pgtest.StandbyOptions{Config: []string{"archive_mode = on", "archive_command = 'false'"}})
		s.WaitFor(n)
		dir := filepath.Join(t.TempDir(), "plain")
		said, wait := background(t, "--rate", "20MB", "--plain", dir, "-d", s.ConnInfo())
		pgtest.Wait(t, func() bool { _, err := os.Stat(filepath.Join(dir, "base", "1")); return err == nil })
		n.Exec("UPDATE t SET t = repeat('y', 800)")
		n.Exec("SELECT pg_logical_emit_message(false, 'test', repeat('x', 1000000)) FROM generate_series(1, 12)")
		s.WaitFor(n)
		before := n.Digest()
		n.StopMode(postgres.StopImmediate)
		pgtest.Wait(t, func() bool { // the last WAL is on its way
			all, err := filepath.Glob(filepath.Join(dir, "pg_wal", "0*"))
			return err == nil && len(all) > 1
		})
		if _, err := os.Stat(filepath.Join(dir, "backup_manifest")); err == nil {
			t.Error("there is a manifest before the end")
		}
		s.Promote()
		s.Exec("INSERT INTO t VALUES (0)")
		wait()
		if !strings.Contains(said(), "promoted while it was copied: copying again") {
			t.Log("all was copied before the promotion")
			comesUp(t, major, dir, before)
			return
		}
		comesUp(t, major, dir, s.Digest())
	})
}
