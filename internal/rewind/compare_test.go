package rewind

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/internal/progress"
	"tidemark/pkg/volume"
	"tidemark/pkg/volume/faultfs"
	"tidemark/pkg/wal"
)

// comparePair is a pair whose target tells nothing by its WAL: no checksums,
// no hint bits in it.
func comparePair(t testing.TB, o pgtest.Options) *pair {
	t.Helper()
	o.WALSegMB, o.Config = 1, append(o.Config, "wal_log_hints = off", "min_wal_size = 2MB")
	return newPair(t, o)
}

// loseWAL removes the target's WAL but for its last segment, and has the source
// recycle what it has of the time before.
func (p *pair) loseWAL() {
	p.t.Helper()
	c, err := volume.ReadControl(p.old.Dir)
	if err != nil {
		p.t.Fatal(err)
	}
	p.removeSegments(p.old.Dir, c.CheckPointCopy.Redo, c.XLogSegSize)
	first := p.new.SwitchWAL()
	p.recycleAll()
	if _, err := os.Stat(filepath.Join(p.new.Dir, "pg_wal", first)); err == nil {
		p.t.Fatal("the source keeps", first)
	}
}

// recycleAll has the source remove all WAL that a crash of it would not need.
func (p *pair) recycleAll() {
	p.new.Configure("wal_keep_size = 0")
	p.new.Reload()
	p.new.WaitSQL("SHOW wal_keep_size", "0")
	for range 3 {
		p.new.SwitchWAL()
		for _, f := range p.followers {
			f.WaitFor(p.new)
		}
		p.new.Exec("CHECKPOINT")
	}
}

func (p *pair) keepWAL() {
	p.new.Configure("wal_keep_size = 256MB")
	p.new.Reload()
	p.new.WaitSQL("SHOW wal_keep_size", "256MB")
}

func (p *pair) removeSegments(dir string, before wal.LSN, size wal.SegmentSize) {
	p.t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "pg_wal", "0*"))
	if err != nil {
		p.t.Fatal(err)
	}
	for _, name := range names {
		f, ok := wal.ParseFileName(filepath.Base(name))
		if n, isSegment := f.Number(size); ok && isSegment && n < size.Number(before) {
			if err := os.Remove(name); err != nil {
				p.t.Fatal(err)
			}
		}
	}
}

func (p *pair) compareOptions() Options {
	o := p.options()
	o.Compare = true
	return o
}

// TestCompareLive: the WAL is gone on both sides, the target crashed, it has
// neither checksums nor hint bits in its WAL, and the source works on.
func TestCompareLive(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		p := comparePair(t, pgtest.Options{Major: major})
		p.diverge()
		p.old.Exec("CHECKPOINT")
		p.old.Kill()
		p.new.PgbenchInit(1)
		p.loseWAL()
		before := tree(t, p.old.Dir)
		if _, err := Run(t.Context(), Options{Target: p.old.Dir, SourceConn: p.new.ConnInfo(), NoEnsureShutdown: true, DryRun: true}); err == nil ||
			!strings.Contains(exit.HintOf(err), "--compare") {
			t.Errorf("%v, hint %s", err, exit.HintOf(err))
		}
		rep, err := Check(t.Context(), p.compareOptions())
		if err != nil || !rep.Diverged || rep.Compared == nil || rep.Compared.DifferingBytes == 0 || rep.Blocks == 0 {
			t.Fatalf("%+v %v", rep, err)
		}
		dry := p.compareOptions()
		dry.DryRun = true
		plan := mustRun(t, dry)
		sameTree(t, before, p.old.Dir)
		stop := p.new.Pgbench()
		res := mustRun(t, p.compareOptions())
		p.keepWAL()
		stop()
		t.Logf("planned %d, moved %d (%+v) of %d bytes in %.2fs", plan.Bytes, res.Bytes, res.Compared, res.Totals.SourceBytes, res.Seconds)
		if !res.Standby || len(res.Warnings) > 0 || !res.Compared.WALHeld || res.Compared.DigestBytes > res.Compared.Bytes/400 {
			t.Errorf("%+v %+v", res, res.Compared)
		}
		if n := p.new.SQL("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'dbrewind%'"); n != "0" {
			t.Errorf("%s slots are left", n)
		}
		p.proveEqual(p.new)
	})
}

// TestCompareDirectory: what travels is what differs, to the byte.
func TestCompareDirectory(t *testing.T) {
	p := comparePair(t, pgtest.Options{})
	p.diverge()
	p.old.Stop()
	p.loseWAL()
	p.new.Stop()
	o := p.compareOptions()
	o.SourceConn, o.SourceDir, o.WriteRecoveryConf, o.DryRun = "", p.new.Dir, false, true
	plan := mustRun(t, o)
	for _, a := range plan.Plan.Actions {
		if a.Kind == blockcopy.CopyBlocks {
			provesDiffering(t, p, a)
		}
	}
	before, source := tree(t, p.old.Dir), tree(t, p.new.Dir)
	o.DryRun = false
	res := mustRun(t, o)
	if res.Bytes != plan.Bytes || res.Totals.PatchedBytes < res.Compared.DifferingBytes {
		t.Errorf("moved %d bytes, planned %d: %+v", res.Bytes, plan.Bytes, res.Compared)
	}
	sameTree(t, source, p.new.Dir)
	if _, err := Undo(t.Context(), UndoOptions{Target: p.old.Dir}); err != nil {
		t.Fatal(err)
	}
	sameTree(t, before, p.old.Dir)
	mustRun(t, o)
	p.new.Start()
	p.old.Follow(p.new)
	p.old.AppendFile("standby.signal", "")
	p.proveEqual(p.new)
}

// provesDiffering shows that each block of an action is another on both sides.
func provesDiffering(t *testing.T, p *pair, a blockcopy.Action) {
	t.Helper()
	mine, theirs := readFile(t, filepath.Join(p.old.Dir, a.Path)), readFile(t, filepath.Join(p.new.Dir, a.Path))
	for _, s := range a.Spans {
		for off := s.Offset; off < s.Offset+s.Length; off += 8192 {
			end := min(off+8192, s.Offset+s.Length)
			if mine[off:end] == theirs[off:end] {
				t.Errorf("%s: the block at %d is the same and would travel", a.Path, off)
			}
		}
	}
}

// TestCompareStandbySource compares with a standby of the new primary.
func TestCompareStandbySource(t *testing.T) {
	p := comparePair(t, pgtest.Options{})
	third := p.old.Standby(pgtest.StandbyOptions{Name: "third"})
	third.WaitFor(p.old)
	p.new.Promote()
	third.Follow(p.new)
	third.WaitFor(p.new)
	p.followers = append(p.followers, third)
	p.write()
	third.WaitFor(p.new)
	p.old.Stop()
	p.loseWAL()
	p.keepWAL()
	third.WaitFor(p.new)
	third.Exec("CHECKPOINT")
	o := p.compareOptions()
	o.SourceConn = third.ConnInfo()
	res := mustRun(t, o)
	if !res.Compared.WALHeld {
		t.Errorf("%+v", res.Compared)
	}
	p.proveEqual(p.new)
}

// TestCompareInterrupted cuts a run by comparison off, undoes it, cuts it off
// again and goes on.
func TestCompareInterrupted(t *testing.T) {
	p := comparePair(t, pgtest.Options{})
	p.diverge()
	p.old.Stop()
	p.loseWAL()
	p.keepWAL()
	before := tree(t, p.old.Dir)
	undo := UndoOptions{Target: p.old.Dir}
	cut := func(at func(faultfs.Op) error) {
		t.Helper()
		o := p.compareOptions()
		o.fs, o.Jobs = faultfs.Wrap(volume.OS, at), 1
		if _, err := Run(t.Context(), o); exit.CodeOf(err) != exit.Partial {
			t.Fatal(err)
		}
		p.refusesToStart()
	}
	cut(faultfs.StopAt(400))
	if _, err := Undo(t.Context(), undo); err != nil {
		t.Fatal(err)
	}
	sameTree(t, before, p.old.Dir)
	cut(func(op faultfs.Op) error { // all that was planned is copied
		if strings.Contains(op.Path, "standby.signal") {
			return syscall.ENOSPC
		}
		return nil
	})
	pending, err := blockcopy.Pending(volume.OS, p.old.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if rep, err := Check(t.Context(), p.compareOptions()); err != nil || rep.Pending == "" {
		t.Fatalf("%+v %v", rep, err)
	}
	// The command that goes on need not say --compare again.
	res := mustRun(t, p.options())
	if !res.Resumed || res.Skipped == 0 || res.Skipped != pending.DoneBytes {
		t.Errorf("%d bytes were durable: %+v", pending.DoneBytes, res)
	}
	if _, err := Undo(t.Context(), undo); err != nil {
		t.Fatal(err)
	}
	sameTree(t, before, p.old.Dir)
	mustRun(t, p.compareOptions())
	p.proveEqual(p.new)
}

// TestCompareDamagedStandby: a standby on the source's own history that was
// damaged by hand becomes whole again, and little travels.
func TestCompareDamagedStandby(t *testing.T) {
	p := comparePair(t, pgtest.Options{})
	p.old, p.new = p.new, p.old
	p.new.Exec("CHECKPOINT")
	table, index := p.new.SQL("SELECT pg_relation_filepath('t')"), p.new.SQL("SELECT pg_relation_filepath('t_pkey')")
	dropped := p.new.SQL("SELECT pg_relation_filepath('grows')")
	p.new.Exec("INSERT INTO grows VALUES (1)")
	p.old.WaitFor(p.new)
	p.old.Stop()
	p.keepWAL()
	heap := []byte(readFile(t, filepath.Join(p.old.Dir, table)))
	heap[8192*3+4000]++
	copy(heap[8192*100:], bytes.Repeat([]byte{0}, 8192))
	for name, data := range map[string][]byte{table: heap, index: []byte(readFile(t, filepath.Join(p.old.Dir, index)))[:8192*5], "base/1/99999": heap} {
		if err := os.WriteFile(filepath.Join(p.old.Dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(p.old.Dir, dropped)); err != nil {
		t.Fatal(err)
	}
	res := mustRun(t, p.compareOptions())
	if _, err := os.Stat(filepath.Join(p.old.Dir, "base/1/99999")); err == nil {
		t.Error("a file that the source does not have is left")
	}
	t.Logf("%+v %+v", res.Compared, res.Totals)
	if res.Compared.DifferingBytes > 1<<20 {
		t.Errorf("much differs: %+v", res.Compared)
	}
	p.proveEqual(p.new)
}

// TestCompareLeastPrivilege: a role with a source's privileges suffices; it
// cannot hold WAL.
func TestCompareLeastPrivilege(t *testing.T) {
	p := comparePair(t, pgtest.Options{})
	p.new.Promote()
	p.new.Exec(`CREATE ROLE rewinder LOGIN;
		GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean),
			pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean) TO rewinder`)
	p.write()
	p.old.Stop()
	p.loseWAL()
	o := p.compareOptions()
	o.SourceConn, o.WriteRecoveryConf = p.new.ConnInfo("user=rewinder"), false
	// The source recycles what it writes meanwhile: that is found out, and
	// the way out is to keep WAL and to start over.
	before := tree(t, p.old.Dir)
	o.Progress = onPhase{"finishing", func() {
		p.new.Exec("INSERT INTO grows SELECT generate_series(1, 100000)")
		p.recycleAll()
	}}
	if _, err := Run(t.Context(), o); exit.CodeOf(err) != exit.Partial || !strings.Contains(err.Error(), "recycled") {
		t.Fatal(err)
	}
	p.refusesToStart()
	if _, err := Undo(t.Context(), UndoOptions{Target: p.old.Dir}); err != nil {
		t.Fatal(err)
	}
	sameTree(t, before, p.old.Dir)
	p.keepWAL()
	o.Progress = nil
	if res := mustRun(t, o); res.Compared.WALHeld {
		t.Error("the role holds WAL")
	}
	p.old.Follow(p.new)
	p.old.AppendFile("standby.signal", "")
	p.proveEqual(p.new)
}

// onPhase does something when a phase begins.
type onPhase struct {
	name string
	do   func()
}

func (o onPhase) Phase(name string, _ int64, _ progress.Unit) {
	if name == o.name {
		o.do()
	}
}
func (onPhase) Grow(int64)          {}
func (onPhase) Add(int64)           {}
func (onPhase) Note(string, ...any) {}
