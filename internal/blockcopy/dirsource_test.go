package blockcopy

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/internal/exit"
)

// makeTree writes files (and directories, for names that end in a slash).
func makeTree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		full := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			name += "x"
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(full, "/") && !strings.HasSuffix(name, "/x") {
			if err := os.WriteFile(full, []byte(data), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func TestDirSourceListFollowsWhatTheServerFollows(t *testing.T) {
	dir := makeTree(t, map[string]string{"base/1/1": "rel", "pg_tblspc/": "", "odd 'name\"": "x"})
	wal := makeTree(t, map[string]string{"000000010000000000000001": "w"})
	space := makeTree(t, map[string]string{"PG_15_1/5/9": "spc"})
	logs := makeTree(t, map[string]string{"server.log": "l"})
	conf := filepath.Join(makeTree(t, map[string]string{"p.conf": "conf"}), "p.conf")
	for target, name := range map[string]string{wal: "pg_wal", space: "pg_tblspc/77", logs: "log", conf: "postgresql.conf"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := NewDirSource(dir, true).List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Path+" "+e.Type.String()+" "+e.LinkTarget)
	}
	want := []string{"base dir ", "base/1 dir ", "base/1/1 file ", "odd 'name\" file ", "pg_tblspc dir ",
		"pg_tblspc/77 link " + space, "pg_tblspc/77/PG_15_1 dir ", "pg_tblspc/77/PG_15_1/5 dir ", "pg_tblspc/77/PG_15_1/5/9 file ",
		"pg_wal dir ", "pg_wal/000000010000000000000001 file ", "postgresql.conf file "}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestDirSourceFetch(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 3<<16) // 3 MB
	dir := makeTree(t, map[string]string{"big": big, "small": "small"})
	src := NewDirSource(dir, false)
	var mu sync.Mutex
	got := map[string][]byte{}
	var gone []string
	ranges := []Range{{"big", 5, int64(len(big))}, {"missing", 0, 10}, {"small", 0, 5}, {"small", 9, 4}}
	err := Fetch(t.Context(), src, ranges, FetchOptions{Jobs: 3, TaskBytes: 1 << 20}, func(piece Range, data []byte, isGone bool) error {
		mu.Lock()
		defer mu.Unlock()
		if isGone {
			gone = append(gone, piece.Path)
			return nil
		}
		if need := int(piece.Offset) + len(data); need > len(got[piece.Path]) {
			got[piece.Path] = append(got[piece.Path], make([]byte, need-len(got[piece.Path]))...)
		}
		copy(got[piece.Path][piece.Offset:], data)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if string(got["big"][5:]) != big[5:] || string(got["small"][:5]) != "small" || len(gone) != 1 {
		t.Errorf("big %d bytes, small %q, gone %q", len(got["big"]), got["small"], gone)
	}
}

func TestDirSourceNoticesChanges(t *testing.T) {
	for name, change := range map[string]func(string) error{
		"shrunk": func(f string) error { return os.Truncate(f, 1) },
		"gone":   os.Remove,
		"grown":  func(f string) error { return os.WriteFile(f, []byte("longer than before"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := makeTree(t, map[string]string{"file": "content"})
			src := NewDirSource(dir, true)
			if _, err := src.List(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := change(filepath.Join(dir, "file")); err != nil {
				t.Fatal(err)
			}
			err := src.Fetch(t.Context(), []Range{{"file", 0, 7}}, func(Range, []byte, bool) error { return nil })
			if err == nil || !strings.Contains(err.Error(), "file changed while it was copied") || exit.HintOf(err) == "" {
				t.Error(err)
			}
		})
	}
}

func TestPlanJSON(t *testing.T) {
	p, err := newPlan(newTestCase().plan)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var back Plan
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(*p, back); d != "" {
		t.Error(d)
	}
	if p.Totals.Patched != 3 || p.Totals.Copied != 7 || p.Totals.Removed != 3 || p.Totals.Bytes == 0 {
		t.Errorf("%+v", p.Totals)
	}
}
