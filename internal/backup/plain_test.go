package backup_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/internal/pgtest"
)

// TestPlain: a plain backup starts as it is, and pg_verifybackup accepts it.
func TestPlain(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		n := pgtest.New(t, pgtest.Options{Major: major, Checksums: true})
		n.PgbenchInit(1)
		stop := n.Pgbench("-c", "2")
		dir := filepath.Join(t.TempDir(), "plain")
		loaded := filepath.Join(t.TempDir(), "loaded")
		pgtest.MustRun(t, "dbbackup", "create", "--plain", loaded, "-d", n.ConnInfo())
		stop()
		want := n.Digest()
		pgtest.MustRun(t, "dbbackup", "create", "--plain", dir, "-d", n.ConnInfo())
		if major == 15 {
			for _, d := range []string{loaded, dir} {
				if out, err := exec.Command(pgtest.Tool(t, 15, "pg_verifybackup"), d).CombinedOutput(); err != nil {
					t.Errorf("pg_verifybackup: %v\n%s", err, out)
				}
			}
		}
		again := pgtest.Run(t, "dbbackup", "create", "--plain", dir, "-d", n.ConnInfo())
		if again.Code != 6 || !strings.Contains(again.Stderr, "not empty") {
			t.Errorf("into a directory that is not empty: %+v", again)
		}
		first := pgtest.Attach(t, "loaded", loaded)
		first.Start()
		sound(t, first)
		copied := pgtest.Attach(t, "plain", dir)
		copied.Start()
		sameContents(t, copied.Digest(), want)
		sound(t, copied)
	})
}

// TestPlainFails: what is left of a failed plain backup does not start, or is nothing.
func TestPlainFails(t *testing.T) {
	n := pgtest.New(t, pgtest.Options{})
	dir := filepath.Join(t.TempDir(), "plain")
	r := pgtest.Run(t, "dbbackup", "create", "--plain", dir, "-d", n.ConnInfo(), "-D", t.TempDir())
	if r.Code != 6 || !strings.Contains(r.Stderr, "not a cluster") || !strings.Contains(r.Stderr, "hint:") {
		t.Errorf("with a wrong -D: %+v", r)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is there: %v", dir, err)
	}
	n.Stop()
	r = pgtest.Run(t, "dbbackup", "create", "--plain", dir, "-d", n.ConnInfo())
	if r.Code != 1 || !strings.Contains(r.Stderr, "hint:") {
		t.Errorf("of a stopped server: %+v", r)
	}
}

// withSpaces makes a cluster with two tablespaces, one of them empty.
func withSpaces(t *testing.T, major int) (n *pgtest.Node, first, second string) {
	t.Helper()
	n = pgtest.New(t, pgtest.Options{Major: major, Checksums: true})
	first, second = n.TempDir("first"), n.TempDir("second")
	n.Exec("CREATE TABLESPACE fast LOCATION '" + first + "'")
	n.Exec("CREATE TABLESPACE void LOCATION '" + second + "'")
	n.Exec("CREATE TABLE t TABLESPACE fast AS SELECT g AS id, repeat('x', 300) AS t FROM generate_series(1, 5000) g")
	n.Exec("CREATE TABLE long AS SELECT g AS id, md5(g::text) || repeat('y', 300) AS t FROM generate_series(1, 30000) g")
	n.Exec("CREATE UNLOGGED TABLE passing AS SELECT 1 AS id")
	return n, first, second
}

// TestPlainTablespaces: tablespaces go where they are sent, as directories and
// in tar files, and nowhere without being sent.
func TestPlainTablespaces(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		n, first, second := withSpaces(t, major)
		want := n.Digest()
		base := t.TempDir()
		dir := filepath.Join(base, "plain")
		r := pgtest.Run(t, "dbbackup", "create", "--plain", dir, "-d", n.ConnInfo(), "-T", "void="+base+"/void")
		if r.Code != 6 || !strings.Contains(r.Stderr, first) || !strings.Contains(r.Stderr, "--tablespace") {
			t.Errorf("onto the tablespace itself: %+v", r)
		}
		if r = pgtest.Run(t, "dbbackup", "create", "--plain", dir, "-d", n.ConnInfo(), "-T", "slow="+base+"/x"); r.Code != 64 || !strings.Contains(r.Stderr, "fast") {
			t.Errorf("a tablespace that there is not: %+v", r)
		}
		pgtest.MustRun(t, "dbbackup", "create", "--plain", dir, "-d", n.ConnInfo(), "-T", first+"="+base+"/fast", "-T", "void="+base+"/void")
		comesUp(t, major, dir, want)

		// Unpacked over the first one's places: the map in it counts.
		tars := filepath.Join(base, "tars")
		pgtest.MustRun(t, "dbbackup", "create", "--plain", tars, "--tar", "-d", n.ConnInfo(), "-T", "fast="+base+"/fast2", "-T", second+"="+base+"/void2")
		files, err := os.ReadDir(tars)
		if err != nil || len(files) != 4 {
			t.Fatalf("%v, %v", files, err)
		}
		unpack := func(from, to string) {
			t.Helper()
			if err := os.Mkdir(to, 0o700); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("tar", "-xf", filepath.Join(tars, from), "-C", to).CombinedOutput(); err != nil {
				t.Fatalf("tar: %v\n%s", err, out)
			}
		}
		unpacked := filepath.Join(base, "unpacked")
		unpack("base.tar", unpacked)
		for name, to := range map[string]string{"fast": "fast2", "void": "void2"} {
			unpack(n.SQL("SELECT oid FROM pg_tablespace WHERE spcname = '"+name+"'")+".tar", filepath.Join(base, to))
		}
		manifest, err := os.ReadFile(filepath.Join(tars, "backup_manifest"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(unpacked, "backup_manifest"), manifest, 0o600); err != nil {
			t.Fatal(err)
		}
		comesUp(t, major, unpacked, want)
	})
}

// comesUp checks a plain copy, starts a server on it and compares it.
func comesUp(t *testing.T, major int, dir string, want map[string]string) {
	t.Helper()
	if major == 15 {
		if out, err := exec.Command(pgtest.Tool(t, 15, "pg_verifybackup"), dir).CombinedOutput(); err != nil {
			t.Errorf("pg_verifybackup: %v\n%s", err, out)
		}
	}
	n := pgtest.Attach(t, filepath.Base(dir), dir)
	n.Start()
	sameContents(t, n.Digest(), want)
	sound(t, n)
}

// TestTarUnderLoad: tables that come, grow, shrink and go meanwhile.
func TestTarUnderLoad(t *testing.T) {
	n := pgtest.New(t, pgtest.Options{Checksums: true})
	n.PgbenchInit(1)
	stop := n.Pgbench("-c", "2")
	churning := n.Churn(churn()...)
	tars, dir := filepath.Join(t.TempDir(), "tars"), filepath.Join(t.TempDir(), "unpacked")
	pgtest.MustRun(t, "dbbackup", "create", "--plain", tars, "--tar", "-d", n.ConnInfo(), "--rate", "20MB")
	churning()
	stop()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-xf", filepath.Join(tars, "base.tar"), "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	if out, err := exec.Command(pgtest.Tool(t, 15, "pg_verifybackup"), "-m", filepath.Join(tars, "backup_manifest"), dir).CombinedOutput(); n.Major == 15 && err != nil {
		t.Errorf("pg_verifybackup: %v\n%s", err, out)
	}
	r := pgtest.Attach(t, "unpacked", dir)
	r.Start()
	sound(t, r)
	r = pgtest.Attach(t, "again", dir)
	r.Start()
	if got := r.SQL("SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)"); got != "true" && got != "t" {
		t.Errorf("pgbench's sums differ: %s", got)
	}
}
