package blockcopy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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
	for _, name := range logs {
		if fi, err := u.FS.Stat(u.keeper.log(name)); err == nil {
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
		if strings.HasPrefix(name, undoTaskPre) {
			logs = append(logs, name)
		}
	}
	return append(logs, undoNames)
}

// at is a path's place. What lies behind the link of a tablespace is found
// without it: the run may have made or removed the link, and a crash may have
// lost that.
func (u *undoer) at(path string) string {
	if rest, ok := strings.CutPrefix(path, "pg_tblspc/"); ok {
		oid, rest, below := strings.Cut(rest, "/")
		if target := u.links["pg_tblspc/"+oid]; below && filepath.IsAbs(target) {
			return filepath.Join(target, filepath.FromSlash(rest))
		}
	}
	return placeOf(u.Target, path)
}

// final are the files that steps 7 and 8 restore.
func final(path string) bool { return path == volume.ControlPath || path == volume.BackupLabelFile }

// names is step 3: parents first.
func (u *undoer) names() error {
	dirs := map[string]bool{}
	for _, path := range slices.Sorted(maps.Keys(u.keeper.known)) {
		e := u.keeper.known[path]
		at := u.at(path)
		if e.kind != undoDir && e.kind != undoLink {
			continue
		}
		if _, err := u.FS.Lstat(at); !missing(err) {
			if err != nil {
				return err
			}
			continue
		}
		var err error
		if e.kind == undoDir {
			err = u.FS.Mkdir(at, e.mode)
		} else {
			err = u.FS.Symlink(string(e.text), at)
		}
		if err != nil {
			return err
		}
		dirs[filepath.Dir(at)] = true
	}
	places := map[string]bool{}
	if err := u.renameBack(dirs, places); err != nil {
		return err
	}
	// Where a file is comes before where it no longer is.
	for _, dir := range slices.Concat(slices.Sorted(maps.Keys(dirs)), slices.Sorted(maps.Keys(places))) {
		if err := u.FS.SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// renameBack puts the files that were renamed aside where they were.
func (u *undoer) renameBack(dirs, places map[string]bool) error {
	for i, a := range u.plan.Actions {
		if u.keeper.known[a.Path].kind != undoFile {
			continue
		}
		name := undoAside + strconv.Itoa(i)
		for _, place := range asidePlaces(u.FS, u.Target, u.plan.ID, a.Path, u.keeper.known) {
			if _, err := u.FS.Lstat(filepath.Join(place, name)); missing(err) {
				continue
			} else if err != nil {
				return err
			}
			if err := u.FS.Rename(filepath.Join(place, name), u.at(a.Path)); err != nil {
				return err
			}
			places[place], dirs[filepath.Dir(u.at(a.Path))] = true, true
			u.result.Renamed++
		}
	}
	return nil
}

// apply writes the bytes of one log. What they are written to is made durable
// by settle.
func (u *undoer) apply(name string) error {
	var f volume.File
	open := ""
	err := readUndoLog(u.FS, u.keeper.log(name), func(e undoEntry) (err error) {
		u.Progress.Add(int64(undoHeader + len(e.path) + len(e.text)))
		if e.kind == undoFile && e.whole {
			return u.makeAgain(u.keeper.known[e.path])
		}
		if e.kind != undoBytes {
			return nil
		}
		if open != e.path {
			if f != nil {
				if err := f.Close(); err != nil {
					return err
				}
			}
			if f, err = u.FS.OpenFile(u.at(e.path), os.O_RDWR, 0); err != nil {
				return err
			}
			open = e.path
		}
		_, err = f.WriteAt(e.text, e.size)
		u.result.Bytes += int64(len(e.text))
		return err
	})
	if f != nil {
		err = errors.Join(err, f.Close())
	}
	return err
}

// makeAgain makes a file that is gone and whose content follows.
func (u *undoer) makeAgain(was undoEntry) error {
	at := u.at(was.path)
	if _, err := u.FS.Lstat(at); !missing(err) {
		return err
	}
	mode := was.mode
	if mode == 0 {
		mode = u.modes.file
	}
	f, err := u.FS.OpenFile(at, os.O_RDWR|os.O_CREATE, mode)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return u.FS.SyncDir(filepath.Dir(at))
}

// settle gives every file its size and its mode, and makes all durable.
func (u *undoer) settle(ctx context.Context) error {
	var files []string
	dirs := map[string]bool{}
	for _, path := range slices.Sorted(maps.Keys(u.keeper.known)) {
		e, at := u.keeper.known[path], u.at(path)
		if e.kind != undoFile && e.kind != undoDir || final(path) {
			continue
		}
		fi, err := u.FS.Lstat(at)
		if err != nil {
			return err
		}
		if fi.Mode().Perm() != e.mode {
			if err := u.FS.Chmod(at, e.mode); err != nil {
				return err
			}
			dirs[filepath.Dir(at)] = true
		}
		if e.kind == undoDir {
			dirs[at] = true
			continue
		}
		if fi.Size() < e.size {
			return fmt.Errorf("%s has %d bytes, and had %d before the %s: somebody else has changed it", at, fi.Size(), e.size, u.plan.Operation)
		}
		if fi.Size() > e.size {
			if err := u.FS.Truncate(at, e.size); err != nil {
				return err
			}
		}
		if err := u.removeTemps(path); err != nil {
			return err
		}
		files = append(files, at)
	}
	return volume.SyncAll(ctx, u.FS, files, slices.Sorted(maps.Keys(dirs)), DefaultJobs)
}

// removeTemps removes what an interrupted write left beside a file.
func (u *undoer) removeTemps(path string) error {
	err := u.FS.Remove(placeOf(u.Target, path) + volume.TempSuffix)
	if missing(err) {
		return nil
	}
	return err
}

// removeCreated is step 5: what was not there before, children first.
func (u *undoer) removeCreated() error {
	s := dirSyncer{fsys: u.FS}
	paths := slices.Sorted(maps.Keys(u.keeper.known))
	slices.Reverse(paths)
	for _, path := range paths {
		at := u.at(path)
		if u.keeper.known[path].kind != undoAbsent || final(path) {
			continue
		}
		if err := u.removeTemps(path); err != nil {
			return err
		}
		if _, err := u.FS.Lstat(at); missing(err) {
			continue
		} else if err != nil {
			return err
		}
		if err := s.enter(filepath.Dir(at)); err != nil {
			return err
		}
		if err := u.FS.Remove(at); err != nil {
			if entries, _ := u.FS.ReadDir(at); len(entries) == 0 {
				return err
			}
			u.result.Notes = append(u.result.Notes, fmt.Sprintf("%s stays: somebody else has put files into it", at))
			continue
		}
		u.result.Removed++
	}
	return s.enter("")
}

// dirSyncer syncs a directory when the work in it is done, so that a name is
// gone for good before what leads to it is.
type dirSyncer struct {
	fsys  volume.FS
	dir   string
	first func() error // called before each sync, where set
}

// enter says that the work goes on in dir; "" ends it.
func (s *dirSyncer) enter(dir string) error {
	last := s.dir
	s.dir = dir
	if last == "" || last == dir {
		return nil
	}
	if s.first != nil {
		if err := s.first(); err != nil {
			return err
		}
	}
	if err := s.fsys.SyncDir(last); err != nil && !missing(err) {
		return err
	}
	return nil
}

// reveal is steps 7 and 8: the old pg_control, then the old label.
func (u *undoer) reveal() error {
	dir := journalDir(u.Target)
	for _, f := range []struct{ path, copy string }{{volume.ControlPath, controlName}, {volume.BackupLabelFile, labelName}} {
		was := u.keeper.known[f.path]
		at := u.at(f.path)
		if was.kind != undoFile {
			if err := u.removeTemps(f.path); err != nil {
				return err
			}
			if err := volume.RemoveDurable(u.FS, at); err != nil {
				return err
			}
			continue
		}
		data, err := volume.ReadFile(u.FS, filepath.Join(dir, f.copy), 0)
		if err != nil {
			return err
		}
		if err := volume.WriteFile(u.FS, at, data, cmp.Or(was.mode, u.modes.file)); err != nil {
			return err
		}
	}
	return nil
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
