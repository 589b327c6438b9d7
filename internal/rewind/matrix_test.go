package rewind

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/pkg/volume"
	"tidemark/pkg/volume/faultfs"
)

// How many runs the crash matrix breaks off; read before pgtest clears the
// environment.
var killsCount = os.Getenv("TIDEMARK_KILLS")

// TestCrashMatrix breaks rewinds off at random operations: the process is
// killed with SIGKILL, every operation from one on fails as after a loss of
// power, or one fails as on a full disk. Each time the target is as it was, or
// its server refuses to start; the same run then ends with what an undisturbed
// one ends with, also when it is broken off again; and undo, itself broken off
// now and then, brings every byte back. Package blockcopy goes through each
// single operation, with unsynced writes lost, on a file system in memory.
func TestCrashMatrix(t *testing.T) {
	rounds := 6
	if killsCount != "" {
		var err error
		if rounds, err = strconv.Atoi(killsCount); err != nil {
			t.Fatal(err)
		}
	}
	seed := rand.Uint64N(1_000_000)
	if seedWanted != "" {
		seed = seeds(t)[0]
	}
	t.Logf("TIDEMARK_SEED=%d", seed)
	m := &matrix{pair: newPair(t, pgtest.Options{WALSegMB: 1}), rng: rand.New(rand.NewPCG(seed, 7)), seen: map[string]int{}}
	m.diverge()
	m.old.Exec("CHECKPOINT")
	m.old.Stop()
	m.new.Exec("CHECKPOINT")
	m.reference()
	for round := range rounds {
		m.round(round)
	}
	t.Logf("%d rounds: %v", rounds, m.seen)
	mustRun(t, m.options())
	m.proveEqual(m.new)
}

type matrix struct {
	*pair
	rng    *rand.Rand
	before map[string]string // the target, before
	after  map[string]string // and after an undisturbed run
	ops    int               // of such a run
	took   time.Duration
	seen   map[string]int

	running string // the segment that the source writes: it may grow
}

// sums is a directory's files by their hashes, without what is Tidemark's own
// and what tells the time.
func (m *matrix) sums() map[string]string {
	out := map[string]string{}
	err := volume.Walk(volume.OS, m.old.Dir, func(e volume.WalkEntry) error {
		if volume.InOwnDir(e.Path) || strings.HasSuffix(e.Path, volume.TempSuffix) {
			return nil
		}
		out[e.Path] = e.Info.Mode().String()
		if e.IsRegular() {
			data, err := os.ReadFile(filepath.Join(m.old.Dir, e.Path))
			out[e.Path] += fmt.Sprintf("%x", sha256.Sum256(data))
			return err
		}
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// reference runs once without a disturbance, and takes it back.
func (m *matrix) reference() {
	m.before = m.sums()
	o := m.options()
	counter := faultfs.Wrap(volume.OS, nil)
	o.fs = counter
	begin := time.Now()
	mustRun(m.t, o)
	m.took, m.ops, m.after = time.Since(begin), counter.Count(), m.sums()
	for name := range m.after {
		if strings.HasPrefix(name, "pg_wal/00000002") && !strings.HasSuffix(name, ".history") {
			m.running = max(m.running, name)
		}
	}
	m.undo("the undisturbed run")
}

func (m *matrix) round(n int) {
	t := m.t
	t.Helper()
	how := m.breakOff()
	when := fmt.Sprintf("round %d, %s", n, how)
	state := m.state(when)
	m.seen[state]++
	if state == blockcopy.Partial.String() && m.rng.IntN(3) == 0 {
		m.breakOff() // again
		m.state(when + ", and once more")
	}
	if m.rng.IntN(2) == 0 {
		if _, err := Run(t.Context(), m.options()); err != nil {
			t.Fatalf("%s: going on: %v", when, err)
		}
		m.same(m.after, when+", gone on to the end", volume.ControlPath, volume.BackupLabelFile, m.running)
		m.seen["gone on"]++
	}
	m.undo(when)
}

// breakOff begins or goes on with a rewind and does not let it end, or only
// just. It says how.
func (m *matrix) breakOff() string {
	at := m.rng.IntN(m.ops)
	o := m.options()
	switch m.rng.IntN(3) {
	case 0:
		o.fs = faultfs.Wrap(volume.OS, faultfs.StopAt(at))
		_, err := Run(m.t.Context(), o)
		return fmt.Sprintf("stopped at operation %d of %d (%v)", at, m.ops, err)
	case 1:
		o.fs = faultfs.Wrap(volume.OS, faultfs.FailAt(at, syscall.ENOSPC))
		_, err := Run(m.t.Context(), o)
		if err != nil && (!errors.Is(err, syscall.ENOSPC) || exit.CodeOf(err) == exit.OK) {
			m.t.Errorf("full disk at operation %d: %v", at, err)
		}
		return fmt.Sprintf("disk full at operation %d of %d (%v)", at, m.ops, err)
	}
	after := time.Duration(m.rng.Int64N(int64(m.took + 100*time.Millisecond)))
	cmd := exec.Command(pgtest.Bin("dbrewind"), "run", "-D", m.old.Dir, "--source-server", m.new.ConnInfo(), "-R")
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	timer := time.AfterFunc(after, func() { cmd.Process.Kill() })
	defer timer.Stop()
	err := cmd.Wait()
	return fmt.Sprintf("killed after %v (%v)", after, err)
}

// state judges a target on which a run was broken off.
func (m *matrix) state(when string) string {
	pending, err := blockcopy.Pending(volume.OS, m.old.Dir)
	if err != nil {
		m.t.Fatalf("%s: %v", when, err)
	}
	switch {
	case pending != nil && pending.State == blockcopy.Partial:
		m.pair.refusesToStart()
		return pending.State.String()
	case pending != nil && pending.State != blockcopy.Planned:
		return "whole"
	}
	if kept, err := blockcopy.Undoable(volume.OS, m.old.Dir); err == nil && kept != nil {
		return "whole"
	}
	m.same(m.before, when+", before the first change")
	return "untouched"
}

// undo takes back what there is, now and then in two goes.
func (m *matrix) undo(when string) {
	o := UndoOptions{Target: m.old.Dir, Command: "dbrewind undo"}
	if m.rng.IntN(3) == 0 {
		cmd := exec.Command(pgtest.Bin("dbrewind"), "undo", "-D", m.old.Dir)
		if err := cmd.Start(); err != nil {
			m.t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(m.rng.Int64N(int64(m.took))), func() { cmd.Process.Kill() })
		cmd.Wait()
		timer.Stop()
		m.seen["undo killed"]++
	}
	if _, err := Undo(m.t.Context(), o); err != nil && !strings.Contains(err.Error(), "nothing to undo") {
		m.t.Fatalf("%s: undo: %v", when, err)
	}
	m.same(m.before, when+", undone")
}

// same compares the target with what it should be.
func (m *matrix) same(want map[string]string, when string, but ...string) {
	m.t.Helper()
	got := m.sums()
	for _, name := range but {
		got[name] = want[name]
	}
	for name, sum := range want {
		if got[name] != sum {
			m.t.Errorf("%s: %s is not as it should be", when, name)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			m.t.Errorf("%s: %s should not be there", when, name)
		}
	}
	if m.t.Failed() {
		m.t.FailNow()
	}
}
