package backup

import (
	"slices"
	"testing"
	"time"

	"tidemark/internal/repo"
	"tidemark/pkg/wal"
)

func made(t *testing.T, day string, lsn wal.LSN) *repo.Summary {
	t.Helper()
	at, err := time.Parse("2006-01-02", day)
	if err != nil {
		t.Fatal(err)
	}
	return &repo.Summary{ID: day, Finished: at.Add(3 * time.Hour), WALSegmentSize: 16 << 20,
		Start: repo.Point{LSN: lsn, Timeline: 1}, Stop: repo.Point{LSN: lsn + 100, Timeline: 1}}
}

func TestRetention(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	past := now.Add(-time.Hour)
	days := []string{"2025-12-31", "2026-08-31", "2026-10-30", "2026-10-31", "2026-11-14", "2026-11-19", "2026-11-20", "2026-11-21"}
	span := func(s string) Age {
		a, err := ParseAge(s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for _, tc := range []struct {
		name    string
		keep    Retention
		pin     string
		expires string
		lacking string
		want    []string
	}{
		{"last", Retention{Last: 2}, "", "", "", []string{"2026-11-20", "2026-11-21"}},
		{"within", Retention{Within: span("3d")}, "", "", "", []string{"2026-11-19", "2026-11-20", "2026-11-21"}},
		{"monthly", Retention{Monthly: 3}, "", "", "", []string{"2026-08-31", "2026-10-31", "2026-11-21"}},
		{"yearly", Retention{Yearly: 5}, "", "", "", []string{"2025-12-31", "2026-11-21"}},
		{"weekly", Retention{Weekly: 2}, "", "", "", []string{"2026-11-14", "2026-11-21"}},
		{"daily and pinned", Retention{Daily: 1}, "2026-08-31", "", "", []string{"2026-08-31", "2026-11-21"}},
		{"its date has come", Retention{Last: 3}, "", "2026-11-20", "", []string{"2026-11-14", "2026-11-19", "2026-11-21"}},
		{"the newest lacks WAL", Retention{Last: 1}, "", "", "2026-11-21", []string{"2026-11-20", "2026-11-21"}},
		{"all are too old", Retention{Within: span("1h")}, "", "", "", []string{"2026-11-21"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var all []*repo.Summary
			for i, d := range days {
				s := made(t, d, wal.LSN(i+1)<<28)
				if d == tc.expires {
					s.Expires = &past
				}
				all = append(all, s)
			}
			pins := map[string]repo.Pin{}
			if tc.pin != "" {
				pins[tc.pin] = repo.Pin{ID: tc.pin}
			}
			var got []string
			for _, c := range tc.keep.choose(all, pins, map[string]bool{tc.lacking: true}, now) {
				if c.kept() {
					got = append(got, c.s.ID)
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

// TestKeptWAL: all WAL from the window on, what older kept backups need to be
// consistent, histories, and timelines that are newer than any backup.
func TestKeptWAL(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	all := []*repo.Summary{made(t, "2026-01-01", 0x01000028), made(t, "2026-02-01", 0x03000028), made(t, "2026-11-10", 0x05000028), made(t, "2026-11-20", 0x07000028)}
	week, _ := ParseAge("7d")
	k := keptWAL(Retention{Last: 1, Monthly: 9, Within: Age{}, WAL: week}.choose(all, map[string]repo.Pin{"2026-11-10": {ID: "2026-11-10"}}, nil, now))
	for name, want := range map[string]bool{
		"000000010000000000000001": true, "000000010000000000000002": false, "000000010000000000000003": true, "000000010000000000000004": false,
		"000000010000000000000005": true, "000000010000000000000006": true, "000000010000000000000009": true,
		"000000010000000000000004.00000028.backup": false, "000000010000000000000004.partial": false,
		"00000002.history": true, "000000020000000000000002": true,
	} {
		f, ok := wal.ParseFileName(name)
		if !ok {
			t.Fatal(name)
		}
		if got := k.needs(f); got != want {
			t.Errorf("%s is needed: %v", name, got)
		}
	}
	k = keptWAL(Retention{Last: 9}.choose(all, nil, nil, now))
	if f, _ := wal.ParseFileName("000000010000000000000002"); !k.needs(f) {
		t.Error("without a window all WAL since the oldest backup stays")
	}
}

func TestParseMoment(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for in, want := range map[string]string{"90d": "2027-02-19T12:00:00Z", "2027-12-31": "2027-12-31T00:00:00Z", "2027-12-31T10:00:00+02:00": "2027-12-31T08:00:00Z", "1y": "2027-11-21T12:00:00Z"} {
		got, err := ParseMoment(in, now)
		if err != nil || got.Format(time.RFC3339) != want {
			t.Errorf("%s: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"soon", "d", "-3d", "0d", "31.12.2027"} {
		if _, err := ParseMoment(in, now); err == nil {
			t.Errorf("%q was accepted", in)
		}
	}
}
