package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"tidemark/internal/progress"
)

func TestFormat(t *testing.T) {
	for got, want := range map[string]string{
		Bytes(0):                          "0 B",
		Bytes(16 << 20):                   "16 MiB",
		Bytes(-1024):                      "-1.0 KiB",
		Count(1234567):                    "1,234,567",
		Rate(100<<20, 2*time.Second):      "50 MiB/s",
		Duration(250 * time.Millisecond):  "250 ms",
		Duration(1234 * time.Millisecond): "1.2 s",
		Duration(184 * time.Second):       "3 min 4 s",
		Duration(2 * time.Hour):           "2 h",
		Duration(77 * time.Hour):          "3 d 5 h",
		Plural(1, "row", "rows"):          "1 row",
		Plural(2000, "row", "rows"):       "2,000 rows",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	x := NewText(&b)
	tab := NewTable("NAME", ">SIZE", "STATE")
	tab.Row("alpha", Bytes(5<<20), "streaming")
	tab.Row("é", "", "")
	x.Table(tab)
	x.KV("name", "a", "left out", "", "longer key", 3)
	want := `NAME      SIZE  STATE
alpha  5.0 MiB  streaming
é            -  -
  name        a
  longer key  3
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestPlainProgress(t *testing.T) {
	var b bytes.Buffer
	r := newReporter(&b, progressAuto, false, false)
	r.Phase("copying files", 100<<20, progress.Bytes)
	r.Add(25 << 20)
	r.mu.Lock()
	r.started = time.Now().Add(-5 * time.Second)
	r.mu.Unlock()
	r.redraw()
	r.Note("a note")
	r.close()
	got := b.String()
	for _, want := range []string{"copying files: 25 MiB of 100 MiB (25%), 5.0 MiB/s, 15.0 s left\n", "a note\n", "copying files: 25 MiB, 5.0 MiB/s, in 5.0 s\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q lacks %q", got, want)
		}
	}
}

func TestQuietProgress(t *testing.T) {
	var b bytes.Buffer
	r := newReporter(&b, progressAuto, true, false)
	r.Phase("copying", 10, progress.Items)
	r.Note("a note")
	r.close()
	if b.Len() != 0 {
		t.Errorf("--quiet prints %q", b.String())
	}
}
