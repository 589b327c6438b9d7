package blockcopy

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/progress"
	"tidemark/pkg/volume"
)

// The state machine of a run. "Refuses" means that the server refuses to
// start on the directory because its backup_label is the tombstone.
//
//	step           on disk afterwards                          a crash here leaves
//	-------------  ------------------------------------------  ------------------------------------
//	0 room         nothing; refused where it does not fit      the target as it was
//	1 journal      JournalDir with the plan, durable           the target as it was (Planned)
//	2 tombstone    backup_label invalid, durable; "begun"      refuses; resume (Partial)
//	   ------ from here on the target changes ------
//	3a create      directories, links, empty files, durable    refuses; resume repeats it
//	3b fetch       per batch of tasks: bytes written,          refuses; resume skips noted tasks
//	               fsynced, then its tasks noted at once
//	3c truncate    files shortened, fsynced                    refuses; resume repeats it
//	3d remove      names gone, in reverse order, durable       refuses; resume repeats it
//	4 finish       Finish's late copies and files, durable;    refuses; resume calls Finish anew
//	               tablespace_map in place; "finishing"
//	5 pg_control   the new one, renamed over the old, durable  refuses; resume calls Finish anew
//	6 label        the valid backup_label renamed over the     the target is whole and may start
//	               tombstone, durable                          (Finished: the journal is garbage)
//	7 clean up     JournalDir gone, its plan first; with the   the target is whole
//	               undo kept it stays (see undo.go)
//
// A resumed run takes the plan from the journal, never a new one: what was
// planned stays right, because replay starts at a redo point that lies before
// every copy.
//
// In 3b several batches are under way at once (batch.go): the first one is being
// fsynced and noted, the next one fetched and written, and what the ones after
// that overwrite is being kept for the undo. Each of them keeps the order
// keep, write, fsync, note; a batch is written only after its pre-images are
// durable, and a task is noted only after its bytes are. What a kill leaves
// between the two is fetched again, at most a few batches; an error or an
// interrupt settles what was fetched before it ends. Content that the target
// has already is not written, unless an earlier run may have failed to sync it.
//
// Undo has its place at five points and nowhere else: in 1 what every path was
// is written down, and before a batch of 3b is written (its pre-images), in 3c
// (the tails), in 3d (rename aside instead of remove) and in 4 (the files it
// replaces) what is destroyed is kept. pg_control and backup_label have their
// copies in the journal. undolog.go says how it is kept, undo.go how it is used.

// Options say what Run does. Target, Source, Finish and either Plan or Resume
// are needed.
type Options struct {
	Target string    // the data directory; it exists
	FS     volume.FS // every change goes through it; volume.OS where nil
	Source Source
	Plan   *Plan // a new run; its ID is set
	Resume bool  // go on with the plan that the target's journal holds
	// Undo keeps what Undo needs; a resumed run does what its first one did.
	// UndoFiles are small files besides that are restored with the rest: those
	// that an operator sets up before the first start.
	Undo        bool
	UndoFiles   []string
	UndoCommand string // the command line that undoes, for messages
	Jobs        int    // workers, DefaultJobs where 0
	// NoSync leaves out the fsync of copied data and of what the journal
	// says of it. After a loss of power such a run must not be resumed.
	NoSync bool
	// Finish is called after all copied data is durable. It may be called
	// again by a resumed run.
	Finish   func(ctx context.Context) (Finish, error)
	Progress progress.Reporter
	Log      *slog.Logger
}

// Result is what a run did.
type Result struct {
	Resumed      bool          `json:"resumed"`
	FetchedBytes int64         `json:"fetched_bytes"` // by this run
	SkippedBytes int64         `json:"skipped_bytes"` // durable from earlier runs
	LateBytes    int64         `json:"late_bytes"`
	UndoBytes    int64         `json:"undo_bytes"` // kept for the undo
	Totals       Totals        `json:"totals"`
	Elapsed      time.Duration `json:"-"`
}

// Run carries a plan out, or goes on where an earlier run stopped. An error
// after the point of no return has exit.Partial; one before leaves the target
// as it was.
func Run(ctx context.Context, o Options) (Result, error) {
	start := time.Now()
	r, err := newRunner(o)
	if err != nil {
		return Result{}, err
	}
	defer r.close()
	err = r.run(ctx)
	r.result.Elapsed = time.Since(start)
	return r.result, err
}

type runner struct {
	Options
	plan    *Plan
	state   State
	modes   targetModes
	journal *journal
	undo    *undoKeeper
	result  Result
}

func newRunner(o Options) (*runner, error) {
	if o.FS == nil {
		o.FS = volume.OS
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Progress = progress.Or(o.Progress)
	fi, err := o.FS.Stat(o.Target)
	if err != nil {
		return nil, err
	}
	r := &runner{Options: o, modes: modesFor(fi.Mode().Perm())}
	pending, err := Pending(o.FS, o.Target)
	switch {
	case err != nil:
		return nil, err
	case o.Resume && pending == nil:
		return nil, exit.New(exit.Failed, "", "%s holds no unfinished run", o.Target)
	case o.Resume && pending.Undoing:
		return nil, exit.New(exit.Refused, "go on with the undo: "+pending.Plan.Command, "the %s of %s is being undone", pending.Plan.Operation, o.Target)
	case o.Resume:
		r.plan, r.state = pending.Plan, pending.State
		r.result.Resumed = true
	case pending != nil:
		return nil, exit.New(exit.Refused, "resume it: "+pending.Plan.Command,
			"%s holds an unfinished %s, begun %s", o.Target, pending.Plan.Operation, pending.Plan.Created.Format(time.RFC3339))
	default:
		if r.plan, err = newPlan(o.Plan); err == nil {
			r.plan.Undo = o.Undo
		}
	}
	if err != nil {
		return nil, err
	}
	r.undo = newUndoKeeper(r.FS, r.Target, r.plan, r.modes, r.NoSync)
	r.result.Totals = r.plan.Totals
	return r, nil
}

// newPlan completes a planner's plan.
func newPlan(p *Plan) (*Plan, error) {
	c := *p
	var id [8]byte
	rand.Read(id[:])
	c.Version, c.ID = PlanVersion, hex.EncodeToString(id[:])
	if c.TaskBytes == 0 {
		c.TaskBytes = planTaskBytes
	}
	if c.Created.IsZero() {
		c.Created = time.Now().UTC().Truncate(time.Second)
	}
	c.Sum()
	return &c, c.Validate()
}

func (r *runner) close() {
	if r.journal != nil {
		if err := r.journal.close(); err != nil {
			r.Log.Warn("closing the journal", "error", err)
		}
	}
}

func (r *runner) path(name string) string { return filepath.Join(r.Target, filepath.FromSlash(name)) }

func (r *runner) run(ctx context.Context) error {
	if r.state == Finished {
		return removeJournal(r.FS, r.Target)
	}
	if err := r.prepare(); err != nil {
		if r.tombstoned() {
			err = r.partial(err)
		}
		return err
	}
	if err := r.change(ctx); err != nil {
		return r.partial(err)
	}
	if r.undo != nil {
		r.result.UndoBytes = r.undo.size()
		return nil
	}
	if err := removeJournal(r.FS, r.Target); err != nil {
		return exit.Wrap(err, exit.Failed, "the data directory is whole; remove "+JournalDir+" by hand or run the command again",
			"cleaning up the journal")
	}
	return nil
}

// partial marks an error after the point of no return.
func (r *runner) partial(err error) error {
	code := exit.Partial
	if c := exit.CodeOf(err); c == exit.Refused {
		code = c
	}
	hint := exit.HintOf(err)
	if hint != "" {
		hint += "\n"
	}
	hint += "the data directory is incomplete and refuses to start"
	if code != exit.Refused { // what is refused now is refused again
		hint += "; run the same command again, it goes on where it stopped"
		if r.plan.Command != "" {
			hint += ":\n    " + r.plan.Command
		}
	}
	if r.undo != nil && r.UndoCommand != "" {
		hint += "\nor bring it back to what it was before:\n    " + r.UndoCommand
	}
	if errors.Is(err, context.Canceled) {
		return exit.Wrap(err, code, hint, "interrupted")
	}
	return &exit.Error{Code: code, Hint: hint, Err: err}
}

// prepare is steps 1 and 2. On error the target is as it was, or tombstoned.
func (r *runner) prepare() (err error) {
	if r.state == 0 {
		if err := r.checkSpace(); err != nil {
			return err
		}
	}
	switch {
	case r.state == 0 || r.state == Planned && r.undo != nil: // a server may have run since it was planned
		keep := func() error { return r.undo.begin(r.plan.Actions, r.UndoFiles) }
		if err := createJournal(r.FS, r.Target, r.plan, r.modes, keep); err != nil {
			cleanup := removeJournal(r.FS, r.Target)
			return fmt.Errorf("writing the journal, nothing else is changed: %w", errors.Join(err, cleanup))
		}
	default:
		if err := r.undo.load(); err != nil {
			return fmt.Errorf("reading what is kept for the undo: %w", err)
		}
	}
	if r.journal, err = openJournal(r.FS, r.Target, r.modes, r.NoSync); err != nil {
		return err
	}
	if r.state == Partial && r.journal.begun && r.tombstoned() {
		return nil
	}
	t := volume.Tombstone{Operation: r.plan.Operation, Work: r.plan.ID, Started: r.plan.Created, Command: r.plan.Command}
	if r.undo != nil && r.UndoCommand != "" {
		t.Hint = "Or bring the directory back to what it was before:\n\n    " + r.UndoCommand + "\n\n"
	}
	return volume.PlaceTombstone(r.FS, r.Target, t)
}

func (r *runner) tombstoned() bool {
	t, err := volume.ReadTombstone(r.FS, r.Target)
	return err == nil && t.Work == r.plan.ID
}

// change is steps 3 to 6: everything after the point of no return.
func (r *runner) change(ctx context.Context) error {
	if err := r.journal.note(factBegun); err != nil {
		return err
	}
	if err := r.create(r.plan.Actions); err != nil {
		return err
	}
	if err := r.copy(ctx); err != nil {
		return err
	}
	if err := r.undo.tails(r.tails(r.plan.Actions, r.journal.facts)); err != nil {
		return err
	}
	if err := r.truncate(r.plan.Actions, r.journal.facts); err != nil {
		return err
	}
	if err := r.remove(r.plan.Actions, r.journal.facts); err != nil {
		return err
	}
	return r.finish(ctx)
}

// copy is step 3b.
func (r *runner) copy(ctx context.Context) error {
	tasks := SplitTasks(fetchRanges(r.plan.Actions), r.plan.TaskBytes)
	done := maps.Clone(r.journal.tasks)
	for _, t := range tasks {
		if done[t.Index] {
			r.result.SkippedBytes += t.Bytes()
		}
	}
	r.Log.Info("copying", "bytes", r.plan.Totals.Bytes-r.result.SkippedBytes, "tasks", len(tasks)-len(done), "durable_bytes", r.result.SkippedBytes)
	r.Progress.Phase("copying", r.plan.Totals.Bytes, progress.Bytes)
	r.Progress.Add(r.result.SkippedBytes)
	c := newCopier(r, r.plan.Actions, r.journal.noteTasks)
	// What an earlier run wrote and failed to sync may be in memory alone.
	c.keep = func(b *batch) error { return r.undo.batch(b, !r.result.Resumed) }
	err := c.run(ctx, tasks, r.plan.TaskBytes, done)
	r.result.FetchedBytes = c.bytes.Load()
	return err
}

// fetchRanges is what a plan's actions fetch, in the plan's order.
func fetchRanges(actions []Action) []Range {
	var ranges []Range
	for _, a := range actions {
		for _, s := range a.spans() {
			ranges = append(ranges, Range{a.Path, s.Offset, s.Length})
		}
	}
	return ranges
}
