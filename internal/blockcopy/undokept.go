package blockcopy

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"tidemark/internal/exit"
	"tidemark/pkg/volume"
)

// serverStarted tells how one sees that a server was started on what a run
// left; "" when none was.
func serverStarted(fsys volume.FS, target string, f facts) (string, error) {
	now, err := resultNow(fsys, target)
	if err != nil {
		return "", err
	}
	if f.result == now {
		return "", nil
	}
	control, label, _ := strings.Cut(f.result, " ")
	controlNow, labelNow, _ := strings.Cut(now, " ")
	if f.result == "" || f.undoing {
		// Somebody removed the tombstone of a run or an undo half-way.
		same, err := controlUnchanged(fsys, target)
		if err != nil || same || control == controlNow {
			return "", err
		}
	}
	switch {
	case label != labelNow && labelNow == noSum:
		return "backup_label is gone", nil
	case label != labelNow:
		return "backup_label has changed", nil
	case control != controlNow:
		return "pg_control has changed", nil
	}
	return "", nil
}

// noSum stands for a file that is not there.
const noSum = "-"

// resultNow sums up the two files that every start of a server changes.
func resultNow(fsys volume.FS, target string) (string, error) {
	var sums []string
	for _, name := range []string{"global/pg_control", "backup_label"} {
		data, err := volume.ReadFile(fsys, placeOf(target, name), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		sums = append(sums, contentSum(data, err == nil))
	}
	return strings.Join(sums, " "), nil
}

func contentSum(data []byte, exists bool) string {
	if !exists {
		return noSum
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// GiveUp removes what a finished run keeps for its undo. It refuses a run that
// is not finished.
func GiveUp(fsys volume.FS, target string) error {
	p, err := Pending(fsys, target)
	if err != nil {
		return err
	}
	if p != nil && p.State == Partial {
		return exit.New(exit.Refused, "finish it: "+p.Plan.Command, "%s is incomplete: its journal is needed to go on or to undo", target)
	}
	return clearJournal(fsys, target)
}

// Kept is what a finished run keeps for its undo.
type Kept struct {
	Operation string
	Begun     time.Time
	Started   string // how one sees that a server was started since; "" when none was
}

// Undoable looks for a finished run that can be undone, or could be before a
// server was started; nil means that there is none.
func Undoable(fsys volume.FS, target string) (*Kept, error) {
	plan, err := readPlan(fsys, target)
	if err != nil || !plan.Undo {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return nil, err
	}
	f, _, err := readFacts(fsys, target)
	if err != nil || !f.finishing || f.givenUp || f.undone {
		return nil, err
	}
	k := &Kept{Operation: plan.Operation, Begun: plan.Created}
	if _, err := volume.ReadTombstone(fsys, target); err == nil {
		return nil, nil
	}
	k.Started, err = serverStarted(fsys, target, f)
	return k, err
}

// clearJournal removes a journal, and before it what lies renamed aside on
// other file systems. Once that has begun nothing can be undone any more.
func clearJournal(fsys volume.FS, target string) error {
	plan, err := readPlan(fsys, target)
	if err == nil && plan.Undo {
		err = clearAside(fsys, target, plan)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return removeJournal(fsys, target)
}

func clearAside(fsys volume.FS, target string, plan *Plan) error {
	fi, err := fsys.Stat(target)
	if err != nil {
		return err
	}
	modes := modesFor(fi.Mode().Perm())
	u := newUndoKeeper(fsys, target, plan, modes, false)
	if err := u.load(); err != nil {
		return err
	}
	j, err := openJournal(fsys, target, modes, false)
	if err != nil {
		return err
	}
	if !j.givenUp {
		err = j.note(factGivenUp)
	}
	if err = errors.Join(err, j.close()); err != nil {
		return err
	}
	places := map[string]bool{}
	for _, a := range plan.Actions {
		if u.known[a.Path].kind == undoFile {
			for _, place := range asidePlaces(fsys, target, plan.ID, a.Path, u.known)[1:] {
				places[place] = true
			}
		}
	}
	for place := range places {
		if err := volume.RemoveAll(fsys, place); err != nil {
			return err
		}
		above := filepath.Dir(place)
		if entries, err := fsys.ReadDir(above); missing(err) || err == nil && len(entries) > 0 {
			continue // another cluster's may lie beside it
		}
		if err := volume.RemoveDurable(fsys, above); err != nil {
			return err
		}
	}
	return nil
}
