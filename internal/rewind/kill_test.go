package rewind

import (
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/pgtest"
	"tidemark/pkg/volume"
)

// TestKill kills the command with SIGKILL at random moments. Each time the
// target is as it was or refuses to start; the same command ends the work.
func TestKill(t *testing.T) {
	p := newPair(t, pgtest.Options{})
	p.diverge()
	p.old.Exec("CREATE TABLE big AS SELECT g, repeat('b', 500) FROM generate_series(1, 100000) g")
	p.new.Exec("CREATE TABLE big2 AS SELECT g, repeat('n', 500) FROM generate_series(1, 100000) g")
	p.old.Stop()
	before := tree(t, p.old.Dir)
	partial := 0
	for round := range 8 {
		cmd := exec.Command(pgtest.Bin("dbrewind"), "run", "-D", p.old.Dir, "--source-server", p.new.ConnInfo(), "-R", "-j", "1")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		if round%4 > 0 { // late enough to hurt
			pgtest.Wait(t, func() bool {
				_, err := os.Stat(filepath.Join(p.old.Dir, volume.OwnDir, "log"))
				return err == nil || len(done) > 0
			})
		}
		select {
		case <-time.After(time.Duration(rand.IntN(60)) * time.Millisecond):
			if err := cmd.Process.Kill(); err != nil {
				t.Log(err)
			}
			<-done
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("round %d: it came to its end, after %d kills with the target half done", round, partial)
			p.proveEqual(p.new)
			return
		}
		pending, err := blockcopy.Pending(volume.OS, p.old.Dir)
		if err != nil {
			t.Fatal(err)
		}
		if pending != nil && pending.State == blockcopy.Partial {
			partial++
			p.refusesToStart()
			continue
		}
		if kept, err := blockcopy.Undoable(volume.OS, p.old.Dir); err != nil || kept != nil && pending == nil {
			continue // it was killed after its end
		}
		if pending == nil || pending.State == blockcopy.Planned {
			after := tree(t, p.old.Dir)
			maps.DeleteFunc(after, func(name, _ string) bool {
				return strings.HasPrefix(name, volume.OwnDir) || strings.HasSuffix(name, volume.TempSuffix)
			})
			if !maps.Equal(before, after) {
				t.Fatalf("round %d: changed without a tombstone", round)
			}
		}
	}
	out := pgtest.MustRun(t, "dbrewind", "run", "-D", p.old.Dir, "--source-server", p.new.ConnInfo(), "-R")
	t.Logf("%d kills with the target half done; then: %s", partial, out)
	p.proveEqual(p.new)
}
