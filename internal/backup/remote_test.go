package backup_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/internal/pgtest"
	"tidemark/internal/repo/storetest"
)

// TestOverSSH backs up a server whose files are read over ssh: under load, with
// a tablespace and a pg_wal elsewhere; then what changed since; then its standby.
func TestOverSSH(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		ssh := storetest.NewSFTP(t)
		dir := newRepo(t)
		n := pgtest.New(t, pgtest.Options{Major: major, Checksums: true, Config: []string{"autovacuum = off"}})
		n.Exec("CREATE TABLE big AS SELECT g AS id, repeat('x', 500) AS t FROM generate_series(1, 20000) g")
		n.Exec("CREATE TABLESPACE s LOCATION '" + n.TempDir("odd space") + "'")
		n.Exec("CREATE TABLE in_space TABLESPACE s AS SELECT generate_series(1, 1000) AS id")
		n.Exec("VACUUM")
		n.Stop()
		elsewhere := filepath.Join(n.TempDir("elsewhere"), "wal")
		if err := os.Rename(filepath.Join(n.Dir, "pg_wal"), elsewhere); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(elsewhere, filepath.Join(n.Dir, "pg_wal")); err != nil {
			t.Fatal(err)
		}
		n.Start()
		stop := n.Churn(churn()...)
		full := create(t, dir, n, "-D", ssh.AtDir(ssh.Port(), n.Dir))
		stop()
		create(t, dir, n, "-D", ssh.AtDir(ssh.Port(), n.Dir)) // what the load changed, which may be everything
		n.Exec("UPDATE big SET t = 'changed' WHERE id % 1000 = 0")
		incr := create(t, dir, n, "-D", ssh.AtDir(ssh.Port(), n.Dir))
		if full.Source.Access != "ssh" || incr.Source.Access != "ssh" || incr.Type != "incremental" || incr.Read > full.Read/2 {
			t.Errorf("%+v\n%+v", full, incr)
		}
		whole := create(t, dir, n, "--rehash-every", "0")
		sameContents(t, digests(t, dir, incr.ID), digests(t, dir, whole.ID))
		pgtest.MustRun(t, "dbbackup", "verify", "--deep", "--repo", dir)
		target := filepath.Join(t.TempDir(), "restored")
		pgtest.MustRun(t, "dbrecover", "restore", "--repo", dir, "--backup", incr.ID, "-D", target, "--archive", "off", "--tablespace", "s="+filepath.Join(t.TempDir(), "space"))
		r := pgtest.Attach(t, "restored", target)
		r.Start()
		r.WaitSQL("SELECT pg_is_in_recovery()", "f")
		sameContents(t, r.Digest(), n.Digest())
		sound(t, r)

		s := n.Standby(pgtest.StandbyOptions{})
		s.WaitFor(n)
		if c := create(t, dir, s, "-D", ssh.AtDir(ssh.Port(), s.Dir)); c.Source.Role != "standby" || c.Source.Access != "ssh" {
			t.Errorf("%+v", c)
		}
		clone := filepath.Join(t.TempDir(), "clone")
		if err := pgtest.CopyTree(s.Dir, clone); err != nil {
			t.Fatal(err)
		}
		first := pgtest.Run(t, "dbbackup", "create", "--repo", dir, "-d", s.ConnInfo(), "-D", ssh.AtDir(ssh.Port(), clone))
		if first.Code != 6 || !strings.Contains(first.Stderr, "it is a copy") {
			t.Errorf("a copy of a standby's that is up to date: %+v", first)
		}
		for what, tt := range map[string]struct{ server, where, want string }{
			"a copy of a standby's":   {s.ConnInfo(), ssh.AtDir(ssh.Port(), clone), "is not the server's"},
			"the primary's":           {s.ConnInfo(), ssh.AtDir(ssh.Port(), n.Dir), ""},
			"the standby's":           {n.ConnInfo(), ssh.AtDir(ssh.Port(), s.Dir), ""},
			"a stale copy":            {n.ConnInfo(), ssh.AtDir(ssh.Port(), clone), "checkpoint"},
			"another cluster's":       {n.ConnInfo(), ssh.AtDir(ssh.Port(), pgtest.New(t, pgtest.Options{Major: major, Fresh: true}).Dir), "system identifier"},
			"not a cluster's":         {n.ConnInfo(), ssh.AtDir(ssh.Port(), filepath.Dir(n.Dir)), "not a cluster"},
			"a missing directory":     {n.ConnInfo(), ssh.AtDir(ssh.Port(), "/no/such/place"), "not a cluster"},
			"a directory of nobody's": {n.ConnInfo(), "sftp://", "names no host"},
		} {
			r := pgtest.Run(t, "dbbackup", "create", "--repo", dir, "-d", tt.server, "-D", tt.where)
			if r.Code == 0 || r.Code == 1 || !strings.Contains(r.Stderr, tt.want) || !strings.Contains(r.Stderr, "hint:") {
				t.Errorf("%s: %+v", what, r)
			}
		}
	})
}

// TestOverSSHCut: the host goes away in the middle. The same command, once it
// is back, does not read again what is durable in the repository.
func TestOverSSHCut(t *testing.T) {
	ssh := storetest.NewSFTP(t)
	dir := newRepo(t)
	n := pgtest.New(t, pgtest.Options{})
	n.PgbenchInit(8)
	relay := storetest.NewRelay(t, ssh.Port(), 55_000, 0)
	ssh.Trust(t, relay.Port)
	r := pgtest.Run(t, "dbbackup", "create", "--jobs", "1", "--repo", dir, "-d", n.ConnInfo(), "-D", ssh.AtDir(relay.Port, n.Dir, "attempts=1"))
	if r.Code != 1 && r.Code != 4 || !strings.Contains(r.Stderr, "run the same command again") || relay.Connections() < 1 {
		t.Errorf("cut: %+v", r)
	}
	if l := listing(t, dir); len(l.Backups) != 0 || len(l.Started) != 1 || !l.Started[0].Interrupted {
		t.Errorf("after the cut: %+v", l)
	}
	r = pgtest.Run(t, "dbbackup", "create", "--json", "--repo", dir, "-d", n.ConnInfo(), "-D", ssh.AtDir(ssh.Port(), n.Dir))
	var c created
	if err := json.Unmarshal([]byte(r.Stdout), &c); err != nil || !strings.Contains(r.Stderr, "going on where the interrupted backup") {
		t.Fatalf("%v: %+v", err, r)
	}
	sameContents(t, restore(t, dir, c.ID, n).Digest(), n.Digest())
}

// TestSmallestRole: each way of reading needs the rights that the guide names,
// and no others.
func TestSmallestRole(t *testing.T) {
	eachSince(t, 15, func(t *testing.T, major int) { // before, only a superuser could make a checkpoint
		ssh := storetest.NewSFTP(t)
		dir := newRepo(t)
		n := pgtest.New(t, pgtest.Options{Major: major})
		n.Exec("CREATE ROLE backup LOGIN REPLICATION")
		n.Exec("GRANT pg_checkpoint TO backup")
		n.Exec("GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO backup")
		role := n.ConnInfo("user=backup")
		take := func(args ...string) pgtest.Result {
			return pgtest.Run(t, "dbbackup", append([]string{"create", "--json", "--repo", dir, "-d", role}, args...)...)
		}
		access := func(what string, r pgtest.Result, want string) {
			t.Helper()
			var c created
			if err := json.Unmarshal([]byte(r.Stdout), &c); r.Code != 0 || err != nil || c.Source.Access != want || strings.Contains(r.Stderr, "warn") {
				t.Errorf("%s: %v, %+v", what, err, r)
			}
		}
		access("ssh", take("-D", ssh.AtDir(ssh.Port(), n.Dir)), "ssh")
		access("here", take("-D", n.Dir), "files")
		access("streamed", take("--stream"), "stream")
		if r := take(); r.Code != 1 || !strings.Contains(r.Stderr, "pg_read_binary_file") && !strings.Contains(r.Stderr, "pg_ls_dir") && !strings.Contains(r.Stderr, "privilege") {
			t.Errorf("over SQL without rights: %+v", r)
		}
		n.Exec("GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(text, boolean, boolean), pg_catalog.pg_stat_file(text, boolean), pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean) TO backup")
		access("SQL", take(), "sql")
		n.Exec("GRANT pg_read_all_settings TO backup")
		begin := time.Now()
		access("found here", take(), "files")
		took := time.Since(begin)
		n.Exec("REVOKE EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() FROM backup") // nobody completes the last segment
		begin = time.Now()
		if r := take("--repo", newRepo(t), "--timeout", "3s"); r.Code != 1 || strings.Count(r.Stderr, "did not arrive within 3s") != 2 || time.Since(begin) > 6*time.Second+took {
			t.Errorf("without pg_switch_wal, into two, after %s: %+v", time.Since(begin), r)
		}
		n.Exec("REVOKE pg_checkpoint FROM backup")
		if r := take("-D", n.Dir); r.Code != 1 || !strings.Contains(r.Stderr, "pg_checkpoint") {
			t.Errorf("without pg_checkpoint: %+v", r)
		}
	})
}
