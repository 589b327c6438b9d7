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
