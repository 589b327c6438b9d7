package volume

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWalk(t *testing.T) {
	root := t.TempDir()
	data := filepath.Join(root, "data")
	for _, dir := range []string{"data", "data/base", "data/pg_tblspc", "data/pg_tblspc/7", "space", "wal", "other"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"data/pg_wal": filepath.Join(root, "wal"), "data/pg_tblspc/16500": filepath.Join(root, "space"),
		"data/conf.d": "../other", "data/base/loop": ".",
	} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	odd := "it's\xff \"odd\"\n"
	for _, name := range []string{"data/PG_VERSION", "data/base/" + odd, "space/f", "wal/w", "other/hidden", "data/pg_tblspc/7/g"} {
		if err := os.WriteFile(filepath.Join(root, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	err := Walk(OS, data, func(e WalkEntry) error {
		got = append(got, e.Path)
		if e.Path == "base/"+odd { // the next one goes after it was listed
			return os.Remove(filepath.Join(data, "base/loop"))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"PG_VERSION", "base", "base/" + odd, "conf.d", "pg_tblspc", "pg_tblspc/16500",
		"pg_tblspc/16500/f", "pg_tblspc/7", "pg_tblspc/7/g", "pg_wal", "pg_wal/w"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if err := Walk(OS, data, func(WalkEntry) error { return fs.ErrNotExist }); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the callback's error is lost: %v", err)
	}
	if err := Walk(OS, filepath.Join(root, "nowhere"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing directory: %v", err)
	}
}

func TestCheckPath(t *testing.T) {
	for path, ok := range map[string]bool{
		"base/5/1259": true, "odd 'name'\xff": true, "..x/y..": true,
		"": false, "/etc/passwd": false, "../x": false, "a/../b": false, "a//b": false, "a/": false, "./a": false, "a\x00b": false,
	} {
		if err := CheckPath(path); (err == nil) != ok {
			t.Errorf("%q: %v", path, err)
		}
	}
}
