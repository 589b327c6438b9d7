package rewind

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/volume/faultfs"
	"tidemark/pkg/wal"
)

// TestPlanLeavesAlone: WAL up to the fork, version files, configuration, logs
// and slots are neither fetched nor removed, and what is equal does not travel.
func TestPlanLeavesAlone(t *testing.T) {
	p := newPair(t, pgtest.Options{WALSegMB: 1})
	p.diverge()
	p.old.Stop()
	for _, n := range []*pgtest.Node{p.old, p.new} {
		if err := os.MkdirAll(filepath.Join(n.Dir, "log"), 0o700); err != nil {
			t.Fatal(err)
		}
		n.AppendFile("log/"+n.Name+".log", "words")
	}
	o := p.options()
	o.DryRun = true
	res := mustRun(t, o)
	size := wal.SegmentSize(1 << 20)
	unequal := 0
	for _, a := range res.Plan.Actions {
		if a.Kind == blockcopy.Keep {
			continue
		}
		name := filepath.Base(a.Path)
		if f, ok := wal.ParseFileName(name); ok && f.Kind == wal.FileSegment && a.Kind == blockcopy.Copy && filepath.Dir(a.Path) == "pg_wal" {
			if n, _ := f.Number(size); n < size.Number(res.Fork.LSN) {
				t.Errorf("%s lies before the fork at %s and would travel", a.Path, res.Fork.LSN)
			}
		}
		if own(a.Path) || name == "PG_VERSION" && a.Kind != blockcopy.Remove && exists(filepath.Join(p.old.Dir, a.Path)) || volume.Classify(a.Path) == volume.ClassConfig {
			t.Errorf("%s %s", a.Kind, a.Path)
		}
		if a.Kind == blockcopy.Copy && volume.Classify(a.Path) == volume.ClassRelFork && exists(filepath.Join(p.old.Dir, a.Path)) {
			if readFile(t, filepath.Join(p.old.Dir, a.Path)) == readFile(t, filepath.Join(p.new.Dir, a.Path)) {
				unequal++
			}
		}
	}
	if unequal > 5 { // the source may write between the plan and this look
		t.Errorf("%d files that are equal would travel", unequal)
	}
	mustRun(t, p.options())
	if !exists(filepath.Join(p.old.Dir, "log", "old.log")) || exists(filepath.Join(p.old.Dir, "log", "new.log")) {
		t.Error("the target's logs are not its own any more")
	}
	p.proveEqual(p.new)
	if !exists(filepath.Join(p.old.Dir, "pg_replslot", "s_new", "state")) {
		t.Error("its replication slot is gone")
	}
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// TestOrderOfSyncs: data before the recovery settings, these before pg_control,
// pg_control before the label, each durable before the next; and nothing is
// synced that was not written.
func TestOrderOfSyncs(t *testing.T) {
	p := newPair(t, pgtest.Options{WALSegMB: 1})
	p.diverge()
	p.old.Stop()
	before := tree(t, p.old.Dir)
	o := p.options()
	recorder := faultfs.Wrap(volume.OS, nil)
	o.fs, o.NoUndo = recorder, true
	mustRun(t, o)
	ops := recorder.Ops()
	at := map[string]int{}
	for i, op := range ops {
		if op.Name == "rename" {
			at[strings.TrimPrefix(op.Path, p.old.Dir+"/")] = i
		}
	}
	steps := []string{"standby.signal", "postgresql.auto.conf", volume.ControlPath, volume.BackupLabelFile}
	for _, name := range steps {
		i, ok := at[name]
		if !ok {
			t.Fatalf("%s is not renamed into place: %v", name, at)
		}
		dir := filepath.Dir(filepath.Join(p.old.Dir, name))
		synced := slices.IndexFunc(ops[i:], func(op faultfs.Op) bool { return op.Name == "syncdir" && op.Path == dir })
		next := slices.IndexFunc(ops[i+1:], func(op faultfs.Op) bool {
			return op.Name == "rename" && (name == volume.ControlPath || name == volume.BackupLabelFile || strings.HasSuffix(op.Path, volume.ControlPath))
		})
		if synced < 0 || next >= 0 && synced > next {
			t.Errorf("the rename of %s is not durable before the next step: %v", name, ops[i:min(i+3, len(ops))])
		}
	}
	control, label := at[volume.ControlPath], at[volume.BackupLabelFile]
	if max(at["standby.signal"], at["postgresql.auto.conf"]) > control || control > label {
		t.Errorf("the order is %v", at)
	}
	for _, op := range ops[control:] {
		if op.Name == "write" && volume.Classify(strings.TrimPrefix(op.Path, p.old.Dir+"/")) == volume.ClassRelMain {
			t.Errorf("data after pg_control: %s", op)
		}
	}
	touched := map[string]bool{}
	for _, op := range ops {
		touched[strings.TrimPrefix(op.Path, p.old.Dir+"/")] = true
	}
	untouched := 0
	for name := range before {
		if volume.Classify(name) == volume.ClassRelMain && !touched[name] {
			untouched++
		}
	}
	if untouched < 200 {
		t.Errorf("only %d relation files were left alone", untouched)
	}
	p.proveEqual(p.new)
}

// TestConfigFileElsewhere: the target's configuration lies outside its data
// directory; crash recovery and restore_command come from there.
func TestConfigFileElsewhere(t *testing.T) {
	p := newPair(t, pgtest.Options{WALSegMB: 1})
	archive := p.old.TempDir("archive")
	p.diverge()
	p.old.Kill()
	elsewhere := filepath.Join(p.old.TempDir("etc"), "my postgresql.conf")
	if err := os.Rename(filepath.Join(p.old.Dir, "postgresql.conf"), elsewhere); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(elsewhere, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("restore_command = 'cp \"" + archive + "/%f\" \"%p\"'\n")
	f.Close()
	o := p.options()
	o.RestoreTargetWAL = true
	if _, err := Run(t.Context(), o); err == nil {
		t.Fatal("it works without its configuration")
	}
	o.ConfigFile = elsewhere
	mustRun(t, o)
	if err := os.Rename(elsewhere, filepath.Join(p.old.Dir, "postgresql.conf")); err != nil {
		t.Fatal(err)
	}
	p.proveEqual(p.new)
}

// TestSessionTimeouts: time-outs that a role or a database sets do not end the
// sessions of a rewind.
func TestSessionTimeouts(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		p := newPair(t, pgtest.Options{Major: major})
		p.new.Promote()
		p.new.Exec(`CREATE ROLE hasty LOGIN SUPERUSER; ALTER ROLE hasty SET statement_timeout = '1ms'; ALTER ROLE hasty SET lock_timeout = '1ms';
			ALTER ROLE hasty SET idle_in_transaction_session_timeout = '500ms'`)
		if major >= 14 {
			p.new.Exec("ALTER ROLE hasty SET idle_session_timeout = '500ms'")
		}
		if major >= 17 {
			p.new.Exec("ALTER ROLE hasty SET transaction_timeout = '500ms'")
		}
		p.write()
		p.old.Stop()
		o := p.options()
		o.SourceConn = p.new.ConnInfo("user=hasty")
		mustRun(t, o)
		p.proveEqual(p.new)
	})
}

// TestTargetJustPromoted: the target was promoted and crashed before its first
// checkpoint: its pg_control still shows the old timeline.
func TestTargetJustPromoted(t *testing.T) {
	p := newPair(t, pgtest.Options{Config: []string{"checkpoint_timeout = 30min", "checkpoint_completion_target = 0.9"}})
	third := p.old.Standby(pgtest.StandbyOptions{Name: "third"})
	p.old.Exec("UPDATE t SET v = 'dirty'")
	third.WaitFor(p.old)
	p.new.WaitFor(p.old)
	p.new.Promote()
	p.new.Exec("INSERT INTO t SELECT g, 'kept' FROM generate_series(100001, 101000) g; CHECKPOINT")
	third.Promote()
	third.Exec("INSERT INTO t SELECT g, 'lost' FROM generate_series(300001, 301000) g")
	third.Kill()
	p.old.Stop()
	third.Configure("primary_slot_name = ''")
	p.old = third
	res := mustRun(t, p.options())
	if !res.Diverged || res.Target.Timeline != 2 {
		t.Errorf("%+v", res.Divergence)
	}
	p.proveEqual(p.new)
}

// TestCrashRecoveryKeepsWAL: the checkpoint at the end of the forced crash
// recovery would recycle the WAL that the rewind is about to read.
func TestCrashRecoveryKeepsWAL(t *testing.T) {
	p := newPair(t, pgtest.Options{WALSegMB: 1})
	p.old.Exec("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")
	p.new.Promote()
	p.old.WaitSQL("SELECT count(*) FROM pg_replication_slots WHERE active", "0")
	p.old.Exec("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
	p.old.Exec("CREATE TABLE lost AS SELECT g, repeat('l', 500) FROM generate_series(1, 20000) g")
	p.old.Configure("wal_keep_size = 0", "max_wal_size = 2MB", "min_wal_size = 2MB") // read by the recovery alone
	p.old.Kill()
	res := mustRun(t, p.options())
	if res.Target.End-res.Fork.LSN < 8<<20 {
		t.Errorf("%+v", res.Divergence)
	}
	p.proveEqual(p.new)
}

// TestBlockSpans: from the length on to which a file was cut, every block counts.
func TestBlockSpans(t *testing.T) {
	for _, tt := range []struct {
		limit, first, n uint32
		want            []blockcopy.Span
	}{
		{wal.NoLimit, 0, 12, nil},
		{8, 0, 12, []blockcopy.Span{{Offset: 80, Length: 40}}},
		{8, 20, 5, []blockcopy.Span{{Offset: 0, Length: 50}}},
		{8, 0, 8, nil},
		{0, 0, 3, []blockcopy.Span{{Offset: 0, Length: 30}}},
	} {
		if d := cmp.Diff(tt.want, blockSpans(&wal.FileChange{Limit: tt.limit}, tt.first, tt.n, 10)); d != "" {
			t.Errorf("%+v: %s", tt, d)
		}
	}
	if got := blockSpans(nil, 0, 10, 10); got != nil {
		t.Error(got)
	}
}

// TestEarlierRedo: where the source's own files may be older than the common
// checkpoint, replay begins at the source's.
func TestEarlierRedo(t *testing.T) {
	common := &Checkpoint{LSN: 1000, Redo: 900, Timeline: 1}
	var source volume.Control
	source.CheckPoint, source.CheckPointCopy.Redo, source.CheckPointCopy.ThisTimeLineID = 500, 400, timeline.ID(1)
	if got := earlier(common, &source); got.LSN != 500 || got.Redo != 400 {
		t.Errorf("%+v", got)
	}
	source.CheckPointCopy.Redo = 900
	if got := earlier(common, &source); got != common {
		t.Errorf("%+v", got)
	}
}

// TestNewControl: the source's pg_control, in archive recovery, with the
// position that replay must reach, whole and of its full size.
func TestNewControl(t *testing.T) {
	var names []string
	for _, pattern := range []string{"pg_control", "pg_control.*"} {
		found, err := filepath.Glob("../../testdata/*/" + pattern)
		if err != nil || len(found) == 0 {
			t.Fatal("no control files match", pattern, err)
		}
		names = append(names, found...)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		sc, err := volume.ParseControl(data)
		if err != nil {
			t.Fatal(name, err)
		}
		raw := newControl(sc, 0x12345678, 7)
		c, err := volume.ParseControl(raw)
		if err != nil || len(raw) != 8192 || c.State != volume.StateInArchiveRecovery || c.MinRecoveryPoint != 0x12345678 || c.MinRecoveryPointTLI != 7 ||
			c.CheckPoint != sc.CheckPoint || c.SystemIdentifier != sc.SystemIdentifier {
			t.Errorf("%s: %v %+v", name, err, c)
		}
	}
}

// TestStandbySourceOnNewTimeline: a standby that went over to the new primary
// and has written no page since still shows the old timeline in pg_control.
func TestStandbySourceOnNewTimeline(t *testing.T) {
	// Nobody writes pages, which would carry the timeline into pg_control.
	p := newPair(t, pgtest.Options{Config: []string{"checkpoint_timeout = 30min", "bgwriter_lru_maxpages = 0"}})
	third := p.old.Standby(pgtest.StandbyOptions{Name: "third"})
	third.WaitFor(p.old)
	third.Follow(p.new)
	p.new.Promote()
	p.new.Exec("INSERT INTO grows VALUES (1)")
	third.WaitFor(p.new)
	p.old.Exec("INSERT INTO t SELECT g, 'lost' FROM generate_series(20001, 30000) g")
	p.old.Stop()
	c, err := volume.ReadControl(third.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if c.Timeline() != 1 {
		t.Fatalf("not the case: the standby's pg_control tells of timeline %d already", c.Timeline())
	}
	o := p.options()
	o.SourceConn = third.ConnInfo()
	if res := mustRun(t, o); !res.Diverged || res.Source.Timeline != 2 {
		t.Fatalf("%+v", res.Divergence)
	}
	p.proveEqual(p.new)
}

// TestSourceUnderAnotherName: a run goes on with the same server under another
// address, and with no other server.
func TestSourceUnderAnotherName(t *testing.T) {
	p := newPair(t, pgtest.Options{})
	p.diverge()
	third := p.new.Standby(pgtest.StandbyOptions{Name: "third"})
	third.WaitFor(p.new)
	p.old.Stop()
	o := p.options()
	changed := 0
	o.fs = faultfs.Wrap(volume.OS, func(op faultfs.Op) error {
		if op.Name == "rename" && strings.HasSuffix(op.Path, "/"+volume.BackupLabelFile) {
			changed++
		}
		if changed > 0 && op.Name == "sync" {
			return syscall.EIO
		}
		return nil
	})
	if _, err := Run(t.Context(), o); exit.CodeOf(err) != exit.Partial {
		t.Fatal(err)
	}
	p.refusesToStart()
	o = p.options()
	o.SourceConn = third.ConnInfo()
	if _, err := Run(t.Context(), o); exit.CodeOf(err) != exit.Refused || !strings.Contains(err.Error(), "not provably the same server") {
		t.Fatal(err)
	}
	p.new.Exec("SET password_encryption = 'scram-sha-256'; CREATE ROLE other SUPERUSER LOGIN")
	o.SourceConn = p.new.ConnInfo("user=other") // its name tells the user
	if res := mustRun(t, o); !res.Resumed {
		t.Errorf("%+v", res)
	}
	p.proveEqual(p.new)
}

// TestOverTCP: the source asks for a password, which comes from PGPASSFILE.
func TestOverTCP(t *testing.T) {
	p := newPair(t, pgtest.Options{TCP: true, HBA: []string{"host all rewinder 127.0.0.1/32 scram-sha-256"}})
	p.new.Promote()
	p.new.Exec(`SET password_encryption = 'scram-sha-256'; CREATE ROLE rewinder LOGIN PASSWORD 'a "strange:secret'; GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean),
			pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean) TO rewinder`)
	p.write()
	p.old.Stop()
	passfile := filepath.Join(t.TempDir(), "pass")
	if err := os.WriteFile(passfile, []byte(`127.0.0.1:*:*:rewinder:a "strange\:secret`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PGPASSFILE", passfile)
	o := p.options()
	o.SourceConn = p.new.TCPConnInfo("user=rewinder")
	mustRun(t, o)
	if strings.Contains(readFile(t, filepath.Join(p.old.Dir, "postgresql.auto.conf")), "strange") {
		t.Error("the password of PGPASSFILE was written down")
	}
	if err := os.WriteFile(filepath.Join(p.old.Dir, "postgresql.auto.conf"), nil, 0o600); err != nil { // this role may not replicate
		t.Fatal(err)
	}
	p.old.Follow(p.new)
	p.proveEqual(p.new)
}

// TestLargeSegments: WAL segments of 64 MB.
func TestLargeSegments(t *testing.T) {
	p := newPair(t, pgtest.Options{WALSegMB: 64, Config: []string{"max_wal_size = 1GB", "wal_keep_size = 512MB"}})
	p.diverge()
	p.old.Stop()
	mustRun(t, p.options())
	p.proveEqual(p.new)
}

// TestPreparedTransactions: prepared on both sides before and after the fork;
// those of the source are there when the target is promoted. PostgreSQL 18 loses
// them where their files lie in the target before replay makes them again.
func TestPreparedTransactions(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		p := newPair(t, pgtest.Options{Major: major, Config: []string{"max_prepared_transactions = 10"}})
		prepare := func(n *pgtest.Node, gid string) {
			n.Exec("BEGIN; INSERT INTO grows VALUES (1); PREPARE TRANSACTION '" + gid + "'")
		}
		prepare(p.old, "before")
		prepare(p.old, "ended here")
		p.old.Exec("CHECKPOINT")
		prepare(p.old, "late")
		p.new.WaitFor(p.old)
		p.new.Promote()
		p.old.Exec("COMMIT PREPARED 'ended here'")
		prepare(p.old, "lost")
		prepare(p.new, "after")
		p.new.Exec("CHECKPOINT")
		p.old.Exec("CHECKPOINT")
		p.old.Stop()
		mustRun(t, p.options())
		p.old.Start()
		p.old.WaitFor(p.new)
		p.new.Stop()
		p.old.Promote()
		if got := p.old.SQL("SELECT string_agg(gid, ', ' ORDER BY gid) FROM pg_prepared_xacts"); got != "after, before, ended here, late" {
			t.Errorf("prepared: %s", got)
		}
	})
}
