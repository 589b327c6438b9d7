package recovery_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/internal/recovery"
	"tidemark/pkg/volume"
	"tidemark/pkg/volume/faultfs"
)

// TestKilledRestore kills a restore in the middle: the server refuses what is
// there, and the same command goes on without copying again what is durable.
func TestKilledRestore(t *testing.T) {
	s := newSite(t, pgtest.Options{WALSegMB: 1})
	s.PgbenchInit(10)
	s.Exec("CREATE TABLE t AS SELECT generate_series(1, 1000) i")
	s.backup()
	s.archive()
	dir := s.target("killed")
	args := []string{"restore", "--repo", s.dir, "-D", dir, "--jobs", "1", "--archive", "off", "--json"}
	cmd := exec.Command(pgtest.Bin("dbrecover"), args...)
	s.must(cmd.Start())
	killed := pgtest.Wait(t, func() bool {
		p, err := blockcopy.Pending(volume.OS, dir)
		return err == nil && p != nil && p.DoneBytes > 0
	})
	s.must(cmd.Process.Signal(syscall.SIGKILL))
	if err := cmd.Wait(); err == nil || !killed {
		t.Fatal("the restore was over before it could be killed")
	}
	if _, err := volume.ReadTombstone(volume.OS, dir); err != nil {
		t.Fatalf("an unfinished restore without a tombstone: %v", err)
	}
	r := pgtest.Run(t, "dbrecover", "run", "-D", dir, "--to", "immediate", "--repo", s.dir)
	if r.Code != int(exit.Refused) || !strings.Contains(r.Stderr, "other options") {
		t.Errorf("another target over an unfinished restore: %d %s", r.Code, r.Stderr)
	}
	var doc recovery.RestoreResult
	s.must(json.Unmarshal([]byte(pgtest.MustRun(t, "dbrecover", args...)), &doc))
	c := doc.Copy
	if !c.Resumed || c.SkippedBytes == 0 || c.FetchedBytes+c.SkippedBytes != c.Totals.Bytes {
		t.Errorf("not resumed: fetched %d, skipped %d of %d bytes", c.FetchedBytes, c.SkippedBytes, c.Totals.Bytes)
	}
	pgtest.MustRun(t, "dbrecover", "run", "-D", dir)
	if got := rows(t, dir); got != "1000|1000" {
		t.Errorf("the table holds %s", got)
	}
}

// TestFaultyRestore makes operations of the file system fail all along a
// restore, for good or for once: what is left cannot start, says how to go on,
// and the restore goes on.
func TestFaultyRestore(t *testing.T) {
	s := newSite(t, pgtest.Options{WALSegMB: 1})
	s.Exec("CREATE TABLE t AS SELECT generate_series(1, 1000) i")
	s.backup()
	s.archive()
	restore := func(dir string, fsys volume.FS) error {
		r, err := recovery.PrepareRestore(t.Context(), recovery.RestoreOptions{Cluster: s.cluster, DataDir: dir, FS: fsys,
			Program: pgtest.Bin("dbrecover"), Command: "dbrecover restore again", Request: recovery.Request{Timeline: "latest"}})
		if err != nil {
			return err
		}
		_, err = r.Run(t.Context())
		return err
	}
	counter := faultfs.Wrap(volume.OS, nil)
	s.must(restore(s.target("whole"), counter))
	total := counter.Count()
	for i, inject := range []func(int) func(faultfs.Op) error{
		faultfs.StopAt,
		func(n int) func(faultfs.Op) error { return faultfs.FailAt(n, syscall.ENOSPC) },
	} {
		points := []int{1, 3, total / 2, total - 60, total - 12, total - 4}
		if i == 1 {
			points = []int{20, total / 2, total - 12}
		}
		for _, n := range points {
			dir := s.target("f" + string(rune('a'+i)) + fmt.Sprint(n))
			err := restore(dir, faultfs.Wrap(volume.OS, inject(n)))
			if err == nil {
				continue // a fault that was passed over, or on the way out
			}
			if i == 1 && !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("operation %d of %d: the cause is lost: %v", n, total, err)
			}
			_, stone := volume.ReadTombstone(volume.OS, dir)
			_, control := volume.ReadControl(dir)
			_, record := recovery.ReadRecord(volume.OS, dir)
			if stone != nil && control == nil && record != nil {
				t.Errorf("operation %d of %d: a server could start on what is left", n, total)
			}
			if stone == nil && exit.CodeOf(err) != exit.Partial && exit.CodeOf(err) != exit.Failed {
				t.Errorf("operation %d of %d: code %d: %v", n, total, exit.CodeOf(err), err)
			}
			if err := restore(dir, volume.OS); err != nil {
				if entries, _ := os.ReadDir(dir); exit.CodeOf(err) == exit.Refused && stone != nil && control == nil {
					continue // it was whole
				} else {
					t.Errorf("operation %d of %d: does not go on: %v (%d entries)", n, total, err, len(entries))
				}
			}
			if _, err := os.Stat(filepath.Join(dir, "tidemark")); err == nil {
				t.Errorf("operation %d of %d: the journal is left", n, total)
			}
		}
	}
}

// TestCorruptBackup names the damaged object, leaves the directory refusing to
// start, and goes on when the object is mended.
func TestCorruptBackup(t *testing.T) {
	s := newSite(t, pgtest.Options{WALSegMB: 1})
	s.Exec("CREATE TABLE t AS SELECT generate_series(1, 1000) i")
	s.backup()
	s.archive()
	packs, err := filepath.Glob(filepath.Join(s.dir, "*", "packs", "*", "*.zst"))
	if err != nil || len(packs) == 0 {
		t.Fatalf("no packs: %v", err)
	}
	good, err := os.ReadFile(packs[0])
	s.must(err)
	bad := append([]byte(nil), good...)
	for i := len(bad) / 4; i < len(bad)/2; i++ {
		bad[i] ^= 0x55
	}
	s.must(os.Chmod(packs[0], 0o600))
	s.must(os.WriteFile(packs[0], bad, 0o600))
	dir := s.target("corrupt")
	args := []string{"restore", "--repo", s.dir, "-D", dir, "--archive", "off"}
	r := pgtest.Run(t, "dbrecover", args...)
	name := strings.TrimPrefix(packs[0], s.dir+"/")
	if r.Code != int(exit.Partial) || !strings.Contains(r.Stderr, name) || !strings.Contains(r.Stderr, "hint:") {
		t.Errorf("code %d, %s is not named: %s", r.Code, name, r.Stderr)
	}
	// Which files the restore came to is chance; this one must not be what keeps the server from starting.
	s.must(os.WriteFile(filepath.Join(dir, "PG_VERSION"), fmt.Appendln(nil, s.Major), 0o600))
	if err := pgtest.Attach(t, "corrupt", dir).TryStart(); err == nil {
		t.Error("a server started on half a restore")
	}
	s.must(os.WriteFile(packs[0], good, 0o600))
	pgtest.MustRun(t, "dbrecover", args...)
}
