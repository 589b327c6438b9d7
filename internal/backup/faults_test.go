package backup_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/internal/backup"
	"tidemark/internal/pgtest"
)

func listing(t *testing.T, dir string) backup.ClusterListing {
	t.Helper()
	var l backup.Listing
	if err := json.Unmarshal([]byte(pgtest.MustRun(t, "dbbackup", "list", "--json", "--repo", dir)), &l); err != nil {
		t.Fatal(err)
	}
	if len(l.Clusters) == 0 {
		return backup.ClusterListing{}
	}
	return l.Clusters[0]
}

// TestKilledCreate: what kill -9 leaves is not listed as complete, and the next
// create goes on from it, or lets it be where there is nothing to go on from.
func TestKilledCreate(t *testing.T) {
	dir := newRepo(t)
	n := pgtest.New(t, pgtest.Options{Config: archiving(dir)})
	n.PgbenchInit(5)
	first := create(t, dir, n)
	cmd := exec.Command(pgtest.Bin("dbbackup"), "create", "--full", "--jobs", "1", "--rate", "50MB", "--repo", dir, "-d", n.ConnInfo())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	packs := func() int {
		all, err := filepath.Glob(filepath.Join(dir, ".tmp", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	pgtest.Wait(t, func() bool { // the archiver has temporary files, too
		return len(listing(t, dir).Started) == 1 && packs() >= 2
	})
	cmd.Process.Kill()
	cmd.Wait()
	l := listing(t, dir)
	if len(l.Backups) != 1 || l.Backups[0].ID != first.ID || len(l.Started) != 1 || !l.Started[0].Interrupted {
		t.Fatalf("after the kill: %+v", l)
	}
	second := create(t, dir, n)
	l = listing(t, dir)
	if len(l.Backups) != 2 || packs() != 0 {
		t.Errorf("after the next one: %+v, %d temporary files", l, packs())
	}
	r := restore(t, dir, second.ID, n)
	sameContents(t, r.Digest(), n.Digest())
}

// TestInterrupted: the first signal ends a backup cleanly; what is left is for
// the next one, which leaves nothing of it.
func TestInterrupted(t *testing.T) {
	dir := newRepo(t)
	n := pgtest.New(t, pgtest.Options{Config: archiving(dir)})
	n.PgbenchInit(5)
	cmd := exec.Command(pgtest.Bin("dbbackup"), "create", "--jobs", "1", "--repo", dir, "-d", n.ConnInfo())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	started := filepath.Join(dir, "*", "backups", "*", "started")
	pgtest.Wait(t, func() bool { all, _ := filepath.Glob(started); return len(all) > 0 })
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	l := listing(t, dir)
	if code := cmd.ProcessState.ExitCode(); code != 130 || len(l.Backups) != 0 || len(l.Started) > 1 {
		t.Errorf("exit code %d: %+v", code, l)
	}
	for _, s := range l.Started {
		if !s.Interrupted {
			t.Errorf("%+v is not known to be interrupted", s)
		}
	}
	c := create(t, dir, n)
	if l := listing(t, dir); len(l.Backups) != 1 || len(l.Started) != 0 {
		t.Errorf("after the next one: %+v", l)
	}
	sameContents(t, restore(t, dir, c.ID, n).Digest(), n.Digest())
}

// TestDamagedPage: a page that fails its checksum is found, named, recorded,
// and makes the exit code 3.
func TestDamagedPage(t *testing.T) {
	dir := newRepo(t)
	n := pgtest.New(t, pgtest.Options{Checksums: true, Config: archiving(dir)})
	n.Exec("CREATE TABLE sound AS SELECT generate_series(1, 5000) AS id")
	n.Exec("CREATE TABLE hurt AS SELECT generate_series(1, 5000) AS id")
	n.Exec("CHECKPOINT")
	path := n.SQL("SELECT pg_relation_filepath('hurt')")
	n.Stop()
	f, err := os.OpenFile(filepath.Join(n.Dir, path), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damage"), 3*8192+4000); err != nil {
		t.Fatal(err)
	}
	f.Close()
	n.Start()
	r := pgtest.Run(t, "dbbackup", "create", "--json", "--repo", dir, "-d", n.ConnInfo())
	var c created
	if err := json.Unmarshal([]byte(r.Stdout), &c); err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	if r.Code != 3 || c.FindingCount != 1 || len(c.Findings) != 1 {
		t.Fatalf("%+v", r)
	}
	if got := c.Findings[0]; got.Path != path || got.Block != 3 || got.Relation != "postgres.public.hurt" || got.Found == got.Expected {
		t.Errorf("%+v", got)
	}
	if l := listing(t, dir); len(l.Backups) != 1 || l.Backups[0].FindingCount != 1 {
		t.Errorf("%+v", l)
	}
	text := pgtest.Run(t, "dbbackup", "create", "--repo", dir, "-d", n.ConnInfo())
	if text.Code != 3 || !strings.Contains(text.Stdout, "postgres.public.hurt") || !strings.Contains(text.Stderr, "1 block") {
		t.Errorf("%+v", text)
	}
}

// TestCreateRefused: wrong input gives one clear error with a hint, and no
// trace in the repository.
func TestCreateRefused(t *testing.T) {
	dir := newRepo(t)
	n := pgtest.New(t, pgtest.Options{TCP: true, HBA: []string{"host all all 127.0.0.1/32 scram-sha-256"}})
	n.Exec("SET password_encryption = 'scram-sha-256'; CREATE ROLE pw SUPERUSER LOGIN PASSWORD 'right'; CREATE ROLE plain LOGIN")
	other := pgtest.New(t, pgtest.Options{Fresh: true})
	clone := filepath.Join(t.TempDir(), "clone")
	if err := pgtest.CopyTree(n.Dir, clone); err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		args []string
		code int
		want string
	}{
		"no repository":         {[]string{"--repo", filepath.Join(dir, "nope"), "-d", n.ConnInfo()}, 1, "no repository"},
		"not a repository":      {[]string{"--repo", t.TempDir(), "-d", n.ConnInfo()}, 1, "not a repository"},
		"no repository named":   {[]string{"-d", n.ConnInfo()}, 64, "--repo"},
		"wrong password":        {[]string{"--repo", dir, "-d", n.TCPConnInfo("user=pw", "password=wrong")}, 1, "password"},
		"no server":             {[]string{"--repo", dir, "-d", "host=" + t.TempDir()}, 1, ""},
		"no privileges":         {[]string{"--repo", dir, "-d", n.ConnInfo("user=plain")}, 1, ""},
		"not a cluster":         {[]string{"--repo", dir, "-d", n.ConnInfo(), "-D", t.TempDir()}, 6, "not a cluster"},
		"another cluster":       {[]string{"--repo", dir, "-d", n.ConnInfo(), "-D", other.Dir}, 6, "system identifier"},
		"a copy of the cluster": {[]string{"--repo", dir, "-d", n.ConnInfo(), "-D", clone}, 6, "checkpoint"},
	}
	for what, tt := range cases {
		r := pgtest.RunEnv(t, []string{"TIDEMARK_REPO=", "PGDATA="}, "dbbackup", append([]string{"create", "--timeout", "5s"}, tt.args...)...)
		if r.Code != tt.code || !strings.Contains(r.Stderr, tt.want) || strings.Count(r.Stderr, "hint:") == 0 || r.Stdout != "" || strings.Contains(r.Stderr, "right") {
			t.Errorf("%s: %+v", what, r)
		}
	}
	n.Exec("ALTER SYSTEM SET full_page_writes = off")
	n.Reload()
	n.WaitSQL("SHOW full_page_writes", "off")
	if r := pgtest.Run(t, "dbbackup", "create", "--repo", dir, "-d", n.ConnInfo()); r.Code != 6 || !strings.Contains(r.Stderr, "full_page_writes") {
		t.Errorf("full_page_writes off: %+v", r)
	}
	if l := listing(t, dir); len(l.Backups) != 0 || len(l.Started) != 0 {
		t.Errorf("something is left: %+v", l)
	}
}

// TestWithoutArchiver: WAL that nobody archives is fetched from the server.
func TestWithoutArchiver(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		dir := newRepo(t)
		n := pgtest.New(t, pgtest.Options{Major: major, WALSegMB: 1})
		n.PgbenchInit(1)
		stop := n.Pgbench("-c", "2")
		c := create(t, dir, n)
		stop()
		last := create(t, dir, n)
		want := n.Digest()
		if slots := n.SQL("SELECT count(*) FROM pg_replication_slots"); slots != "0" {
			t.Errorf("%s slots are left", slots)
		}
		sound(t, restore(t, dir, c.ID, n))
		sameContents(t, restore(t, dir, last.ID, n).Digest(), want)
		if l := listing(t, dir); len(l.Backups) != 2 || len(l.Backups[0].WALMissing) != 0 {
			t.Errorf("%+v", l)
		}
	})
}

// TestStandbyBackup: a standby is backed up while its primary works.
func TestStandbyBackup(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		dir := newRepo(t)
		n := pgtest.New(t, pgtest.Options{Major: major, Checksums: true, Config: archiving(dir)})
		n.PgbenchInit(1)
		s := n.Standby(pgtest.StandbyOptions{})
		stop := n.Pgbench("-c", "2")
		switching := n.Churn("SELECT pg_switch_wal()", "SELECT pg_sleep(0.5)")
		c := create(t, dir, s)
		switching()
		stop()
		if c.Source.Role != "standby" {
			t.Errorf("%+v", c)
		}
		sound(t, restore(t, dir, c.ID, n))

		s.WaitFor(n)
		resting := create(t, dir, s)
		if resting.Tail == "" {
			t.Errorf("from a standby whose primary rests: %+v", resting)
		}
		sameContents(t, restore(t, dir, resting.ID, n).Digest(), n.Digest())
	})
}

// TestBitFlip: damage in the repository is found by a restore and named.
func TestBitFlip(t *testing.T) {
	dir := newRepo(t)
	n := pgtest.New(t, pgtest.Options{})
	c := create(t, dir, n)
	packs, err := filepath.Glob(filepath.Join(dir, "*", "packs", c.ID, "*"))
	if err != nil || len(packs) == 0 {
		t.Fatal(err)
	}
	data, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/3] ^= 8
	os.Chmod(packs[0], 0o600)
	if err := os.WriteFile(packs[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(t.TempDir(), "x")
	err = restoreFiles(t.Context(), dir, c.ID, target)
	if err == nil || !strings.Contains(err.Error(), filepath.Base(packs[0])) || !strings.Contains(err.Error(), "block") {
		t.Errorf("restore: %v", err)
	}
	// Which files the restore came to is chance; this one must not be what keeps the server from starting.
	if err := os.WriteFile(filepath.Join(target, "PG_VERSION"), fmt.Appendln(nil, n.Major), 0o600); err != nil {
		t.Fatal(err)
	}
	bad := pgtest.Attach(t, "bad", target)
	if err := bad.TryStart(); err == nil {
		t.Error("a half-restored cluster started")
	}
}
