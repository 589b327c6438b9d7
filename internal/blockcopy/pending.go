package blockcopy

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"tidemark/internal/exit"
	"tidemark/pkg/volume"
)

// State says how far an unfinished run had come.
type State uint8

// The states of an unfinished run.
const (
	Planned  State = iota + 1 // nothing is changed yet: Discard it or resume
	Partial                   // the target is incomplete and refuses to start: resume
	Finished                  // the target is whole, only the journal is left: Discard it or resume
)

var stateNames = [...]string{Planned: "planned", Partial: "partial", Finished: "finished"}

func (s State) String() string {
	if s > 0 && int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// MarshalText writes the state's name.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// PendingRun is an unfinished run that a data directory holds.
type PendingRun struct {
	State     State `json:"state"`
	Plan      *Plan `json:"plan"`
	DoneBytes int64 `json:"done_bytes"` // durable, need not be copied again
	// Undoing: it is being undone and cannot be resumed; Plan.Command is then
	// the undo's.
	Undoing bool `json:"undoing"`
}

// Pending looks for an unfinished run in target; nil means that there is none.
// A finished run that keeps its undo is no unfinished run (see Undoable).
// It refuses a directory whose tombstone or journal was tampered with.
func Pending(fsys volume.FS, target string) (*PendingRun, error) {
	stone, err := volume.ReadTombstone(fsys, target)
	tombstoned := err == nil
	if err != nil && !errors.Is(err, volume.ErrNoTombstone) {
		return nil, err
	}
	plan, err := readPlan(fsys, target)
	if errors.Is(err, fs.ErrNotExist) {
		if !tombstoned {
			return nil, nil
		}
		return nil, exit.New(exit.Refused, "the directory can only be filled anew (dbrepl seed, dbrecover restore)",
			"%s is incomplete (its backup_label is a tombstone) and the journal to go on from is gone", target)
	}
	if err != nil {
		return nil, exit.Wrap(err, exit.Refused, "", "%s holds an unfinished run whose plan cannot be read", target)
	}
	f, _, err := readFacts(fsys, target)
	if err != nil {
		return nil, err
	}
	p := &PendingRun{Plan: plan}
	for _, t := range SplitTasks(fetchRanges(plan.Actions), plan.TaskBytes) {
		if f.tasks[t.Index] {
			p.DoneBytes += t.Bytes()
		}
	}
	p.State, err = stateOf(fsys, target, plan, stone.Work, f)
	if err == nil && plan.Undo && p.State == Finished {
		return nil, nil
	}
	if p.Undoing = f.undoing && p.State == Partial; p.Undoing && tombstoned {
		plan.Command = stone.Command
	}
	return p, err
}

func stateOf(fsys volume.FS, target string, plan *Plan, tombstone string, f facts) (State, error) {
	switch {
	case tombstone == plan.ID:
		return Partial, nil
	case tombstone != "":
		return 0, exit.New(exit.Refused, "", "%s: the tombstone and the journal belong to different runs", target)
	case f.undone, f.givenUp:
		return Finished, nil
	case f.finishing && !f.undoing:
		return Finished, nil
	case !f.begun:
		return Planned, nil
	}
	// Somebody removed the tombstone. As long as no server has written
	// pg_control since, the run can go on and put it back.
	same, err := controlUnchanged(fsys, target)
	if err == nil && !same && f.undoing {
		var started string
		started, err = serverStarted(fsys, target, f)
		same = started == ""
	}
	if err == nil && !same {
		err = exit.New(exit.Refused, "the directory can only be filled anew (dbrepl seed, dbrecover restore)",
			"%s holds a half-finished %s, its tombstone was removed and a server was started on it", target, plan.Operation)
	}
	return Partial, err
}

func controlUnchanged(fsys volume.FS, target string) (bool, error) {
	now, err := volume.ReadFile(fsys, filepath.Join(target, "global", "pg_control"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	before, err := volume.ReadFile(fsys, filepath.Join(journalDir(target), controlName), 0)
	return bytes.Equal(now, before), err
}

// Discard removes the journal of a run that has changed nothing yet or that
// is finished. It refuses any other.
func Discard(fsys volume.FS, target string) error {
	p, err := Pending(fsys, target)
	if err != nil || p == nil {
		return err
	}
	if p.State == Partial {
		return exit.New(exit.Refused, "resume it: "+p.Plan.Command, "%s is incomplete: its journal is needed to go on", target)
	}
	return clearJournal(fsys, target)
}
