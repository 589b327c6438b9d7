package test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
)

// smallDisk is a file system of 24 MB that is mounted for this process alone;
// empty where that is not possible.
var smallDisk = os.Getenv("TIDEMARK_SMALL_DISK")

// mountSmallDisk runs the test binary again in a mount namespace of its own.
// Only root may: elsewhere the tests that need it are skipped.
func mountSmallDisk() {
	unshare, err := exec.LookPath("unshare")
	if os.Getuid() != 0 || smallDisk != "" || err != nil {
		return
	}
	const dir = "/mnt" // there on every machine, and covered in this namespace only
	mount := "mount -t tmpfs -o size=24m,mode=1777 tmpfs " + dir
	if exec.Command(unshare, "-m", "sh", "-c", mount).Run() != nil {
		return
	}
	argv := append([]string{unshare, "-m", "sh", "-c", mount + ` && exec "$0" "$@"`}, os.Args...)
	_ = syscall.Exec(unshare, argv, append(os.Environ(), "TIDEMARK_SMALL_DISK="+dir))
}

// TestFullDisk gives each copy less room than it needs: where that can be told
// beforehand nothing is touched, otherwise the disk fills up in the middle.
func TestFullDisk(t *testing.T) {
	if smallDisk == "" {
		t.Skip("a small file system can only be mounted by root")
	}
	node := pgtest.New(t, pgtest.Options{Checksums: true})
	node.PgbenchInit(3)
	t.Run("seed", func(t *testing.T) {
		dir := filepath.Join(smallDisk, "standby")
		t.Cleanup(func() { os.RemoveAll(dir) })
		refused(t, dir, "dbrepl", "seed", "-D", dir, "-d", node.ConnInfo())
	})
	t.Run("backup", func(t *testing.T) {
		repo := filepath.Join(smallDisk, "repo")
		t.Cleanup(func() { os.RemoveAll(repo) })
		pgtest.MustRun(t, "dbbackup", "init", "--repo", repo)
		// What pgbench writes compresses well; this does not.
		node.Exec("CREATE TABLE noise AS SELECT sha512(i::text::bytea) || sha512((-i)::text::bytea) AS b FROM generate_series(1, 300000) i")
		full(t, exit.Failed, "dbbackup", "create", "-d", node.ConnInfo(), "--repo", repo)
		if r := pgtest.Run(t, "dbbackup", "list", "--repo", repo, "--json"); strings.Contains(r.Stdout, `"id"`) {
			t.Errorf("half a backup is listed: %s", r.Stdout)
		}
	})
	t.Run("restore", func(t *testing.T) {
		repo := filepath.Join(t.TempDir(), "repo")
		pgtest.MustRun(t, "dbbackup", "init", "--repo", repo)
		pgtest.MustRun(t, "dbbackup", "create", "-d", node.ConnInfo(), "--repo", repo)
		dir := filepath.Join(smallDisk, "restored")
		t.Cleanup(func() { os.RemoveAll(dir) })
		refused(t, dir, "dbrecover", "restore", "-D", dir, "--repo", repo)
	})
	t.Run("push", func(t *testing.T) {
		name := node.SwitchWAL()
		repo := filepath.Join(smallDisk, "archive")
		t.Cleanup(func() { os.RemoveAll(repo) })
		pgtest.MustRun(t, "dbbackup", "init", "--repo", repo)
		if err := os.WriteFile(filepath.Join(smallDisk, "filler"), make([]byte, 32<<20), 0o600); err == nil {
			t.Fatal("the disk is larger than it should be")
		}
		full(t, exit.Failed, "dbbackup", "push", filepath.Join(node.Dir, "pg_wal", name), "-D", node.Dir, "--repo", repo)
		os.Remove(filepath.Join(smallDisk, "filler"))
		pgtest.MustRun(t, "dbbackup", "push", filepath.Join(node.Dir, "pg_wal", name), "-D", node.Dir, "--repo", repo)
	})
}

// refused expects a copy into dir to be refused before anything is written,
// with the space it needs and the space there is.
func refused(t *testing.T, dir, command string, args ...string) {
	t.Helper()
	r := pgtest.Run(t, command, args...)
	if r.Code != int(exit.Failed) && r.Code != int(exit.Refused) {
		t.Errorf("code %d, want a refusal", r.Code)
	}
	for _, want := range []string{" needs ", "MB left; nothing is changed", "\nhint: "} {
		if !strings.Contains(r.Stderr, want) {
			t.Errorf("no %q in %s", want, r.Stderr)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "global")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the refused %s left files in %s: %v", command, dir, err)
	}
}

// full expects a command to run out of space, with a code that is either this
// one or "failed".
func full(t *testing.T, code exit.Code, command string, args ...string) pgtest.Result {
	t.Helper()
	r := pgtest.Run(t, command, args...)
	if r.Code != int(code) && r.Code != int(exit.Failed) {
		t.Errorf("code %d, want %d", r.Code, code)
	}
	if !strings.Contains(r.Stderr, "no space left on device") || !strings.Contains(r.Stderr, "\nhint: ") {
		t.Errorf("no clear word about the full disk: %s", r.Stderr)
	}
	return r
}
