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

// recovered restores with the command, to the end of what there is, and starts
// a server on the result.
func recovered(t *testing.T, dir, id, name string) *pgtest.Node {
	t.Helper()
	target := filepath.Join(t.TempDir(), name)
	pgtest.MustRun(t, "dbrecover", "restore", "--repo", dir, "--backup", id, "-D", target, "--archive", "off", "--timeline", "current")
	r := pgtest.Attach(t, name, target)
	r.Start()
	r.WaitSQL("SELECT pg_is_in_recovery()", "f")
	return r
}

// segments are the files of the archive that a promise is made by.
func segments(t *testing.T, dir string) map[string]bool {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "*", "wal", "*", "*.zst"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, name := range all {
		out[strings.TrimSuffix(filepath.Base(name), ".zst")] = true
	}
	return out
}

// TestStandbyAlone: a standby whose primary is gone is backed up, with all that
// it has replayed. Nothing incomplete is in the archive under a name that somebody
// may need, so that both the primary and the promoted standby go on archiving.
func TestStandbyAlone(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		dir := newRepo(t)
		n := pgtest.New(t, pgtest.Options{Major: major, Checksums: true, Config: append(archiving(dir), "autovacuum = off")})
		n.Exec("CREATE TABLE t AS SELECT g AS id, repeat('x', 500) AS t FROM generate_series(1, 5000) g")
		s := n.Standby(pgtest.StandbyOptions{Config: append(archiving(dir), "hot_standby_feedback = on")})
		n.Exec("UPDATE t SET t = 'late' WHERE id % 7 = 0")
		n.Exec("CHECKPOINT")
		n.Exec("UPDATE t SET t = 'behind the checkpoint' WHERE id % 11 = 0")
		s.WaitFor(n)
		want := n.Digest()
		n.StopMode(postgres.StopImmediate)
		s.WaitSQL("SELECT count(*) FROM pg_stat_wal_receiver WHERE pid IS NOT NULL", "0")

		first := create(t, dir, s, "--timeout", "5s")
		second := create(t, dir, s, "--timeout", "5s")
		if first.Tail == "" || segments(t, dir)[first.Tail] || segments(t, dir)[first.Tail+".partial"] || first.Source.Role != "standby" {
			t.Errorf("%+v in %v", first, segments(t, dir))
		}
		if second.Type != "incremental" || second.Read >= first.Read {
			t.Errorf("%d bytes were read, at first %d", second.Read, first.Read)
		}
		if l := listing(t, dir); len(l.Backups) != 2 || len(l.Backups[0].WALMissing) != 0 || len(l.Backups[1].WALMissing) != 0 {
			t.Errorf("%+v", l)
		}
		pgtest.MustRun(t, "dbbackup", "verify", "--deep", "--repo", dir)
		for _, id := range []string{first.ID, second.ID} {
			sameContents(t, recovered(t, dir, id, "alone").Digest(), want)
		}
		other := newRepo(t)
		pgtest.MustRun(t, "dbbackup", "copy", "--repo", dir, "--to", other, second.ID)
		sameContents(t, recovered(t, other, second.ID, "copied").Digest(), want)
		plain := filepath.Join(t.TempDir(), "plain")
		pgtest.MustRun(t, "dbbackup", "create", "--plain", plain, "-d", s.ConnInfo())
		quiet := []byte("archive_mode = off\n") // it is a clone
		if err := os.WriteFile(filepath.Join(plain, postgres.AutoConfFile), quiet, 0o600); err != nil {
			t.Fatal(err)
		}
		comesUp(t, major, plain, want)

		// The primary is back: it archives the very segment, in full.
		n.Start()
		n.Exec("UPDATE t SET t = 'back' WHERE id = 1")
		n.SwitchWAL()
		pgtest.Wait(t, func() bool { return segments(t, dir)[first.Tail] })
		sameContents(t, recovered(t, dir, first.ID, "back").Digest(), n.Digest())
	})
}

// TestStandbyAlonePromoted: what a backup of a lonely standby holds is not in
// the way of what the standby archives when it is promoted after all.
func TestStandbyAlonePromoted(t *testing.T) {
	dir := newRepo(t)
	n := pgtest.New(t, pgtest.Options{Config: archiving(dir)})
	s := n.Standby(pgtest.StandbyOptions{Config: archiving(dir)})
	n.Exec("CREATE TABLE t AS SELECT generate_series(1, 5000) AS id")
	s.WaitFor(n)
	n.StopMode(postgres.StopImmediate)
	c := create(t, dir, s)
	s.Promote()
	s.Exec("INSERT INTO t VALUES (0)")
	s.SwitchWAL()
	s.WaitSQL("SELECT failed_count FROM pg_stat_archiver", "0")
	pgtest.Wait(t, func() bool { all := segments(t, dir); return all["00000002.history"] && all["00000002"+c.Tail[8:]] })
	target := filepath.Join(t.TempDir(), "latest")
	pgtest.MustRun(t, "dbrecover", "restore", "--repo", dir, "--backup", c.ID, "-D", target, "--archive", "off")
	r := pgtest.Attach(t, "latest", target)
	r.Start()
	r.WaitSQL("SELECT pg_is_in_recovery()", "f")
	sameContents(t, r.Digest(), s.Digest())
}

// TestStandbyPromotedMeanwhile: a standby that is promoted while it is copied
// is copied as a primary, in the same run.
func TestStandbyPromotedMeanwhile(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		dir := newRepo(t)
		n := pgtest.New(t, pgtest.Options{Major: major, Checksums: true, Config: archiving(dir)})
		n.Exec("CREATE TABLE t AS SELECT g AS id, repeat('x', 500) AS t FROM generate_series(1, 20000) g")
		s := n.Standby(pgtest.StandbyOptions{Config: archiving(dir)})
		s.WaitFor(n)
		n.StopMode(postgres.StopImmediate)
		cmd := exec.Command(pgtest.Bin("dbbackup"), "create", "--json", "--rate", "15MB", "--repo", dir, "-d", s.ConnInfo())
		var out, said strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pgtest.Wait(t, func() bool {
			all, err := filepath.Glob(filepath.Join(dir, "*", "backups", "*", "started"))
			return err == nil && len(all) == 1
		})
		s.Promote()
		s.Exec("UPDATE t SET t = 'promoted' WHERE id % 100 = 0")
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%v: %s", err, said.String())
		}
		var c created
		if err := json.Unmarshal([]byte(out.String()), &c); err != nil {
			t.Fatal(err)
		}
		if c.Source.Role != "primary" || c.Start.Timeline != 2 || !strings.Contains(said.String(), "promoted while it was copied") {
			t.Errorf("%+v\n%s", c, said.String())
		}
		sameContents(t, recovered(t, dir, c.ID, "promoted").Digest(), s.Digest())
	})
}

// TestStandbyOfArchive: a standby that knows no primary and replays an archive,
// which is not the repository.
func TestStandbyOfArchive(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		dir := newRepo(t)
		shelf := filepath.Join(t.TempDir(), "shelf")
		if err := os.Mkdir(shelf, 0o777); err != nil {
			t.Fatal(err)
		}
		n := pgtest.New(t, pgtest.Options{Major: major, Checksums: true, WALSegMB: 1,
			Config: []string{"archive_mode = on", "archive_command = 'cp %p " + shelf + "/%f'", "autovacuum = off"}})
		n.Exec("CREATE TABLE t AS SELECT g AS id, repeat('x', 500) AS t FROM generate_series(1, 5000) g")
		s := n.Standby(pgtest.StandbyOptions{Restricted: true, Config: []string{"wal_retrieve_retry_interval = 100ms", "restore_command = 'cp " + shelf + "/%f %p'"}})
		n.Exec("UPDATE t SET t = 'late' WHERE id % 7 = 0")
		n.Exec("CHECKPOINT")
		n.Exec("UPDATE t SET t = 'behind the checkpoint' WHERE id % 11 = 0")
		want, end := n.Digest(), n.InsertLSN()
		n.SwitchWAL()
		s.WaitSQL("SELECT pg_last_wal_replay_lsn() >= '"+end+"'", "t")
		n.Stop()
		c := create(t, dir, s)
		if c.Source.Role != "standby" {
			t.Errorf("%+v", c)
		}
		sameContents(t, recovered(t, dir, c.ID, "archived").Digest(), want)
		again := create(t, dir, s)
		sameContents(t, restore(t, dir, again.ID, n).Digest(), want)
	})
}
