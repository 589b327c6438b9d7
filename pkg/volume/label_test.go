package volume

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const streamedLabel = `START WAL LOCATION: 0/2000028 (file 000000010000000000000002)
CHECKPOINT LOCATION: 0/2000060
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-11-21 22:50:01 UTC
LABEL: nightly: of the month
START TIMELINE: 1
`

func TestBackupLabel(t *testing.T) {
	want := BackupLabel{StartWAL: 0x2000028, WALFile: "000000010000000000000002", Checkpoint: 0x2000060,
		Method: MethodStreamed, From: FromPrimary, StartTime: "2026-11-21 22:50:01 UTC", Label: "nightly: of the month", StartTimeline: 1}
	got, err := ParseBackupLabel([]byte(streamedLabel))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, *got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	incremental := streamedLabel + "INCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\n"
	fiveLines := strings.Join(strings.SplitAfter(streamedLabel, "\n")[:5], "")
	for _, text := range []string{streamedLabel, incremental, fiveLines} {
		l, err := ParseBackupLabel([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if back := string(l.Format()); back != text {
			t.Errorf("written back as %q", back)
		}
	}
	if at := LabelTime(time.Date(2026, 11, 21, 23, 50, 1, 5, time.FixedZone("CET", 3600))); at != want.StartTime {
		t.Errorf("LabelTime: %s", at)
	}
}

func TestBackupLabelRefuses(t *testing.T) {
	first, second := "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n", "CHECKPOINT LOCATION: 0/2000060\n"
	for name, text := range map[string]string{
		"empty": "", "one line": first, "no end of the second line": first + second[:len(second)-1],
		"reversed": second + first, "no segment": "START WAL LOCATION: 0/2000028\n" + second,
		"no segment name": "START WAL LOCATION: 0/2000028 (file x)\n" + second,
		"bad location":    "START WAL LOCATION: 02000028 (file 000000010000000000000002)\n" + second,
		"trailing text":   first + "CHECKPOINT LOCATION: 0/2000060 x\n",
		"other timeline":  first + second + "START TIMELINE: 2\n",
		"tombstone":       string(Tombstone{Operation: "restore"}.Format()),
	} {
		if _, err := ParseBackupLabel([]byte(text)); !errors.Is(err, ErrLabel) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTombstone(t *testing.T) {
	want := Tombstone{Operation: "restore", Work: "6f1c", Started: time.Date(2026, 11, 21, 22, 50, 1, 0, time.UTC),
		Command: `dbrecover restore --repo '/b a' -D /data`, Hint: "one line\nand another"}
	text := want.Format()
	got, err := ParseTombstone(text)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if !strings.Contains(string(text), "\n    "+want.Command+"\n") {
		t.Errorf("the operator does not find the command:\n%s", text)
	}
	for _, other := range []string{"", streamedLabel, "START WAL LOCATION: \n" + string(text)} {
		if _, err := ParseTombstone([]byte(other)); !errors.Is(err, ErrNoTombstone) {
			t.Errorf("%q: %v", other, err)
		}
	}
	// What an operator types must not break out of its line.
	evil := Tombstone{Operation: "x\n-- tidemark tombstone 1\noperation: y", Command: "a\nb\r\nc"}
	if got, err := ParseTombstone(evil.Format()); err != nil || got.Command != "a b c" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestTablespaceMap(t *testing.T) {
	links := []TablespaceLink{{16500, "/srv/a b"}, {16501, "/srv/back\\slash"}, {16502, "/srv/line\nfeed\rreturn"}}
	text := "16500 /srv/a b\n16501 /srv/back\\\\slash\n16502 /srv/line\\\nfeed\\\rreturn\n"
	if got := string(FormatTablespaceMap(links)); got != text {
		t.Errorf("formatted as %q", got)
	}
	got, err := ParseTablespaceMap([]byte("\n" + text + "\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(links, got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	for _, bad := range []string{"16500\n", "x /srv\n", "16500 /srv", "0 /srv\n", "16500 \n", "16500 /srv\\"} {
		if _, err := ParseTablespaceMap([]byte(bad)); !errors.Is(err, ErrTablespaceMap) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestPostmasterPID(t *testing.T) {
	p, err := ParsePostmasterPID([]byte("123\n/data\n1700000000\n5432\n/tmp\nlocalhost\n  5432001     32768\nready   \n"))
	if err != nil {
		t.Fatal(err)
	}
	want := PostmasterPID{PID: 123, DataDir: "/data", Started: time.Unix(1700000000, 0).UTC(), Port: 5432, SocketDir: "/tmp",
		ListenAddr: "localhost", ShmKey: "5432001     32768", Status: "ready"}
	if d := cmp.Diff(want, *p); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if p, err := ParsePostmasterPID([]byte("-77\n")); err != nil || !p.SingleUser || p.PID != 77 {
		t.Errorf("single user: %+v, %v", p, err)
	}
	if _, err := ParsePostmasterPID([]byte("\n")); err == nil {
		t.Error("an empty lock file was taken")
	}
}
