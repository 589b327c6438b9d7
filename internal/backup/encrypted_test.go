package backup_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"tidemark/internal/pgtest"
)

// TestEncryptedServer: a server archives into, and is backed up into, a
// repository that its host cannot read; with the secret key it is verified, and
// restored by dbrecover, up to the last commit.
func TestEncryptedServer(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	key := filepath.Join(base, "key.txt")
	if err := os.WriteFile(key, []byte(id.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TIDEMARK_STATE", filepath.Join(base, "state"))
	dir := filepath.Join(base, "repo")
	pgtest.MustRun(t, "dbbackup", "init", "--repo", dir, "--recipient", id.Recipient().String())
	n := pgtest.New(t, pgtest.Options{Checksums: true, Config: archiving(dir)})
	n.PgbenchInit(1)
	create(t, dir, n)
	n.Exec("CREATE TABLE t AS SELECT generate_series(1, 1000) AS id")
	second := create(t, dir, n)
	if second.Type != "incremental" || second.OldBlocks == 0 {
		t.Errorf("%+v", second)
	}
	n.Exec("INSERT INTO t VALUES (1001)")
	n.Exec("SELECT pg_switch_wal()")
	n.Stop()
	if r := pgtest.Run(t, "dbbackup", "verify", "--repo", dir, "--deep"); r.Code != 0 || !strings.Contains(r.Stdout, "Without --identity") {
		t.Errorf("without a key: %+v", r)
	}
	if r := pgtest.Run(t, "dbbackup", "verify", "--repo", dir, "--deep", "--identity", key); r.Code != 0 || !strings.Contains(r.Stdout, "Nothing is wrong") {
		t.Errorf("with the key: %+v", r)
	}
	target := filepath.Join(base, "restored")
	if r := pgtest.Run(t, "dbrecover", "restore", "--repo", dir, "-D", target); r.Code != 1 || !strings.Contains(r.Stderr, "--identity") {
		t.Errorf("restored without a key: %+v", r)
	}
	pgtest.MustRun(t, "dbrecover", "restore", "--repo", dir, "-D", target, "--identity", key, "--archive", "off")
	r := pgtest.Attach(t, "restored", target)
	r.Start()
	pgtest.Wait(t, func() bool { return r.SQL("SELECT pg_is_in_recovery()") == "f" })
	if got := r.SQL("SELECT count(*) FROM t"); got != "1001" {
		t.Errorf("%s rows", got)
	}
	if out, err := exec.Command("grep", "-rl", "pgbench_accounts", dir).Output(); err == nil {
		t.Errorf("in the clear: %s", out)
	}
}
