package main

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMemoryAndCompare(t *testing.T) {
	path := filepath.Join(t.TempDir(), "acknowledged")
	m, err := openMemory(path)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i, gap := range []int{0, 10, 900, 910, 1200} {
		if err := m.add(int64(i+1), start.Add(time.Duration(gap)*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
	}
	m.close()
	if m, err = openMemory(path); err != nil || m.last != 5 {
		t.Fatalf("reopened: %v, last %d", err, m.last)
	}
	m.close()
	rows, err := readMemory(path)
	if err != nil {
		t.Fatal(err)
	}
	present := map[int64]bool{1: true, 2: true, 4: true, 5: true, 99: true}
	got := compare(rows, present, time.Time{})
	want := report{Acknowledged: 5, Present: 4, Lost: []int64{3}, Pause: 890 * time.Millisecond, PauseSeconds: 0.89}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got := compare(rows, present, start.Add(time.Second)); got.Pause != 290*time.Millisecond {
		t.Errorf("pause after a moment: %v", got.Pause)
	}
}
