package rewind

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/pkg/volume"
	"tidemark/pkg/volume/faultfs"
)

// TestUndo rewinds, undoes, and has the old primary as it was: every file, and
// as a server. Then it is interrupted, undone and resumed; and once a server
// has started on the result the undo is refused.
func TestUndo(t *testing.T) {
	p := newPair(t, pgtest.Options{})
	space := t.TempDir()
	p.diverge()
	p.old.Exec("CREATE TABLESPACE there LOCATION '" + space + "'")
	p.old.Exec("CREATE TABLE far TABLESPACE there AS SELECT * FROM t")
	p.old.Stop()
	before := tree(t, p.old.Dir)
	undo := UndoOptions{Target: p.old.Dir, Command: "dbrewind undo", DiscardCommand: "dbrewind undo --discard"}

	res := mustRun(t, p.options())
	if res.Undo == 0 {
		t.Errorf("nothing is kept: %+v", res)
	}
	again := mustRun(t, p.options())
	if again.Diverged {
		t.Errorf("a second run does not see that it is done: %+v", again)
	}
	u, err := Undo(t.Context(), undo)
	if err != nil || !u.Finished || u.Bytes == 0 || u.Renamed == 0 || u.Removed == 0 || len(u.Notes) > 0 {
		t.Fatalf("%+v %v", u, err)
	}
	t.Logf("moved %d bytes in %.2fs, kept %d, written back %d in %.2fs", res.Bytes, res.Seconds, res.Undo, u.Bytes, u.Seconds)
	sameTree(t, before, p.old.Dir)
	p.interruptAndUndo(before, undo)

	p.old.Start()
	if got := p.old.SQL("SELECT count(*) FROM t WHERE v = 'lost'"); got != "10200" {
		t.Errorf("the old primary has %s of its own rows", got)
	}
	p.old.SQL("SELECT count(*) FROM far")
	amcheck(t, p.old)
	p.old.Stop()

	mustRun(t, p.options())
	p.proveEqual(p.new)
	_, err = Undo(t.Context(), undo)
	if exit.CodeOf(err) != exit.Refused || !strings.Contains(err.Error(), "a server was started") || !strings.Contains(exit.HintOf(err), "--discard") {
		t.Errorf("%v, hint %s", err, exit.HintOf(err))
	}
	discard := undo
	discard.Discard = true
	if _, err := Undo(t.Context(), discard); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(p.old.Dir, volume.OwnDir)); err == nil {
		t.Error("what the undo kept is left")
	}
}

// interruptAndUndo cuts rewinds off at some operations and undoes each.
func (p *pair) interruptAndUndo(before map[string]string, undo UndoOptions) {
	t := p.t
	t.Helper()
	o := p.options()
	o.fs = faultfs.Wrap(volume.OS, nil)
	for _, n := range []int{40, 400, 1200} {
		o.fs = faultfs.Wrap(volume.OS, faultfs.StopAt(n))
		_, err := Run(t.Context(), o)
		if exit.CodeOf(err) != exit.Partial {
			t.Logf("stopped at operation %d: %v", n, err)
		}
		if pending, err := blockcopy.Pending(volume.OS, p.old.Dir); err == nil && pending != nil && pending.State == blockcopy.Partial {
			p.refusesToStart()
		}
		if _, err := Undo(t.Context(), undo); err != nil && !strings.Contains(err.Error(), "nothing to undo") {
			t.Fatalf("undoing what stopped at operation %d: %v", n, err)
		}
		after := tree(t, p.old.Dir)
		maps.DeleteFunc(after, func(name, _ string) bool { return before[name] == after[name] })
		for name := range after {
			t.Errorf("stopped at operation %d, undone: %s is not as before", n, name)
		}
		sameTree(t, before, p.old.Dir)
	}
}

// TestNoUndo gives the undo up for space.
func TestNoUndo(t *testing.T) {
	p := newPair(t, pgtest.Options{})
	p.diverge()
	p.old.Stop()
	o := p.options()
	o.NoUndo = true
	if res := mustRun(t, o); res.Undo != 0 {
		t.Errorf("%d bytes are kept", res.Undo)
	}
	if _, err := os.Stat(filepath.Join(p.old.Dir, volume.OwnDir)); err == nil {
		t.Error("the journal is left")
	}
	if _, err := Undo(t.Context(), UndoOptions{Target: p.old.Dir}); exit.CodeOf(err) != exit.Refused {
		t.Error(err)
	}
}
