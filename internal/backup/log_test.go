package backup_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/internal/backup"
	"tidemark/internal/pgtest"
)

// TestLog: a segment that was lost from the archive is named, with the window
// that it costs; one before every backup costs nothing.
func TestLog(t *testing.T) {
	dir := newRepo(t)
	n := pgtest.New(t, pgtest.Options{WALSegMB: 1, Config: archiving(dir)})
	n.Exec("CREATE TABLE t (id int)")
	archive := func(count int) (last string) {
		for range count {
			n.Exec("INSERT INTO t VALUES (1)")
			last = n.SQL("SELECT pg_walfile_name(pg_current_wal_lsn())")
			n.SwitchWAL()
		}
		n.WaitSQL("SELECT last_archived_wal >= '"+last+"' FROM pg_stat_archiver", "t")
		return last
	}
	early := archive(2)
	archive(1)
	first := create(t, dir, n)
	archive(2)
	lost := archive(1)
	archive(2)
	second := create(t, dir, n)
	archive(1)

	run := func(code int) (*backup.WALLog, string) {
		t.Helper()
		text := pgtest.Run(t, "dbbackup", "log", "--repo", dir)
		r := pgtest.Run(t, "dbbackup", "log", "--repo", dir, "--json")
		if r.Code != code || text.Code != code {
			t.Fatalf("exit codes %d and %d, not %d\n%+v\n%+v", r.Code, text.Code, code, r, text)
		}
		l := &backup.WALLog{}
		if err := json.NewDecoder(strings.NewReader(r.Stdout)).Decode(l); err != nil {
			t.Fatal(err)
		}
		return l, text.Stdout
	}
	if l, text := run(0); len(l.Timelines) != 1 || len(l.Timelines[0].Runs) != 1 || !strings.Contains(text, "no gap") {
		t.Errorf("%+v\n%s", l, text)
	}
	remove := func(segment string) {
		t.Helper()
		path := filepath.Join(dir, n.SQL("SELECT system_identifier FROM pg_control_system()"), "wal", "00000001", segment+".zst")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	remove(early)
	if l, text := run(0); len(l.Timelines[0].Gaps) != 1 || l.Timelines[0].Gaps[0].Lost != nil || !strings.Contains(text, "nothing: no backup leads there") {
		t.Errorf("%+v\n%s", l, text)
	}
	remove(lost)
	l, text := run(3)
	g := l.Timelines[0].Gaps[1]
	if g.First != lost || g.Last != lost || g.Lost == nil || g.Lost.Next != second.ID || len(g.Lost.Backups) != 1 || g.Lost.Backups[0] != first.ID || g.Lost.From != g.Begin {
		t.Errorf("%+v\n%s", g, text)
	}
	if !strings.Contains(text, lost) || !strings.Contains(text, second.ID) {
		t.Errorf("%s", text)
	}
	t.Logf("%s", text)
}

// TestPushAhead: one call archives what waits behind the segment as well, and
// the calls for those compare and succeed; a segment that cannot be archived
// ahead fails at its own call only.
func TestPushAhead(t *testing.T) {
	dir := newRepo(t)
	n := pgtest.New(t, pgtest.Options{WALSegMB: 1, Config: []string{"archive_mode = on", "archive_command = 'false'"}})
	n.Exec("CREATE TABLE t (id int)")
	var names []string
	for range 6 {
		n.Exec("INSERT INTO t SELECT generate_series(1, 100)")
		names = append(names, n.SQL("SELECT pg_walfile_name(pg_current_wal_lsn())"))
		n.SwitchWAL()
	}
	n.Stop()
	torn := filepath.Join(n.Dir, "pg_wal", names[4])
	data, err := os.ReadFile(torn)
	if err != nil {
		t.Fatal(err)
	}
	data[0] ^= 1
	if err := os.WriteFile(torn, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := pushFile(t, dir, n, "pg_wal/"+names[0]); r.Code != 0 || !strings.Contains(r.Stdout, "waited behind it") {
		t.Fatalf("%+v", r)
	}
	for i, name := range names[1:] {
		r := pushFile(t, dir, n, "pg_wal/"+name)
		switch {
		case i+1 == 4 && r.Code == 0:
			t.Errorf("%s is damaged and was archived: %+v", name, r)
		case i+1 != 4 && (r.Code != 0 || !strings.Contains(r.Stdout, "already")):
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// TestRate: a throttled backup takes the time that its rate says.
func TestRate(t *testing.T) {
	dir := newRepo(t)
	n := pgtest.New(t, pgtest.Options{Checksums: true, Config: archiving(dir)})
	if c := create(t, dir, n, "--rate", "10MB"); c.Took < float64(c.Read)/10e6*0.9 || c.Read == 0 {
		t.Errorf("%d bytes at 10 MB a second took %.1f s", c.Read, c.Took)
	}
}
