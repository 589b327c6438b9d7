package test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
)

// smallDisk is a file system of 24 MB that is mounted for this process alone,
// with one of 64 MB in its directory rescue; empty where that is not possible.
var smallDisk = os.Getenv("TIDEMARK_SMALL_DISK")

// mountSmallDisk runs the test binary again in a mount namespace of its own.
// Only root may: elsewhere the tests that need it are skipped.
func mountSmallDisk() {
	unshare, err := exec.LookPath("unshare")
	if os.Getuid() != 0 || smallDisk != "" || err != nil {
		return
	}
	const dir = "/mnt" // there on every machine, and covered in this namespace only
	const tmpfs = "mount -t tmpfs -o mode=1777,size="
	mount := tmpfs + "24m tmpfs " + dir + " && mkdir " + dir + "/rescue && " + tmpfs + "64m tmpfs " + dir + "/rescue"
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

// TestRescueFullDisk: the disk fills up in the middle of a rescue. Nothing is
// left on it, the target is as it was, and with room the same command succeeds.
func TestRescueFullDisk(t *testing.T) {
	if smallDisk == "" {
		t.Skip("a small file system can only be mounted by root")
	}
	old := pgtest.New(t, pgtest.Options{Name: "old", Checksums: true, WALSegMB: 1, Config: []string{"wal_keep_size = 64MB"}})
	old.Exec("CREATE TABLE small (i int PRIMARY KEY, v text); INSERT INTO small SELECT i, 'common' FROM generate_series(1, 1000) i; CREATE TABLE large (i int, v text)")
	next := old.Standby(pgtest.StandbyOptions{Name: "new"})
	next.WaitFor(old)
	next.Promote()
	// Values that were compressed take far more room as text: no estimate tells.
	old.Exec("DELETE FROM small WHERE i <= 10; INSERT INTO large SELECT i, repeat('large ', 200000) FROM generate_series(1, 16) i")
	old.Stop()
	before := fingerprint(t, old.Dir)
	disk := filepath.Join(smallDisk, "rescue")
	out, filler := filepath.Join(disk, "out"), filepath.Join(disk, "filler")
	rescue := func(out string) []string {
		return []string{"rescue", "-D", old.Dir, "--source-server", next.ConnInfo(), "--out", out}
	}
	untouched := func() {
		t.Helper()
		if _, err := os.Stat(out); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("something is left: %v", err)
		}
		if fingerprint(t, old.Dir) != before {
			t.Error("the target changed")
		}
	}
	t.Run("rows", func(t *testing.T) {
		if err := os.WriteFile(filler, make([]byte, 32<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		r := full(t, exit.Failed, "dbrewind", rescue(out)...)
		if !strings.Contains(r.Stderr, "large") || !strings.Contains(r.Stderr, "--out") {
			t.Error(r.Stderr)
		}
		untouched()
	})
	for _, sign := range []string{"rescue.incomplete", "server.tmp/PG_VERSION", "server.tmp/postmaster.pid", "postgres"} {
		t.Run(filepath.Base(sign), func(t *testing.T) { // somebody else takes what is left, from that sign on
			os.Remove(filler)
			stop, done := make(chan struct{}), make(chan struct{})
			go func() { defer close(done); fillFrom(filepath.Join(out, sign), filler, stop) }()
			r := pgtest.Run(t, "dbrewind", rescue(out)...)
			close(stop)
			<-done
			if r.Code == int(exit.OK) {
				t.Log("it was faster")
				os.RemoveAll(out)
				return
			}
			full := strings.Contains(strings.ToLower(r.Stderr), "no space left on device")
			early := strings.Contains(r.Stderr, "MB are needed in") // it was full by the time of the look
			if r.Code != int(exit.Failed) || !full && !early || !strings.Contains(r.Stderr, "\nhint: ") {
				t.Errorf("code %d: %s", r.Code, r.Stderr)
			}
			untouched()
		})
	}
	os.Remove(filler)
	for _, dir := range []string{out, disk} { // the latter is there, and stays
		pgtest.MustRun(t, "dbrewind", rescue(dir)...)
		for name, rows := range map[string]int{"small.deleted": 10, "large.inserted": 16} {
			data, err := os.ReadFile(filepath.Join(dir, "postgres", "public."+name+".copy"))
			if n := strings.Count(string(data), "\n"); err != nil || n != rows {
				t.Errorf("%s: %d rows: %v", name, n, err)
			}
		}
		if err := os.RemoveAll(out); err != nil {
			t.Fatal(err)
		}
		untouched()
	}
}

// fillFrom writes a file until its file system is full, and goes on until it
// is told to stop, from when a sign exists.
func fillFrom(sign, filler string, stop chan struct{}) {
	f, err := os.Create(filler)
	if err != nil {
		return
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for seen := false; ; {
		select {
		case <-stop:
			return
		case <-time.After(time.Millisecond): // between two looks
		}
		if _, err := os.Stat(sign); err == nil {
			seen = true
		}
		if !seen {
			continue
		}
		for err = nil; err == nil; { // to the last page
			_, err = f.Write(block)
		}
	}
}

// fingerprint is a hash of every file of a directory.
func fingerprint(t *testing.T, dir string) string {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintln(h, path, len(data))
		h.Write(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(h.Sum(nil))
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
