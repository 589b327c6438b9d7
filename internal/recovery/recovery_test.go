package recovery_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/internal/recovery"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// TestTargets recovers to every kind of target, before, between and behind
// backups, through the command.
func TestTargets(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		s := newSite(t, pgtest.Options{Major: major, Checksums: true, WALSegMB: 1})
		s.Exec("CREATE TABLE t (i int)")
		insert := func(i int) { s.Exec(fmt.Sprintf("INSERT INTO t VALUES (%d)", i)) }
		insert(1)
		first := s.backup()
		insert(2)
		afterTwo, lsnTwo := s.now(), s.lsn()
		insert(3)
		s.Exec("SELECT pg_create_restore_point('three')")
		insert(4)
		second := s.backup()
		xid := s.SQL("SELECT txid_current()")
		insert(5)
		beforeDrop := s.now()
		s.Exec("DROP TABLE t")
		s.Exec("CREATE TABLE t (i int)")
		s.archive()
		var x uint32
		fmt.Sscan(xid, &x)
		for name, tc := range map[string]struct {
			target recovery.Target
			backup string
			want   string
		}{
			"latest":    {recovery.Target{Kind: recovery.Latest}, second.ID, "0|0"},
			"immediate": {recovery.Target{Kind: recovery.Immediate}, second.ID, "4|4"},
			"time":      {recovery.Target{Kind: recovery.AtTime, Time: afterTwo}, first.ID, "2|2"},
			"drop":      {recovery.Target{Kind: recovery.AtTime, Time: beforeDrop}, second.ID, "5|5"},
			"lsn":       {recovery.Target{Kind: recovery.AtLSN, LSN: lsnTwo, Exclusive: true}, first.ID, "2|2"},
			"name":      {recovery.Target{Kind: recovery.AtName, Name: "three"}, first.ID, "3|3"},
			"xid":       {recovery.Target{Kind: recovery.AtXID, XID: x + 1}, second.ID, "5|5"},
			"before":    {recovery.Target{Kind: recovery.AtXID, XID: x + 1, Exclusive: true}, second.ID, "4|4"},
		} {
			t.Run(name, func(t *testing.T) {
				dir := s.target(name)
				args := append([]string{"run", "--repo", s.dir, "-D", dir, "--json", "--archive", "off", "--bindir", s.Server.Bin.BinDir}, flags(tc.target)...)
				res := pgtest.Run(t, "dbrecover", args...)
				if res.Code != 0 {
					t.Fatalf("code %d: %s", res.Code, res.Stderr)
				}
				var doc struct {
					Restore  struct{ Resolution recovery.Resolution }
					Recovery recovery.Outcome
				}
				if err := json.Unmarshal([]byte(res.Stdout), &doc); err != nil {
					t.Fatal(err)
				}
				o := doc.Recovery
				if doc.Restore.Resolution.Backup != tc.backup || !o.Reached || o.Evidence == "" || o.Timeline != 2 {
					t.Errorf("from backup %s, want %s: %+v", doc.Restore.Resolution.Backup, tc.backup, o)
				}
				if stop := doc.Restore.Resolution.Stop; stop != nil && name != "immediate" && stop.End != o.ReplayedTo {
					t.Errorf("stopped at %s, foretold was %s", o.ReplayedTo, stop.End)
				}
				if got := rows(t, dir); got != tc.want {
					t.Errorf("the table holds %s, want %s", got, tc.want)
				}
				conf, err := os.ReadFile(filepath.Join(dir, "postgresql.auto.conf"))
				if err != nil || strings.Contains(string(conf), "recovery_target") || strings.Contains(string(conf), "restore_command") {
					t.Errorf("recovery settings are left: %v\n%s", err, conf)
				}
			})
		}
	})
}

// flags are the command's for a target.
func flags(t recovery.Target) []string {
	var list []string
	switch t.Kind {
	case recovery.AtTime:
		list = []string{"--to-time", t.Time.UTC().Format("2006-01-02T15:04:05.999999Z")}
	case recovery.AtLSN:
		list = []string{"--to-lsn", t.LSN.String()}
	case recovery.AtName:
		list = []string{"--to-name", t.Name}
	case recovery.AtXID:
		list = []string{"--to-xid", fmt.Sprint(t.XID)}
	default:
		list = []string{"--to", string(t.Kind)}
	}
	if t.Exclusive {
		list = append(list, "--exclusive")
	}
	return list
}

// refused checks that nothing was made and that the operator learns why.
func refused(t *testing.T, err error, words ...string) {
	t.Helper()
	if exit.CodeOf(err) != exit.Refused {
		t.Errorf("not refused: %v", err)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the message does not say %q: %v", w, err)
		}
	}
	if exit.HintOf(err) == "" {
		t.Errorf("no hint: %v", err)
	}
}

// TestOutOfReach asks for what the archive cannot lead to.
func TestOutOfReach(t *testing.T) {
	s := newSite(t, pgtest.Options{WALSegMB: 1})
	s.Exec("CREATE TABLE t (i int)")
	beforeAll, lsnBefore := s.now(), s.lsn()
	s.Exec("INSERT INTO t VALUES (1)")
	if _, err := s.resolve(recovery.Target{}); err == nil || !strings.Contains(err.Error(), "no complete backup") {
		t.Errorf("without a backup: %v", err)
	}
	b := s.backup()
	if _, err := s.resolve(recovery.Target{}); err == nil {
		t.Error("a backup without its WAL was accepted")
	} else {
		refused(t, err, b.ID, wal.SegmentName(1, s.segment(b.Start.LSN), 1<<20))
	}
	s.archive()
	s.Exec("INSERT INTO t VALUES (2)")
	gap := s.SwitchWAL()
	s.Exec("INSERT INTO t VALUES (3)")
	_, err := s.resolve(recovery.Target{})
	s.must(err)
	s.archive(gap)
	_, err = s.resolve(recovery.Target{})
	refused(t, err, gap)
	for name, target := range map[string]recovery.Target{
		"a time before the backup":   {Kind: recovery.AtTime, Time: beforeAll},
		"a time in the future":       {Kind: recovery.AtTime, Time: s.now().AddDate(1, 0, 0)},
		"an LSN before the backup":   {Kind: recovery.AtLSN, LSN: lsnBefore},
		"an LSN never written":       {Kind: recovery.AtLSN, LSN: 1 << 40},
		"an LSN behind the gap":      {Kind: recovery.AtLSN, LSN: s.lsn()},
		"a restore point never made": {Kind: recovery.AtName, Name: "x"},
		"a transaction never begun":  {Kind: recovery.AtXID, XID: 4000000000},
	} {
		_, err := s.resolve(target)
		t.Run(name, func(t *testing.T) { refused(t, err) })
	}
	s.push(gap)
	_, err = s.resolve(recovery.Target{})
	s.must(err)
	_, err = recovery.Resolve(t.Context(), s.cluster, recovery.Request{Timeline: "7"})
	refused(t, err, "00000007.history")
	_, err = recovery.Resolve(t.Context(), s.cluster, recovery.Request{Backup: "nope"})
	if err == nil || !strings.Contains(err.Error(), "nope") {
		t.Errorf("an unknown backup: %v", err)
	}
}

func (s *site) segment(at wal.LSN) wal.SegmentNumber { return wal.SegmentSize(1 << 20).Number(at) }

// TestTimelines recovers over a promotion, and to the timeline that was left.
func TestTimelines(t *testing.T) {
	s := newSite(t, pgtest.Options{WALSegMB: 1})
	s.Exec("CREATE TABLE t (i int); INSERT INTO t VALUES (1)")
	s.backup()
	s.Exec("INSERT INTO t VALUES (2)")
	s.archive()
	s.Stop()
	s.AppendFile("standby.signal", "")
	s.Start()
	s.Promote()
	s.Exec("INSERT INTO t VALUES (3)")
	s.archive()
	for timeline, want := range map[string]string{"latest": "3|3", "current": "2|2", "2": "3|3"} {
		dir := s.target("tli" + timeline)
		pgtest.MustRun(t, "dbrecover", "run", "--repo", s.dir, "-D", dir, "--timeline", timeline, "--archive", "off")
		if got := rows(t, dir); got != want {
			t.Errorf("timeline %s: %s, want %s", timeline, got, want)
		}
	}
}

// TestBranches: a copy of the original was promoted and archives too.
func TestBranches(t *testing.T) {
	s := newSite(t, pgtest.Options{WALSegMB: 1})
	s.Exec("CREATE TABLE t (i int); INSERT INTO t VALUES (1)")
	first := s.backup()
	s.archive()
	dir := s.target("copy")
	pgtest.MustRun(t, "dbrecover", "run", "--repo", s.dir, "-D", dir, "--archive", "off")
	history, err := os.ReadFile(filepath.Join(dir, "pg_wal", "00000002.history"))
	s.must(err)
	s.must(os.WriteFile(filepath.Join(s.Dir, "pg_wal", "00000002.history"), history, 0o600))
	s.push("00000002.history")
	s.Exec("INSERT INTO t VALUES (2)")
	s.archive()
	s.archive()
	r, err := s.resolve(recovery.Target{})
	s.must(err)
	if r.Timeline != 2 || len(r.Branches) != 1 || r.Branches[0].Timeline != 1 || r.Branches[0].Segments < 1 {
		t.Errorf("timeline %d, other branches %+v", r.Timeline, r.Branches)
	}
	second := s.backup()
	s.archive()
	_, err = s.resolve(recovery.Target{})
	refused(t, err, second.ID, "two branches")
	for timeline, want := range map[string]string{"current": second.ID, "1": second.ID, "2": first.ID} {
		r, err := recovery.Resolve(t.Context(), s.cluster, recovery.Request{Timeline: timeline})
		s.must(err)
		if r.Backup != want {
			t.Errorf("timeline %s: backup %s, want %s", timeline, r.Backup, want)
		}
	}
}

// TestTablespace restores a tablespace into another directory.
func TestTablespace(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		s := newSite(t, pgtest.Options{Major: major, WALSegMB: 1})
		old := s.TempDir("old space")
		s.Exec(fmt.Sprintf("CREATE TABLESPACE ts LOCATION '%s'", old))
		s.Exec("CREATE TABLE t (i int) TABLESPACE ts; INSERT INTO t VALUES (1)")
		s.backup()
		s.Exec("INSERT INTO t VALUES (2)")
		s.archive()
		dir := s.target("restored")
		r := pgtest.Run(t, "dbrecover", "restore", "--repo", s.dir, "-D", dir)
		if r.Code != int(exit.Refused) || !strings.Contains(r.Stderr, old) || !strings.Contains(r.Stderr, "--tablespace") {
			t.Errorf("into the directory of a living tablespace: %d %s", r.Code, r.Stderr)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Error("a refused restore made its directory")
		}
		moved := filepath.Join(s.TempDir("moved"), "ts")
		pgtest.MustRun(t, "dbrecover", "run", "--repo", s.dir, "-D", dir, "--tablespace", "ts="+moved, "--archive", "off")
		if got := rows(t, dir); got != "2|2" {
			t.Errorf("the table holds %s", got)
		}
		links, err := filepath.Glob(filepath.Join(dir, "pg_tblspc", "*"))
		if err != nil || len(links) != 1 {
			t.Fatalf("%v, %v", links, err)
		}
		if to, err := os.Readlink(links[0]); err != nil || to != moved {
			t.Errorf("the link leads to %s, %v", to, err)
		}
	})
}

// TestFetch checks the exit codes that decide whether a server goes on.
func TestFetch(t *testing.T) {
	s := newSite(t, pgtest.Options{WALSegMB: 1})
	s.backup()
	last := s.archive()
	s.Stop()
	system := fmt.Sprint(s.cluster.SystemID())
	path := filepath.Join(s.TempDir("fetch"), "got")
	fetch := func(args ...string) pgtest.Result {
		return pgtest.Run(t, "dbrecover", append([]string{"fetch"}, args...)...)
	}
	r := fetch("--repo", s.dir, "--cluster", system, last, path)
	got, err := os.ReadFile(path)
	want, _ := os.ReadFile(filepath.Join(s.Dir, "pg_wal", last))
	if r.Code != 0 || err != nil || string(got) != string(want) {
		t.Errorf("code %d, %v, %d bytes: %s", r.Code, err, len(got), r.Stderr)
	}
	s.must(os.Remove(path))
	for name, tc := range map[string]struct {
		code int
		args []string
	}{
		"a segment that is not there": {1, []string{"--repo", s.dir, "--cluster", system, "0000000100000000000000FF", path}},
		"a history that is not there": {1, []string{"--repo", s.dir, "--cluster", system, "00000002.history", path}},
		"no repository":               {200, []string{"--repo", s.dir + "x", "--cluster", system, last, path}},
		"another cluster":             {200, []string{"--repo", s.dir, "--cluster", "12345", last, path}},
		"no repository named":         {200, []string{last, path}},
		"an unknown flag":             {200, []string{"--what", last, path}},
		"too few arguments":           {200, []string{"--repo", s.dir, last}},
		"no name of a WAL file":       {200, []string{"--repo", s.dir, "--cluster", system, "x", path}},
		"a directory that is gone":    {200, []string{"--repo", s.dir, "--cluster", system, last, filepath.Join(path, "x")}},
		"a fault on a standby":        {1, []string{"--repo", s.dir + "x", "--cluster", system, "--standby", last, path}},
	} {
		if r := fetch(tc.args...); r.Code != tc.code {
			t.Errorf("%s: code %d, want %d: %s", name, r.Code, tc.code, r.Stderr)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s: a file was left", name)
		}
	}
	object := s.object(last)
	data, err := os.ReadFile(object)
	s.must(err)
	data[len(data)/2] ^= 1
	s.must(os.Chmod(object, 0o600))
	s.must(os.WriteFile(object, data, 0o600))
	if r := fetch("--repo", s.dir, "--cluster", system, last, path); r.Code != 200 || !strings.Contains(r.Stderr, last) {
		t.Errorf("a damaged object: code %d, %s", r.Code, r.Stderr)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestFaultWhileReplaying takes a segment away, and then damages it, behind the
// back of a recovery that was promised it: the server must stop, not promote.
func TestFaultWhileReplaying(t *testing.T) {
	s := newSite(t, pgtest.Options{WALSegMB: 1})
	s.Exec("CREATE TABLE t (i int)")
	s.backup()
	s.Exec("INSERT INTO t VALUES (1)")
	s.archive()
	s.Exec("INSERT INTO t VALUES (2)")
	last := s.archive()
	s.Exec("INSERT INTO t VALUES (3)")
	s.archive()
	dir := s.target("restored")
	pgtest.MustRun(t, "dbrecover", "restore", "--repo", s.dir, "-D", dir, "--archive", "off")
	object := s.object(last)
	good, err := os.ReadFile(object)
	s.must(err)
	bad := append([]byte(nil), good...)
	bad[len(bad)/2] ^= 1
	s.must(os.Chmod(object, 0o600))
	s.must(os.WriteFile(object, bad, 0o600))
	r := pgtest.Run(t, "dbrecover", "run", "-D", dir)
	if r.Code != int(exit.Partial) || !strings.Contains(r.Stderr, last) {
		t.Errorf("code %d, want %d: %s", r.Code, exit.Partial, r.Stderr)
	}
	if _, err := os.Stat(filepath.Join(dir, "recovery.signal")); err != nil {
		t.Error("the server was promoted on damaged WAL")
	}
	s.must(os.WriteFile(object, good, 0o600))
	pgtest.MustRun(t, "dbrecover", "run", "-D", dir)
	if got := rows(t, dir); got != "3|3" {
		t.Errorf("the table holds %s", got)
	}
}

// TestWALEndsBeforeTarget: a target that was there when the backup was restored
// and is gone when it is replayed.
func TestWALEndsBeforeTarget(t *testing.T) {
	s := newSite(t, pgtest.Options{WALSegMB: 1})
	s.Exec("CREATE TABLE t (i int)")
	s.backup()
	s.archive()
	s.Exec("INSERT INTO t VALUES (1)")
	at := s.lsn()
	s.Exec("INSERT INTO t VALUES (2)")
	last := s.archive()
	dir := s.target("restored")
	pgtest.MustRun(t, "dbrecover", "restore", "--repo", s.dir, "-D", dir, "--to-lsn", at.String(), "--archive", "off")
	object := s.object(last)
	data, err := os.ReadFile(object)
	s.must(err)
	s.must(os.Remove(object))
	r := pgtest.Run(t, "dbrecover", "run", "-D", dir)
	if r.Code != int(exit.Partial) || !strings.Contains(r.Stderr, "WAL ended before the target") {
		t.Errorf("code %d: %s", r.Code, r.Stderr)
	}
	s.must(os.WriteFile(object, data, 0o600))
	pgtest.MustRun(t, "dbrecover", "run", "-D", dir)
	if got := rows(t, dir); got != "2|2" && got != "1|1" {
		t.Errorf("the table holds %s", got)
	}
}

// TestThen leaves the server at its target as it was told.
func TestThen(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		s := newSite(t, pgtest.Options{Major: major, WALSegMB: 1})
		s.Exec("CREATE TABLE t (i int); INSERT INTO t VALUES (1)")
		s.backup()
		s.Exec("INSERT INTO t VALUES (2)")
		s.Exec("SELECT pg_create_restore_point('two')")
		s.Exec("INSERT INTO t VALUES (3)")
		s.archive()
		outcome := func(dir string, args ...string) recovery.Outcome {
			out := pgtest.MustRun(t, "dbrecover", append([]string{"run", "--repo", s.dir, "-D", dir, "--to-name", "two", "--archive", "off", "--json"}, args...)...)
			var doc struct{ Recovery recovery.Outcome }
			s.must(json.Unmarshal([]byte(out), &doc))
			return doc.Recovery
		}
		dir := s.target("paused")
		o := outcome(dir, "--then", "pause")
		n := pgtest.Attach(t, "paused", dir)
		if o.State != "paused" || !o.Running || !o.Reached || o.ConnInfo == "" {
			t.Errorf("pause: %+v", o)
		}
		n.Stop()
		dir = s.target("stopped")
		o = outcome(dir, "--then", "shutdown")
		if o.State != "stopped at the target" || o.Running || !o.Reached {
			t.Errorf("shutdown: %+v", o)
		}
		c, err := volume.ReadControl(dir)
		if err != nil || c.State != volume.StateShutdownedRecovery {
			t.Errorf("shutdown left %s, %v", c.State, err)
		}
		// Both can still be brought to their end.
		for _, name := range []string{"paused", "stopped"} {
			dir := filepath.Join(filepath.Dir(filepath.Dir(dir)), name, "data")
			pgtest.MustRun(t, "dbrecover", "run", "-D", dir, "--then", "promote", "--to-name", "two", "--archive", "off")
			if got := rows(t, dir); got != "2|2" {
				t.Errorf("%s, then promoted: %s", name, got)
			}
		}
	})
}

// TestRestoreRefuses leaves alone what is not its own.
func TestRestoreRefuses(t *testing.T) {
	s := newSite(t, pgtest.Options{WALSegMB: 1})
	s.backup()
	s.archive()
	prepare := func(o recovery.RestoreOptions) error {
		o.Cluster = s.cluster
		o.Request.Timeline = "latest"
		_, err := recovery.PrepareRestore(t.Context(), o)
		return err
	}
	refused(t, prepare(recovery.RestoreOptions{DataDir: s.Dir}), s.Dir, "running")
	other := s.TempDir("other")
	s.must(os.WriteFile(filepath.Join(other, "notes"), nil, 0o600))
	refused(t, prepare(recovery.RestoreOptions{DataDir: other}), "not empty")
	err := prepare(recovery.RestoreOptions{DataDir: s.target("x"), Tablespaces: []recovery.Mapping{{From: "no", To: "/y"}}})
	if exit.CodeOf(err) != exit.Usage {
		t.Errorf("an unknown tablespace: %v", err)
	}
	_, err = recovery.Replay(t.Context(), recovery.ReplayOptions{DataDir: s.Dir})
	refused(t, err, "running")
	s.Stop()
	_, err = recovery.Replay(t.Context(), recovery.ReplayOptions{DataDir: s.Dir})
	refused(t, err, s.Dir)
	if !errors.Is(err, recovery.ErrNotRestored) {
		t.Errorf("%v", err)
	}
}
