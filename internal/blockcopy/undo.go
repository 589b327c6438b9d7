package blockcopy

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/progress"
	"tidemark/pkg/volume"
)

// The state machine of an undo. It repeats every step from the first one on
// when it is run again, for none of them minds having been done; the journal
// stays as it is until the last.
//
//	step          on disk afterwards                             a crash here leaves
//	------------  ---------------------------------------------  -----------------------------------
//	1 tombstone   backup_label invalid, naming the undo, durable  refuses; undo again, or resume the run
//	2 "undoing"   noted in the log, durable                       refuses; undo again, never resume
//	   ------ from here on the target changes ------
//	3 names       removed directories and links made again,       refuses; undo again
//	              renamed files back in their places, durable
//	4 bytes       pre-images written in the reverse order of       refuses; undo again
//	              their logs, sizes and modes as before, fsynced
//	5 created     what the run made is gone, durable              refuses; undo again
//	6 "undone"    noted in the log, durable                       refuses; undo again
//	7 pg_control  the old one, renamed over the new, durable      refuses; undo again
//	8 label       the old backup_label, or none, durable          as it was before (the journal is garbage)
//	9 clean up    the journal gone, its plan first                as it was before
//
// After a finished run the journal stays, with the plan, the logs and the
// fact "result": what pg_control and backup_label were when the run ended. A
// server that starts changes both, so an undo compares them and refuses.

// UndoOptions say what Undo does. Target is needed.
type UndoOptions struct {
	Target   string
	FS       volume.FS // volume.OS where nil
	Command  string    // the command line to run again, for the tombstone and for messages
	Discard  string    // the command line that gives the undo up, for messages
	Progress progress.Reporter
	Log      *slog.Logger
}

// UndoResult is what an undo did.
type UndoResult struct {
	Operation string    `json:"operation"` // what was undone: "rewind"
	Begun     time.Time `json:"begun"`     // when the run that was undone began
	Finished  bool      `json:"finished"`  // it had come to its end
	Bytes     int64     `json:"bytes"`     // written back
	Renamed   int       `json:"renamed"`   // files that were removed and are in their places again
	Removed   int       `json:"removed"`   // files, directories and links that the run had made
	Notes     []string  `json:"notes,omitempty"`
}

// Undo brings the target of a finished or interrupted run back to what it was
// before. It refuses once a server has been started on the result. An error
// after the point of no return has exit.Partial: call it again.
func Undo(ctx context.Context, o UndoOptions) (UndoResult, error) {
	if o.FS == nil {
		o.FS = volume.OS
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Progress = progress.Or(o.Progress)
	u := &undoer{UndoOptions: o}
	if err := u.open(); err != nil {
		return u.result, err
	}
	if err := u.run(ctx); err != nil {
		if !u.placed {
			return u.result, err
		}
		hint := "the data directory is incomplete and refuses to start; run the undo again, it goes on"
		if o.Command != "" {
			hint += ":\n    " + o.Command
		}
		return u.result, &exit.Error{Code: exit.Partial, Hint: hint, Err: err}
	}
	return u.result, clearJournal(o.FS, o.Target)
}

type undoer struct {
	UndoOptions
	plan   *Plan
	facts  facts
	keeper *undoKeeper
	result UndoResult
	links  map[string]string // those that the run made or removed, and where they lead
	placed bool              // the tombstone is there
	modes  targetModes
}

// open reads the journal and refuses what cannot be undone.
func (u *undoer) open() error {
	fi, err := u.FS.Stat(u.Target)
	if err != nil {
		return err
	}
	u.modes = modesFor(fi.Mode().Perm())
	if u.plan, err = readPlan(u.FS, u.Target); errors.Is(err, fs.ErrNotExist) {
		return exit.New(exit.Refused, "", "%s holds nothing to undo: it has no journal of a run", u.Target)
	} else if err != nil {
		return exit.Wrap(err, exit.Refused, "", "the journal in %s cannot be read", u.Target)
	}
	if u.facts, _, err = readFacts(u.FS, u.Target); err != nil {
		return err
	}
	u.result.Operation, u.result.Begun, u.result.Finished = u.plan.Operation, u.plan.Created, u.facts.finishing
	stone, err := volume.ReadTombstone(u.FS, u.Target)
	switch {
	case err != nil && !errors.Is(err, volume.ErrNoTombstone):
		return err
	case err == nil && stone.Work != u.plan.ID:
		return exit.New(exit.Refused, "", "%s: the tombstone and the journal belong to different runs", u.Target)
	}
	u.placed = err == nil
	if !u.placed && (u.facts.undone || !u.facts.begun) {
		return nil // it is as it was; only the journal is left
	}
	return u.mayUndo()
}

func (u *undoer) mayUndo() error {
	switch {
	case u.facts.givenUp:
		return exit.New(exit.Refused, "", "the undo of the %s of %s was given up", u.plan.Operation, u.begun())
	case !u.plan.Undo && u.placed:
		return exit.New(exit.Refused, "run it again, it goes on where it stopped: "+u.plan.Command,
			"the %s of %s keeps nothing to undo it with", u.plan.Operation, u.begun())
	case !u.plan.Undo:
		return exit.New(exit.Refused, "", "the %s of %s kept nothing to undo it with", u.plan.Operation, u.begun())
	case u.placed:
		return nil
	}
	reason, err := serverStarted(u.FS, u.Target, u.facts)
	if err != nil || reason == "" {
		return err
	}
	hint := "what that server wrote would be lost; to go back to the old state restore a backup"
	if u.Discard != "" {
		hint += "\nto remove what is kept for the undo: " + u.Discard
	}
	return exit.New(exit.Refused, hint, "a server was started after the %s of %s (%s): it can no longer be undone", u.plan.Operation, u.begun(), reason)
}

func (u *undoer) begun() string { return u.plan.Created.Format(time.RFC3339) }

func (u *undoer) run(ctx context.Context) error {
	if !u.placed && (u.facts.undone || !u.facts.begun) {
		return u.removeTemps("backup_label")
	}
	u.keeper = newUndoKeeper(u.FS, u.Target, u.plan, u.modes, false)
	if err := u.keeper.load(); err != nil {
		return err
	}
	u.links = map[string]string{}
	for _, a := range u.plan.Actions {
		if was := u.keeper.known[a.Path]; was.kind == undoLink {
			u.links[a.Path] = string(was.text)
		} else if a.Kind == CreateLink {
			u.links[a.Path] = a.LinkTarget
		}
	}
	j, err := u.begin()
	if err != nil {
		return err
	}
	err = u.restore(ctx, j)
	if err = errors.Join(err, j.close()); err != nil {
		return err
	}
	return u.reveal()
}

// begin is steps 1 and 2.
func (u *undoer) begin() (*journal, error) {
	j, err := openJournal(u.FS, u.Target, u.modes, false)
	if err != nil {
		return nil, err
	}
	err = volume.PlaceTombstone(u.FS, u.Target, volume.Tombstone{Operation: u.plan.Operation, Work: u.plan.ID, Started: u.plan.Created,
		Command: u.Command, Hint: "It is being undone."})
	if stone, serr := volume.ReadTombstone(u.FS, u.Target); serr == nil && stone.Work == u.plan.ID {
		u.placed = true
	}
	if err == nil && !j.undoing {
		err = j.note(factUndoing)
	}
	if err != nil {
		return nil, errors.Join(err, j.close())
	}
	return j, nil
}

// restore is steps 3 to 6.
func (u *undoer) restore(ctx context.Context, j *journal) error {
	logs := u.logsInReverse()
	var total int64
	sizes := map[string]int64{}
	for _, name := range logs {
		if fi, err := u.FS.Stat(u.keeper.log(name)); err == nil {
			sizes[name] = fi.Size()
			total += fi.Size()
		}
	}
	u.Progress.Phase("undoing", total, progress.Bytes)
	if err := u.names(); err != nil {
		return err
	}
	for _, name := range logs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := u.apply(name); err != nil {
			return err
		}
		u.Progress.Add(sizes[name])
	}
	if err := u.settle(ctx); err != nil {
		return err
	}
	if err := u.removeCreated(); err != nil {
		return err
	}
	if j.undone {
		return nil
	}
	return j.note(factUndone)
}

// logsInReverse are the logs that hold bytes, the latest first.
func (u *undoer) logsInReverse() []string {
	logs := u.keeper.finishLogs()
	slices.Reverse(logs)
	if u.keeper.logs[undoTails] {
		logs = append(logs, undoTails)
	}
	for _, name := range slices.Sorted(maps.Keys(u.keeper.logs)) {
		if strings.HasPrefix(name, undoBatch) {
			logs = append(logs, name)
		}
	}
	return append(logs, undoNames)
}
