package recovery

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tidemark/internal/postgres"
	"tidemark/internal/repo"
	"tidemark/pkg/wal"
)

func TestParseTime(t *testing.T) {
	want := time.Date(2026, 11, 21, 22, 50, 1, 500000000, time.UTC)
	for _, s := range []string{"2026-11-21T22:50:01.5Z", "2026-11-21 22:50:01.5+00", "2026-11-21 23:50:01.5+01:00",
		"2026-11-21T23:50:01.5+0100", "2026-11-21 22:50:01.5 UTC", " 2026-11-21 17:50:01.5 -05:00 "} {
		got, err := ParseTime(s)
		if err != nil || !got.Equal(want) || got.Location() != time.UTC {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	local, err := ParseTime("2026-11-21 22:50")
	if err != nil || !local.Equal(time.Date(2026, 11, 21, 22, 50, 0, 0, time.Local)) {
		t.Errorf("without a zone: %v, %v", local, err)
	}
	for _, s := range []string{"", "yesterday", "2026-11-21 25:00", "2026-11-21 22:50:01 CET x", "22:50"} {
		if got, err := ParseTime(s); err == nil {
			t.Errorf("%q was taken for %v", s, got)
		}
	}
}

// TestSettings: the target's own setting comes last, behind the empty ones, and
// what an earlier recovery or the original's replication left is gone.
func TestSettings(t *testing.T) {
	old := "# a comment\nwork_mem = '8MB'\nrecovery_target_xid = '7'\nRECOVERY_TARGET = immediate\n" +
		"primary_conninfo = 'host=a'\nrestore_command = 'cp x'\n"
	r := &Resolution{Repository: "/srv/it's 100%", SystemID: "42", Timeline: 3,
		Target: Target{Kind: AtTime, Time: time.Unix(1700000000, 0), Exclusive: true}}
	command := repo.FetchCommand("/opt/db recover", 42, r.Repository)
	if want := `'/opt/db recover' fetch --repo '/srv/it'\''s 100%%' --cluster 42 "%f" "%p"`; command != want {
		t.Errorf("restore_command: %s\nwant %s", command, want)
	}
	got := string(postgres.RewriteConf([]byte(old), recoverySettings(r, "fetch", Pause, false)))
	want := `# a comment
work_mem = '8MB'
restore_command = 'fetch'
recovery_target_timeline = '3'
recovery_target_action = 'pause'
recovery_target_inclusive = 'false'
recovery_min_apply_delay = '0'
archive_cleanup_command = ''
recovery_end_command = ''
archive_mode = 'off'
recovery_target = ''
recovery_target_lsn = ''
recovery_target_xid = ''
recovery_target_name = ''
recovery_target_time = '2023-11-14 22:13:20+00'
`
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	tidied := string(postgres.RewriteConf([]byte(got), ownSettings()))
	if want := "# a comment\nwork_mem = '8MB'\narchive_mode = 'off'\n"; tidied != want {
		t.Errorf("tidied: %q", tidied)
	}
}

func TestMapLinks(t *testing.T) {
	spaces := []repo.Tablespace{{OID: 1, Path: "/a", Name: "one"}, {OID: 2, Path: "/b/", Name: "two"}, {OID: 3, Path: "pg_tblspc/3"}}
	got, err := mapLinks(spaces, []Mapping{{"one", "/x"}, {"/b", "/y/"}})
	if d := cmp.Diff(map[uint32]string{1: "/x", 2: "/y"}, got); err != nil || d != "" {
		t.Errorf("%v: -want +got\n%s", err, d)
	}
	got, err = mapLinks(spaces, []Mapping{{"2", "/z"}})
	if d := cmp.Diff(map[uint32]string{1: "/a", 2: "/z"}, got); err != nil || d != "" {
		t.Errorf("%v: -want +got\n%s", err, d)
	}
	for _, bad := range []Mapping{{"none", "/x"}, {"one", "x"}, {"", "/x"}} {
		if _, err := mapLinks(spaces, []Mapping{bad}); err == nil {
			t.Errorf("%v was accepted", bad)
		}
	}
}

func TestServerLog(t *testing.T) {
	l := parseServerLog(`2026-11-21 23:44:10.1 UTC [12] LOG:  starting archive recovery
2026-11-21 23:44:11.2 UTC [12] FATAL:  the database system is starting up
2026-11-21 23:44:12.3 UTC [12] LOG:  recovery stopping before commit of transaction 726, time 2026-11-21 23:44:00.368643+00
2026-11-21 23:44:12.3 UTC [12] LOG:  redo done at 0/23785F8 system usage: CPU: user: 0.01 s
2026-11-21 23:44:12.3 UTC [12] LOG:  last completed transaction was at log time 2026-11-21 23:43:58.994476+00
`)
	want := wal.LSN(0x23785F8)
	if l.stop != "recovery stopping before commit of transaction 726, time 2026-11-21 23:44:00.368643+00" || l.redoneTo != want ||
		!l.lastCommit.Equal(time.Date(2026, 11, 21, 23, 43, 58, 994476000, time.UTC)) || l.fatal != "" || l.paused || l.endedEarly {
		t.Errorf("%+v", l)
	}
	l = parseServerLog("x LOG:  redo done at 0/10\nx FATAL:  recovery ended before configured recovery target was reached\n")
	if !l.endedEarly || l.fatal == "" || l.stop != "" {
		t.Errorf("%+v", l)
	}
}

func TestEndBefore(t *testing.T) {
	for at, want := range map[wal.LSN]wal.LSN{0x2000028: 0x2000000, 0x2002018: 0x2002000, 0x2002020: 0x2002020, 0x20020A0: 0x20020A0} {
		if got := endBefore(at); got != want {
			t.Errorf("before %s: %s, want %s", at, got, want)
		}
	}
}

// TestHasHistory: which history files a server does without while the archive
// cannot be asked.
func TestHasHistory(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "pg_wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"00000003.history", "000000010000000000000001"} {
		if err := os.WriteFile(filepath.Join(dir, "pg_wal", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]bool{
		"00000001.history": true, "00000002.history": false, "00000003.history": true, "000000010000000000000001": false, "x": false,
	} {
		if got := HasHistory(dir, name); got != want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
