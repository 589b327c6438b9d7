package blockcopy

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"tidemark/internal/exit"
	"tidemark/pkg/volume"
)

// smallFS has two file systems of a known size, the second below /ts.
type smallFS struct {
	volume.FS
	home, ts int64
}

func (s smallFS) Space(name string) (int64, uint64, error) {
	if _, err := s.Stat(name); err != nil {
		return 0, 0, err
	}
	if strings.HasPrefix(name, "/ts") {
		return s.ts, 2, nil
	}
	return s.home, 1, nil
}

func TestSpace(t *testing.T) {
	const block = 8192
	// What the plan of newTestCase adds: base/5/101 grows by 8 blocks, 200 and
	// 7/1 are new, 105 and pg_xact do not grow; the tablespace gets 3.
	const home, ts = (8 + 11 + 5) * block, 3 * block
	const undo = (4 + 1 + 6 + 3 + 1) * block // 100, 101, 105, pg_xact, 103
	for _, c := range []struct {
		name     string
		home, ts int64
		undo     bool
		want     string
	}{
		{"enough", home + 200, ts, false, ""},
		{"too little", home - 1, ts, false, "on the file system of /data"},
		{"too little for the tablespace", home + 200, ts - 1, false, "on the file system of /ts"},
		{"enough with the undo", home + undo + 200, ts, true, ""},
		{"too little for the undo", home + undo - 1, ts, true, "to be able to undo"},
	} {
		tc := newTestCase()
		before := tc.fs.tree(testTarget)
		o := tc.options()
		o.FS, o.Undo = smallFS{tc.fs, c.home, c.ts}, c.undo
		_, err := Run(t.Context(), o)
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err == nil || exit.CodeOf(err) != exit.Failed || !strings.Contains(err.Error(), c.want) || exit.HintOf(err) == "" {
			t.Errorf("%s: %v, hint %q", c.name, err, exit.HintOf(err))
		}
		if c.undo != strings.Contains(exit.HintOf(err), "--no-undo") {
			t.Errorf("%s: hint %q", c.name, exit.HintOf(err))
		}
		if after := tc.fs.tree(testTarget); len(after) != len(before) {
			t.Errorf("%s: something was changed: %v", c.name, after)
		}
	}
	if free, _, err := volume.OS.(spacer).Space(t.TempDir()); err != nil || free <= 0 {
		t.Error(free, err)
	}
	if _, _, err := volume.OS.(spacer).Space(t.TempDir() + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
