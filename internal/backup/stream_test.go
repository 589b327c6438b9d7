package backup_test

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"tidemark/internal/blockcopy"
	"tidemark/internal/pgtest"
	"tidemark/internal/postgres"
)

// onlyReplication makes a role that may replicate, and do nothing else: it gets
// no session in a database.
func onlyReplication(n *pgtest.Node) (conninfo string) {
	n.Exec("CREATE ROLE streamer LOGIN REPLICATION")
	n.PrependHBA("local replication streamer trust", "local all streamer reject", "host all streamer all reject")
	n.Reload()
	return n.ConnInfo("user=streamer")
}

// streamed takes a backup over the replication protocol.
func streamed(t *testing.T, dir, conninfo string, args ...string) created {
	t.Helper()
	out := pgtest.MustRun(t, "dbbackup", append([]string{"create", "--stream", "--json", "--repo", dir, "-d", conninfo}, args...)...)
	var c created
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return c
}

// paths are what a backup holds.
func paths(t *testing.T, dir, id string) map[string]bool {
	t.Helper()
	src, err := onlyCluster(t, dir).OpenSource(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := src.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, e := range entries {
		if e.Type == blockcopy.Link {
			e.Path += " -> " + e.LinkTarget
		}
		out[e.Path+" "+e.Type.String()] = true
	}
	return out
}

// TestStream: a role that may do nothing but replicate takes full and
// incremental backups of a server that works, in one chain with those that read
// its files. All of them restore; and a backup holds the same files either way.
func TestStream(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		dir := newRepo(t)
		config := []string{"max_wal_size = 64MB", "wal_keep_size = 1GB"} // nothing archives what lies between two backups
		if major >= 15 {
			config = append(config, "allow_in_place_tablespaces = on")
		}
		n := pgtest.New(t, pgtest.Options{Major: major, Checksums: true, WALSegMB: 4, Config: config})
		role := onlyReplication(n)
		if major >= 15 {
			n.Exec("CREATE TABLESPACE inside LOCATION ''")
			n.Exec("CREATE TABLE in_place TABLESPACE inside AS SELECT generate_series(1, 3000) AS id")
		}
		n.Exec("CREATE TABLESPACE s LOCATION '" + n.TempDir("odd space") + "'")
		n.Exec("CREATE TABLE in_space TABLESPACE s AS SELECT generate_series(1, 3000) AS id")
		n.Exec("CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 3000) AS id")
		n.PgbenchInit(2)
		stop := n.Pgbench("-c", "2", "-T", "120", "-R", "100")
		stopChurn := n.Churn(churn()...)
		full := streamed(t, dir, role)
		incr := streamed(t, dir, role, "--jobs", "1")
		stopChurn()
		streamed(t, dir, role) // what the load wrote may be more than there is data: then all is read
		local, said := noted(t, dir, n)
		stop()
		last := streamed(t, dir, role)
		n.Exec("CHECKPOINT")
		still := create(t, dir, n)
		want := n.Digest()
		if full.Type != "full" || incr.Type != "incremental" || incr.OldBlocks == 0 || local.OldBlocks == 0 || local.Proof == "" || last.OldBlocks == 0 {
			t.Errorf("full %+v\nincremental %+v\nfiles %+v\n%s\nlast %+v", full, incr, local, said, last)
		}
		if full.Source.Access != "stream" || full.Source.Role != "primary" || last.NewBlocks > last.OldBlocks {
			t.Errorf("%+v: %d new blocks", full.Source, last.NewBlocks)
		}
		pgtest.MustRun(t, "dbbackup", "verify", "--deep", "--repo", dir)
		a, b := paths(t, dir, last.ID), paths(t, dir, still.ID)
		for p := range b {
			if !a[p] && !strings.HasPrefix(p, "base/") && !strings.HasPrefix(p, "pg_xact") {
				t.Errorf("not streamed: %s", p)
			}
		}
		for p := range a {
			if !b[p] && !strings.HasPrefix(p, "base/") && !strings.HasPrefix(p, "pg_xact") {
				t.Errorf("only streamed: %s", p)
			}
		}
		for i, c := range []created{full, incr, local, last} {
			target := filepath.Join(t.TempDir(), "restored")
			pgtest.MustRun(t, "dbrecover", "restore", "--repo", dir, "--backup", c.ID, "-D", target, "--archive", "off", "--to", "immediate",
				"--tablespace", n.SQL("SELECT oid FROM pg_tablespace WHERE spcname = 's'")+"="+n.TempDir("space"+string('a'+rune(i))))
			r := pgtest.Attach(t, "restored", target)
			r.Start()
			r.WaitSQL("SELECT pg_is_in_recovery()", "f")
			if got := r.SQL(`SELECT count(*) FROM (SELECT sum(abalance) FROM pgbench_accounts UNION SELECT sum(tbalance) FROM pgbench_tellers
				UNION SELECT sum(bbalance) FROM pgbench_branches UNION SELECT coalesce(sum(delta), 0) FROM pgbench_history) s`); got != "1" {
				t.Errorf("%s: the sums differ: %s", c.ID, got)
			}
			if c.ID == last.ID {
				unlogged := func(m map[string]string) map[string]string {
					maps.DeleteFunc(m, func(k, _ string) bool { return strings.Contains(k, "unlogged") })
					return m
				}
				sameContents(t, unlogged(r.Digest()), unlogged(want))
			}
			sound(t, r)
		}
		if left := n.SQL("SELECT count(*) FROM pg_replication_slots"); left != "0" {
			t.Errorf("%s slots are left", left)
		}
	})
}

// TestStreamStandby: a standby whose primary is gone is streamed with all that
// it has, by a role that may only replicate.
func TestStreamStandby(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		dir := newRepo(t)
		n := pgtest.New(t, pgtest.Options{Major: major, Checksums: true, WALSegMB: 1, Config: []string{"autovacuum = off"}})
		onlyReplication(n)
		n.Exec("CREATE TABLE t AS SELECT g AS id, repeat('x', 500) AS t FROM generate_series(1, 5000) g")
		s := n.Standby(pgtest.StandbyOptions{Config: []string{"hot_standby_feedback = on"}})
		s.PrependHBA("local all streamer reject", "host all streamer all reject")
		n.Exec("CHECKPOINT")
		s.WaitFor(n)
		role := s.ConnInfo("user=streamer")
		first := streamed(t, dir, role, "--timeout", "20s")
		n.Exec("UPDATE t SET t = 'behind the checkpoint' WHERE id % 3 = 0")
		s.WaitFor(n)
		want := n.Digest()
		n.StopMode(postgres.StopImmediate)
		s.WaitSQL("SELECT count(*) FROM pg_stat_wal_receiver WHERE pid IS NOT NULL", "0")
		second := streamed(t, dir, role, "--timeout", "20s")
		if first.Source.Role != "standby" || second.Source.Role != "standby" || second.Tail == "" || second.OldBlocks == 0 {
			t.Errorf("%+v\n%+v", first, second)
		}
		pgtest.MustRun(t, "dbbackup", "verify", "--deep", "--repo", dir)
		sameContents(t, recovered(t, dir, second.ID, "alone").Digest(), want)
		third := create(t, dir, s)
		sameContents(t, recovered(t, dir, third.ID, "files").Digest(), want)

		cmd := exec.Command(pgtest.Bin("dbbackup"), "create", "--stream", "--json", "--rate", "15MB", "--repo", dir, "-d", role)
		var out, said strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		s.WaitSQL("SELECT count(*) FROM pg_stat_replication WHERE state = 'backup'", "1")
		s.Promote()
		s.Exec("UPDATE t SET t = 'promoted' WHERE id % 5 = 0")
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%v: %s", err, said.String())
		}
		var fourth created
		if err := json.Unmarshal([]byte(out.String()), &fourth); err != nil {
			t.Fatal(err)
		}
		if fourth.Source.Role != "primary" || fourth.Start.Timeline != 2 || fourth.Type != "incremental" || !strings.Contains(said.String(), "promoted while it was copied") {
			t.Errorf("%+v\n%s", fourth, said.String())
		}
		sameContents(t, recovered(t, dir, fourth.ID, "promoted").Digest(), s.Digest())
	})
}

// TestStreamDamaged: a damaged page is found, named by its file, and the backup
// is recorded as one that holds it.
func TestStreamDamaged(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		dir := newRepo(t)
		n := pgtest.New(t, pgtest.Options{Major: major, Checksums: true})
		role := onlyReplication(n)
		n.Exec("CREATE TABLE hurt AS SELECT g AS id, repeat('x', 500) AS t FROM generate_series(1, 1000) g")
		file := n.SQL("SELECT pg_relation_filepath('hurt')")
		n.Stop()
		f, err := os.OpenFile(filepath.Join(n.Dir, file), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte("damage"), 3*8192+4000); err != nil {
			t.Fatal(err)
		}
		n.Start()
		r := pgtest.Run(t, "dbbackup", "create", "--stream", "--json", "--repo", dir, "-d", role)
		var c created
		if err := json.Unmarshal([]byte(r.Stdout), &c); err != nil || r.Code != 3 || c.FindingCount != 1 || len(c.Findings) != 1 {
			t.Fatalf("%v: %+v", err, r)
		}
		if got := c.Findings[0]; got.Path != file || got.Block != 3 || got.Relation != "" || !strings.Contains(r.Stderr, "pg_filenode_relation(0, "+filepath.Base(file)+")") {
			t.Errorf("%+v: %s", got, r.Stderr)
		}
		if l := listing(t, dir); len(l.Backups) != 1 || l.Backups[0].FindingCount != 1 {
			t.Errorf("%+v", l)
		}
	})
}

// TestStreamCut: the connection breaks in the middle, then the process is
// killed; the same command goes on, whichever way it reads, and stores nothing
// twice.
func TestStreamCut(t *testing.T) {
	dir := newRepo(t)
	n := noisy(t, 30) // 4 packs
	role := onlyReplication(n)
	half := func() {
		pgtest.Wait(t, func() bool {
			packs := packsOf(t, dir)
			return len(packs) > 0 && slices.Max(slices.Collect(maps.Values(packs))) >= 2
		})
	}
	start := func() *exec.Cmd {
		cmd := exec.Command(pgtest.Bin("dbbackup"), "create", "--stream", "--rate", "60MB", "--repo", dir, "-d", role)
		cmd.Stderr = new(strings.Builder)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	cmd := start()
	half()
	n.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE state = 'backup'")
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Fatalf("%v: %s", err, cmd.Stderr)
	}
	left := packsOf(t, dir)
	cmd = start()
	half()
	cmd.Process.Kill()
	cmd.Wait()
	c := streamed(t, dir, role)
	s := shown(t, dir)
	total := 0
	for id, packs := range left {
		if used := s.stored(id); used < packs {
			t.Errorf("backup %s was cut off with %d packs, %d are used: %+v", id, packs, used, s)
		}
	}
	for _, l := range s.Chain {
		total += l.Packs
	}
	if s.Resumed == 0 || total > 8 {
		t.Errorf("%+v", s)
	}
	sameContents(t, restore(t, dir, c.ID, n).Digest(), n.Digest())
	for _, what := range []string{"files", "wal"} {
		if spools, err := filepath.Glob(filepath.Join(os.TempDir(), "tidemark-"+what+"-*")); err != nil || len(spools) > 0 {
			t.Errorf("%v: %v", spools, err)
		}
	}
}

// TestStreamInto: several repositories at once, one of which this account
// cannot read, and a rate.
func TestStreamInto(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	plain, sealed, key := newRepo(t), filepath.Join(t.TempDir(), "sealed"), filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(id.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	pgtest.MustRun(t, "dbbackup", "init", "--repo", sealed, "--recipient", id.Recipient().String())
	n := pgtest.New(t, pgtest.Options{Checksums: true})
	role := onlyReplication(n)
	n.PgbenchInit(1)
	stop := n.Pgbench("-c", "1", "-T", "60")
	for range 2 {
		streamed(t, plain, role, "--repo", sealed, "--rate", "100MB")
	}
	stop()
	c := streamed(t, plain, role, "--repo", sealed)
	want := n.Digest()
	for i, at := range []string{plain, sealed} {
		target := filepath.Join(t.TempDir(), "restored")
		pgtest.MustRun(t, "dbrecover", "restore", "--repo", at, "--identity", key, "--backup", c.ID, "-D", target, "--archive", "off")
		r := pgtest.Attach(t, "restored"+string('a'+rune(i)), target)
		r.Start()
		r.WaitSQL("SELECT pg_is_in_recovery()", "f")
		sameContents(t, r.Digest(), want)
	}
}
