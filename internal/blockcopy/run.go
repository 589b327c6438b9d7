package blockcopy

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
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
//	1 journal      JournalDir with the plan, durable           the target as it was (Planned)
//	2 tombstone    backup_label invalid, durable; "begun"      refuses; resume (Partial)
//	   ------ from here on the target changes ------
//	3a create      directories, links, empty files, durable    refuses; resume repeats it
//	3b fetch       per task: bytes written, fsynced, noted     refuses; resume skips noted tasks
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
// Undo has its place at five points and nowhere else: in 1 what every path was
// is written down, and before a task of 3b is written (its pre-images), in 3c
// (the tails), in 3d (rename aside instead of remove) and in 4 (the files it
// replaces) what is destroyed is kept. pg_control and backup_label have their
// copies in the journal. undolog.go says how it is kept, undo.go how it is used.

// Finish is what a run needs to know only after its last byte is durable.
type Finish struct {
	// Late are copies that could not be planned before: WAL that came into
	// being meanwhile. They are not journalled; a resumed run does them anew.
	Late []Action
	// Check, where set, is called when the late files are there and before
	// pg_control is written: its error leaves the target unfinished.
	Check func(ctx context.Context) error
	// Files are durable before pg_control: recovery settings, signal files.
	Files []FinalFile
	// Control is the new pg_control, 8192 bytes; nil leaves the target's.
	Control []byte
	// Label is the valid backup_label; nil means that the target starts
	// without one. TablespaceMap nil means none.
	Label         []byte
	TablespaceMap []byte
}

// FinalFile is a small file that is written whole.
type FinalFile struct {
	Path string
	Data []byte
}

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
		c.TaskBytes = DefaultTaskBytes
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
	tasks := SplitTasks(fetchRanges(r.plan.Actions), r.plan.TaskBytes)
	todo := slices.DeleteFunc(slices.Clone(tasks), func(t Task) bool { return r.journal.tasks[t.Index] })
	for _, t := range tasks {
		r.result.SkippedBytes += t.Bytes()
	}
	var todoBytes int64
	for _, t := range todo {
		todoBytes += t.Bytes()
	}
	r.result.SkippedBytes -= todoBytes
	r.Log.Info("copying", "bytes", todoBytes, "tasks", len(todo), "durable_bytes", r.result.SkippedBytes)
	r.Progress.Phase("copying", r.plan.Totals.Bytes, progress.Bytes)
	r.Progress.Add(r.result.SkippedBytes)
	copier := newCopier(r, r.plan.Actions, r.journal.note)
	copier.before = r.undo.task
	err := eachTask(ctx, todo, r.Jobs, copier.do)
	r.result.FetchedBytes = copier.bytes.Load()
	if err != nil {
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

// create is step 3a. Names are durable before any task counts as done.
func (r *runner) create(actions []Action) error {
	dirs := map[string]bool{}
	for _, a := range actions {
		var err error
		switch a.Kind {
		case CreateDir:
			err = r.createDir(a.Path)
		case CreateLink:
			err = r.createLink(a)
		case Copy:
			err = r.createFile(a.Path)
		default:
			continue
		}
		if err != nil {
			return err
		}
		dirs[filepath.Dir(r.path(a.Path))] = true
	}
	return r.syncDirs(dirs)
}

func (r *runner) createDir(name string) error {
	err := r.FS.Mkdir(r.path(name), r.modes.dir)
	if errors.Is(err, fs.ErrExist) {
		fi, err := r.FS.Stat(r.path(name))
		if err == nil && !fi.IsDir() {
			err = fmt.Errorf("%s is a directory at the source and a file here", r.path(name))
		}
		return err
	}
	if err != nil {
		return err
	}
	return r.allowGroup(name, r.modes.dir)
}

func (r *runner) createLink(a Action) error {
	made, err := volume.MkdirAll(r.FS, a.LinkTarget, r.modes.dir)
	if err != nil {
		return err
	}
	for _, name := range made {
		if err := r.FS.SyncDir(filepath.Dir(name)); err != nil {
			return err
		}
	}
	have, err := r.FS.Readlink(r.path(a.Path))
	switch {
	case err == nil && have == a.LinkTarget:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return r.FS.Symlink(a.LinkTarget, r.path(a.Path))
	case err == nil:
		return fmt.Errorf("%s points to %s, not to %s", r.path(a.Path), have, a.LinkTarget)
	}
	return err
}

func (r *runner) createFile(name string) error {
	f, err := r.FS.OpenFile(r.path(name), os.O_RDWR|os.O_CREATE|os.O_EXCL, r.modes.file)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return r.allowGroup(name, r.modes.file)
}

// allowGroup undoes what a strict umask took from a target with group access.
func (r *runner) allowGroup(name string, mode fs.FileMode) error {
	if mode&0o040 == 0 {
		return nil
	}
	return r.FS.Chmod(r.path(name), mode)
}

func (r *runner) syncDirs(dirs map[string]bool) error {
	for dir := range dirs {
		if err := r.FS.SyncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
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

// truncate is step 3c: copied files get the source's size, and files that the
// plan shortens are shortened.
func (r *runner) truncate(actions []Action, f facts) error {
	for i, a := range actions {
		size, ok := finalSize(i, a, f)
		if !ok {
			continue
		}
		if err := r.shorten(a.Path, size); err != nil {
			return err
		}
	}
	return nil
}

// finalSize is the size that step 3c gives a file, where it does.
func finalSize(i int, a Action, f facts) (size int64, ok bool) {
	if f.gone[i] || a.Kind != Copy && a.Kind != Truncate {
		return 0, false
	}
	if short, ok := f.short[i]; ok && a.Kind == Copy {
		return min(a.Size, short), true
	}
	return a.Size, true
}

// tails is what truncate will cut off of the target's own files.
func (r *runner) tails(actions []Action, f facts) []Range {
	if r.undo == nil {
		return nil
	}
	var tails []Range
	for i, a := range actions {
		was := r.undo.known[a.Path]
		if size, ok := finalSize(i, a, f); ok && was.kind == undoFile && was.size > size {
			tails = append(tails, Range{a.Path, size, was.size - size})
		}
	}
	return tails
}

func (r *runner) shorten(name string, size int64) error {
	fi, err := r.FS.Stat(r.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a resumed run meets what step 3d removed
	}
	if err != nil || fi.Size() <= size {
		return err
	}
	if err := r.FS.Truncate(r.path(name), size); err != nil {
		return err
	}
	if r.NoSync {
		return nil
	}
	return volume.SyncFile(r.FS, r.path(name))
}

// remove is step 3d: what the plan removes and what is gone at the source.
func (r *runner) remove(actions []Action, f facts) error {
	first := map[string]int{}
	for i, a := range actions {
		if _, ok := first[a.Path]; !ok && (a.Kind == Remove || f.gone[i]) {
			first[a.Path] = i
		}
	}
	names := slices.Sorted(maps.Keys(first))
	slices.Reverse(names)
	s := dirSyncer{fsys: r.FS, first: r.undo.syncAside}
	for _, name := range names {
		if err := s.enter(filepath.Dir(r.path(name))); err != nil {
			return err
		}
		if err := r.removeOne(name, first[name]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return s.enter("")
}

func (r *runner) removeOne(name string, action int) error {
	if r.undo != nil {
		return r.undo.remove(name, action)
	}
	return r.FS.Remove(r.path(name))
}

// finish is steps 4 to 6.
func (r *runner) finish(ctx context.Context) error {
	r.Progress.Phase("finishing", 0, progress.Items)
	f, err := r.Finish(ctx)
	if err != nil {
		return err
	}
	if err := r.undo.finish(f); err != nil {
		return err
	}
	if err := r.late(ctx, f.Late); err != nil {
		return err
	}
	if f.Check != nil {
		if err := f.Check(ctx); err != nil {
			return err
		}
	}
	for _, file := range f.Files {
		if err := CheckPath(file.Path); err != nil {
			return err
		}
		if err := volume.WriteFile(r.FS, r.path(file.Path), file.Data, r.modes.file); err != nil {
			return err
		}
	}
	if f.TablespaceMap == nil {
		err = volume.RemoveDurable(r.FS, r.path("tablespace_map"))
	} else {
		err = volume.WriteFile(r.FS, r.path("tablespace_map"), f.TablespaceMap, r.modes.file)
	}
	if err != nil {
		return err
	}
	if err := r.noteResult(f); err != nil {
		return err
	}
	if err := r.journal.note(factFinishing); err != nil {
		return err
	}
	if f.Control != nil {
		if err := volume.WriteFile(r.FS, r.path("global/pg_control"), f.Control, r.modes.file); err != nil {
			return err
		}
	}
	if f.Label == nil {
		return volume.RemoveDurable(r.FS, r.path("backup_label"))
	}
	return volume.WriteFile(r.FS, r.path("backup_label"), f.Label, r.modes.file)
}

// noteResult notes what the target will be like when the run has ended, so
// that an undo can tell whether a server was started on it.
func (r *runner) noteResult(f Finish) error {
	if r.undo == nil {
		return nil
	}
	control, exists := f.Control, true
	if control == nil {
		data, err := volume.ReadFile(r.FS, r.path(volume.ControlPath), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		control, exists = data, err == nil
	}
	return r.journal.note(factResult + " " + contentSum(control, exists) + " " + contentSum(f.Label, f.Label != nil))
}

// late copies what came into being while the plan was carried out. A late
// file that has vanished again is an error: it would leave a hole.
func (r *runner) late(ctx context.Context, actions []Action) error {
	if len(actions) == 0 {
		return nil
	}
	p := Plan{Version: PlanVersion, TaskBytes: DefaultTaskBytes, Actions: actions}
	if err := p.Validate(); err != nil {
		return err
	}
	if err := r.create(actions); err != nil {
		return err
	}
	p.Sum()
	r.Progress.Phase("copying what came meanwhile", p.Totals.Bytes, progress.Bytes)
	f := newFacts()
	copier := newCopier(r, actions, func(text string) error { return nil })
	copier.onFact = func(t taskFact) { f.learn(t.line()) }
	err := eachTask(ctx, SplitTasks(fetchRanges(actions), p.TaskBytes), 1, copier.do)
	r.result.LateBytes = copier.bytes.Load()
	if err != nil {
		return err
	}
	return r.truncate(actions, f)
}
