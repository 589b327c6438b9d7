package rewind

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/internal/postgres"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

func TestLivePrimary(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		p := newPair(t, pgtest.Options{Major: major})
		p.diverge()
		p.old.Stop()
		before := tree(t, p.old.Dir)
		dry := p.options()
		dry.DryRun = true
		plan := mustRun(t, dry)
		sameTree(t, before, p.old.Dir)
		res := mustRun(t, p.options())
		t.Logf("planned %d, moved %d of %d bytes in %.2fs; %s", plan.Bytes, res.Bytes, res.Totals.SourceBytes, res.Seconds, res.Reason)
		if !res.Diverged || !res.Standby || len(res.Warnings) > 0 {
			t.Errorf("%+v", res)
		}
		conf := readFile(t, filepath.Join(p.old.Dir, "postgresql.conf"))
		if conf != strings.TrimPrefix(before["postgresql.conf"], "-rw-------") {
			t.Error("the target's own configuration was changed")
		}
		again := mustRun(t, p.options())
		if again.Diverged || again.Bytes != 0 {
			t.Errorf("a second run: %+v", again)
		}
		p.proveEqual(p.new)
	})
}

func readFile(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestDirectorySource(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		p := newPair(t, pgtest.Options{Major: major})
		p.diverge()
		p.old.Stop()
		p.new.Stop()
		before := tree(t, p.new.Dir)
		o := p.options()
		o.SourceConn, o.SourceDir, o.WriteRecoveryConf = "", p.new.Dir, false
		res := mustRun(t, o)
		if !res.Diverged || res.Standby || len(res.Warnings) != 1 {
			t.Errorf("%+v", res)
		}
		sameTree(t, before, p.new.Dir)
		p.new.Start()
		p.old.Follow(p.new)
		p.old.AppendFile("standby.signal", "")
		p.proveEqual(p.new)
	})
}

// TestStandbySource rewinds to a standby of the new primary, and follows it.
func TestStandbySource(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		p := newPair(t, pgtest.Options{Major: major})
		third := p.old.Standby(pgtest.StandbyOptions{Name: "third"})
		third.WaitFor(p.old)
		p.new.Promote()
		third.Follow(p.new)
		third.WaitFor(p.new)
		p.write()
		third.WaitFor(p.new)
		p.old.Stop()
		o := p.options()
		o.SourceConn = third.ConnInfo()
		mustRun(t, o)
		p.proveEqual(p.new)
	})
}

// TestCrashedTarget: kill -9 of the old primary, under a running transaction.
func TestCrashedTarget(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		p := newPair(t, pgtest.Options{Major: major})
		p.diverge()
		conn := p.old.Conn()
		if _, err := conn.Exec(t.Context(), "BEGIN; UPDATE t SET v = 'open'"); err != nil {
			t.Fatal(err)
		}
		p.old.Exec("INSERT INTO grows VALUES (1)")
		p.old.Kill()
		before := tree(t, p.old.Dir)
		rep, err := Check(t.Context(), p.options())
		if err != nil || !rep.Diverged {
			t.Fatal(rep, err)
		}
		sameTree(t, before, p.old.Dir)
		o := p.options()
		o.NoEnsureShutdown = true
		if _, err := Run(t.Context(), o); exit.CodeOf(err) != exit.Refused {
			t.Fatal(err)
		}
		mustRun(t, p.options())
		p.proveEqual(p.new)
	})
}

// TestCrashedStandbyTarget: the target is a standby that crashed after it
// replayed WAL that the new primary never had.
func TestCrashedStandbyTarget(t *testing.T) {
	p := newPair(t, pgtest.Options{})
	third := p.old.Standby(pgtest.StandbyOptions{Name: "third"})
	third.WaitFor(p.old)
	p.diverge()
	third.WaitFor(p.old)
	p.old.Stop()
	third.Kill()
	o := p.options()
	o.Target = third.Dir
	mustRun(t, o)
	if _, err := os.Stat(filepath.Join(third.Dir, "standby.signal")); err != nil {
		t.Error(err)
	}
	third.Configure("primary_slot_name = ''")
	p.old = third
	p.proveEqual(p.new)
}

// TestSameTimelineOtherFork: both sides are on timeline 2, and each means
// another one. pg_rewind finds nothing to do here.
func TestSameTimelineOtherFork(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		p := newPair(t, pgtest.Options{Major: major})
		third := p.old.Standby(pgtest.StandbyOptions{Name: "third"})
		third.WaitFor(p.old)
		p.new.Promote()
		p.new.Exec("INSERT INTO t SELECT g, 'kept' FROM generate_series(100001, 101000) g")
		p.old.Exec("INSERT INTO t SELECT g, 'old' FROM generate_series(200001, 200010) g")
		third.WaitFor(p.old)
		p.old.Stop()
		third.Promote()
		third.Exec("INSERT INTO t SELECT g, 'lost' FROM generate_series(300001, 301000) g")
		third.Stop()
		third.Configure("primary_slot_name = ''")
		p.old = third
		res := mustRun(t, p.options())
		if !res.Diverged || res.Fork.Timeline != 1 || res.Target.Timeline != 2 || res.Source.Timeline != 2 {
			t.Errorf("%+v", res.Divergence)
		}
		p.proveEqual(p.new)
	})
}

// TestNoHistory: a standby that was opened by removing standby.signal has no
// history file; only the WAL itself shows that it went its own way.
func TestNoHistory(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		p := newPair(t, pgtest.Options{Major: major})
		p.new.Stop()
		if err := os.Remove(filepath.Join(p.new.Dir, "standby.signal")); err != nil {
			t.Fatal(err)
		}
		p.new.Start()
		p.old.Exec("CREATE TABLE lost AS SELECT generate_series(1, 100000) AS i")
		p.new.Exec("CREATE TABLE kept AS SELECT generate_series(1, 200000) AS i; CHECKPOINT")
		p.old.Stop()
		res := mustRun(t, p.options())
		if !res.Diverged || res.Fork.Timeline != 1 || res.Fork.LSN == 0 {
			t.Errorf("%+v", res.Divergence)
		}
		p.proveEqual(p.new)
	})
}

// TestRecentlyPromoted: the new primary's pg_control still shows the old
// timeline, because its first checkpoint takes its time.
func TestRecentlyPromoted(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		p := newPair(t, pgtest.Options{Major: major, Config: []string{"checkpoint_timeout = 30min", "checkpoint_completion_target = 0.9", "bgwriter_lru_maxpages = 0"}})
		p.old.Exec("UPDATE t SET v = 'dirty'")
		p.new.WaitFor(p.old)
		p.new.Promote()
		p.old.Exec("UPDATE t SET v = 'lost' WHERE i < 1000")
		p.old.Stop()
		c, err := volume.ReadControl(p.new.Dir)
		if err != nil {
			t.Fatal(err)
		}
		if c.CheckPointCopy.ThisTimeLineID != 1 {
			t.Fatal("not the case: the first checkpoint of the new timeline is complete already")
		}
		res := mustRun(t, p.options())
		if !res.Diverged || res.Source.Timeline != 2 {
			t.Errorf("%+v", res.Divergence)
		}
		p.proveEqual(p.new)
	})
}

// TestSpreadCheckpoint: the redo point of the last common checkpoint lies
// segments before its record. All WAL from there on must stay.
func TestSpreadCheckpoint(t *testing.T) {
	p := newPair(t, pgtest.Options{WALSegMB: 1})
	stop := p.old.Churn("UPDATE t SET v = repeat('z', 200)")
	spread := pgtest.Wait(t, func() bool {
		p.old.Exec("CHECKPOINT")
		return p.old.SQL("SELECT checkpoint_lsn - redo_lsn > 2000000 FROM pg_control_checkpoint()") == "t"
	})
	stop()
	if !spread {
		t.Fatal("not the case: no checkpoint began 2 MB before its record")
	}
	p.new.WaitFor(p.old)
	p.new.Promote()
	p.old.Exec("INSERT INTO grows SELECT generate_series(1, 1000)")
	p.old.Stop()
	res := mustRun(t, p.options())
	size := wal.SegmentSize(1 << 20)
	if size.Number(res.Checkpoint.Redo) == size.Number(res.Checkpoint.LSN) {
		t.Errorf("not the case: %+v", res.Checkpoint)
	}
	p.proveEqual(p.new)
}

// TestTablespaceAndOddNames: an own tablespace on each side, and files with
// names that SQL and shells trip over.
func TestTablespaceAndOddNames(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		p := &pair{t: t, old: pgtest.New(t, pgtest.Options{Major: major, Name: "old", Checksums: true, Config: config})}
		p.old.Exec("CREATE TABLESPACE sp LOCATION " + postgres.QuoteLiteral(p.old.TempDir("my space")))
		p.old.Exec("CREATE TABLE in_space TABLESPACE sp AS SELECT generate_series(1, 10000) AS i; CREATE TABLE t (i int)")
		p.new = p.old.Standby(pgtest.StandbyOptions{Name: "new"})
		p.new.WaitFor(p.old)
		p.new.Promote()
		p.old.Exec("CREATE TABLE lost TABLESPACE sp AS SELECT 1 AS i; UPDATE in_space SET i = -i WHERE i < 100")
		p.new.Exec("CREATE TABLE kept TABLESPACE sp AS SELECT 1 AS i; UPDATE in_space SET i = i + 1 WHERE i > 9000")
		p.old.Stop()
		odd := `odd 'dir"; DROP`
		for dir, name := range map[string]string{p.new.Dir: "kept \\ file", p.old.Dir: "gone $file"} {
			if err := os.MkdirAll(filepath.Join(dir, odd), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, odd, name), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		mustRun(t, p.options())
		if readFile(t, filepath.Join(p.old.Dir, odd, "kept \\ file")) != "x" {
			t.Error("not copied")
		}
		if _, err := os.Stat(filepath.Join(p.old.Dir, odd, "gone $file")); err == nil {
			t.Error("not removed")
		}
		p.proveEqual(p.new)
	})
}

// TestNothingToRewind: a primary that was stopped before its standby was
// promoted, and the settings of a standby that are wanted all the same.
func TestNothingToRewind(t *testing.T) {
	p := newPair(t, pgtest.Options{})
	p.old.Stop()
	p.new.Promote()
	p.new.Exec("INSERT INTO grows VALUES (1)")
	res := mustRun(t, p.options())
	if res.Diverged || !res.Standby {
		t.Errorf("%+v", res)
	}
	p.proveEqual(p.new)
}

// TestAheadOnTheSameTimeline: the source is a standby that lags.
func TestAheadOnTheSameTimeline(t *testing.T) {
	p := newPair(t, pgtest.Options{})
	p.new.Exec("SELECT pg_wal_replay_pause()")
	p.old.Exec("INSERT INTO grows SELECT generate_series(1, 1000)")
	p.old.Stop()
	o := p.options()
	o.WriteRecoveryConf = false
	res := mustRun(t, o)
	if res.Diverged {
		t.Errorf("%+v", res)
	}
}

func TestGroupAccess(t *testing.T) {
	p := newPair(t, pgtest.Options{InitArgs: []string{"--allow-group-access"}})
	p.diverge()
	p.old.Stop()
	mustRun(t, p.options())
	err := volume.Walk(volume.OS, p.old.Dir, func(e volume.WalkEntry) error {
		if perm := e.Info.Mode().Perm(); e.IsRegular() && volume.Classify(e.Path) == volume.ClassRelMain && perm != 0o640 {
			t.Errorf("%s: %v", e.Path, perm)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	p.proveEqual(p.new)
}

// TestSymlinkedWAL: pg_wal is a link in the target and stays one.
func TestSymlinkedWAL(t *testing.T) {
	p := newPair(t, pgtest.Options{WALSegMB: 1})
	p.diverge()
	p.old.Stop()
	link, place := filepath.Join(p.old.Dir, "pg_wal"), filepath.Join(p.old.TempDir("elsewhere"), "wal")
	if err := os.Rename(link, place); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(place, link); err != nil {
		t.Fatal(err)
	}
	mustRun(t, p.options())
	if to, err := os.Readlink(link); err != nil || to != place {
		t.Error(to, err)
	}
	p.proveEqual(p.new)
}

// TestRestoreTargetWAL: the target's WAL since the fork is in its archive only.
func TestRestoreTargetWAL(t *testing.T) {
	p := newPair(t, pgtest.Options{WALSegMB: 1})
	archive := p.old.TempDir("archive")
	p.diverge()
	p.old.Configure("restore_command = 'cp " + archive + "/%f %p'")
	p.old.Stop()
	segments, err := filepath.Glob(filepath.Join(p.old.Dir, "pg_wal", "00000001*"))
	if err != nil || len(segments) < 4 {
		t.Fatal(segments, err)
	}
	c, err := volume.ReadControl(p.old.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range segments {
		if name := filepath.Base(s); name < wal.SegmentName(1, c.XLogSegSize.Number(c.CheckPoint), c.XLogSegSize) {
			if err := os.Rename(s, filepath.Join(archive, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, err = Run(t.Context(), p.options())
	if err == nil || !strings.Contains(err.Error(), "0000000100000000") || !strings.Contains(exit.HintOf(err), "restore-target-wal") {
		t.Fatal(err)
	}
	o := p.options()
	o.RestoreTargetWAL = true
	before := tree(t, p.old.Dir)
	if rep, err := Check(t.Context(), o); err != nil || !rep.Diverged || rep.Lost.Len() == 0 {
		t.Fatal(rep, err)
	}
	sameTree(t, before, p.old.Dir)
	mustRun(t, o)
	p.proveEqual(p.new)
}

// TestLeastPrivilege: the source's role has what the manual of pg_rewind asks
// for, and nothing else.
func TestLeastPrivilege(t *testing.T) {
	p := newPair(t, pgtest.Options{})
	p.new.Promote()
	p.new.Exec(`CREATE ROLE rewinder LOGIN;
		GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean),
			pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean) TO rewinder`)
	p.write()
	p.old.Stop()
	o := p.options()
	o.SourceConn, o.WriteRecoveryConf = p.new.ConnInfo("user=rewinder"), false
	mustRun(t, o)
	p.old.Follow(p.new)
	p.old.AppendFile("standby.signal", "")
	p.proveEqual(p.new)
}
