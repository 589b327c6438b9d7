package blockcopy

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"tidemark/pkg/volume"
)

// undoKeeper keeps what a run destroys. A nil one keeps nothing: each of its
// methods may be called on nil.
type undoKeeper struct {
	fsys   volume.FS
	target string
	id     string
	modes  targetModes
	noSync bool

	mu       sync.Mutex
	known    map[string]undoEntry // path -> what it was before the run; the first entry counts
	whole    map[string]bool      // saved with all their content
	logs     map[string]bool      // complete logs by name
	asked    map[string]bool      // directories that hold what is renamed aside
	unsynced map[string]bool      // those of them that were not synced since
	aside    map[string]bool      // paths whose files are renamed aside
}

func newUndoKeeper(fsys volume.FS, target string, plan *Plan, modes targetModes, noSync bool) *undoKeeper {
	if !plan.Undo {
		return nil
	}
	return &undoKeeper{fsys: fsys, target: target, id: plan.ID, modes: modes, noSync: noSync,
		known: map[string]undoEntry{}, whole: map[string]bool{}, logs: map[string]bool{}, asked: map[string]bool{}, unsynced: map[string]bool{}, aside: map[string]bool{}}
}

func undoDirOf(target string) string { return filepath.Join(journalDir(target), undoDirName) }

func (u *undoKeeper) log(name string) string { return filepath.Join(undoDirOf(u.target), name) }

// at is a path's place: absolute ones are of directories outside.
func (u *undoKeeper) at(path string) string { return placeOf(u.target, path) }

func placeOf(target, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(target, filepath.FromSlash(path))
}

// load reads what a journal holds.
func (u *undoKeeper) load() error {
	if u == nil {
		return nil
	}
	entries, err := u.fsys.ReadDir(undoDirOf(u.target))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), volume.TempSuffix) {
			u.logs[e.Name()] = true
		}
	}
	for _, name := range append([]string{undoNames}, u.finishLogs()...) {
		err := readUndoLog(u.fsys, u.log(name), func(e undoEntry) error {
			u.learn(e)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (u *undoKeeper) learn(e undoEntry) {
	if e.kind == undoBytes {
		return
	}
	e.text = slices.Clone(e.text)
	if e.whole {
		u.whole[e.path] = true
	}
	if _, ok := u.known[e.path]; !ok {
		u.known[e.path] = e
	}
}

// finishLogs are the names of the logs of step 4, in their order.
func (u *undoKeeper) finishLogs() []string {
	var names []string
	for i := 0; u.logs[undoFinish+strconv.Itoa(i)]; i++ {
		names = append(names, undoFinish+strconv.Itoa(i))
	}
	return names
}

// write writes a log by fill, unless it is there already.
func (u *undoKeeper) write(name string, fill func(*undoWriter) error) error {
	u.mu.Lock()
	have := u.logs[name]
	u.mu.Unlock()
	if have {
		return nil
	}
	w, err := newUndoWriter(u.fsys, u.log(name), u.modes.file, u.noSync)
	if err != nil {
		return err
	}
	if err = fill(w); err == nil {
		err = w.commit()
	} else {
		err = errors.Join(err, w.abandon())
	}
	if err != nil {
		return fmt.Errorf("keeping what the undo needs: %w", err)
	}
	u.mu.Lock()
	u.logs[name] = true
	u.mu.Unlock()
	return nil
}

// begin writes down what every path of the plan is now, and the whole content
// of the extra files.
func (u *undoKeeper) begin(actions []Action, extra []string) error {
	if u == nil {
		return nil
	}
	if err := u.fsys.Mkdir(undoDirOf(u.target), u.modes.dir); err != nil {
		return err
	}
	return u.write(undoNames, func(w *undoWriter) error {
		for _, path := range append(extra, "tablespace_map") {
			if err := u.note(w, path, true); err != nil {
				return err
			}
		}
		for _, path := range []string{"global/pg_control", "backup_label"} {
			if err := u.note(w, path, false); err != nil {
				return err
			}
		}
		for _, a := range actions {
			if err := u.noteAction(w, a); err != nil {
				return err
			}
		}
		return nil
	})
}

func (u *undoKeeper) noteAction(w *undoWriter, a Action) error {
	if a.Kind == Keep {
		return nil
	}
	if a.Kind == CreateLink {
		for dir := a.LinkTarget; ; dir = filepath.Dir(dir) {
			if _, err := u.fsys.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
				break
			}
			if err := u.note(w, dir, false); err != nil {
				return err
			}
		}
	}
	return u.note(w, a.Path, false)
}

// note writes down what a path is now, with its content where it is a file
// and whole is asked for.
func (u *undoKeeper) note(w *undoWriter, path string, whole bool) error {
	if _, ok := u.known[path]; ok && (!whole || u.whole[path]) {
		return nil
	}
	e, err := u.look(path)
	if err != nil {
		return err
	}
	e.whole = whole && e.kind == undoFile
	u.learn(e)
	if err := w.add(e); err != nil || !e.whole {
		return err
	}
	f, err := u.fsys.OpenFile(u.at(path), os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(w.save(path, f, 0, e.size), f.Close())
}

func (u *undoKeeper) look(path string) (undoEntry, error) {
	fi, err := u.fsys.Lstat(u.at(path))
	if errors.Is(err, fs.ErrNotExist) {
		return undoEntry{kind: undoAbsent, path: path}, nil
	}
	if err != nil {
		return undoEntry{}, err
	}
	e := undoEntry{kind: undoFile, path: path, mode: fi.Mode().Perm()}
	switch {
	case fi.IsDir():
		e.kind = undoDir
	case fi.Mode()&fs.ModeSymlink != 0:
		e.kind = undoLink
		target, err := u.fsys.Readlink(u.at(path))
		e.text = []byte(target)
		return e, err
	default:
		e.size = fi.Size()
	}
	return e, nil
}

// batch keeps the bytes that a batch of tasks overwrites. With learn, the
// batch is told what these are.
func (u *undoKeeper) batch(b *batch, learn bool) error {
	if u == nil {
		return nil
	}
	return u.write(undoBatch+strconv.Itoa(b.index), func(w *undoWriter) error {
		if learn {
			b.was = newOverwritten()
			w.was = b.was
		}
		return u.saveRanges(w, b.ranges())
	})
}

// tails keeps what truncations cut off.
func (u *undoKeeper) tails(tails []Range) error {
	if u == nil || len(tails) == 0 {
		return nil
	}
	return u.write(undoTails, func(w *undoWriter) error { return u.saveRanges(w, tails) })
}

// saveRanges saves the parts of the ranges that are below the files' old sizes.
func (u *undoKeeper) saveRanges(w *undoWriter, ranges []Range) error {
	var f volume.File
	open := ""
	for _, r := range ranges {
		was := u.known[r.Path]
		end := min(r.End(), was.size)
		if was.kind != undoFile || r.Offset >= end {
			continue
		}
		if open != r.Path {
			if f != nil {
				if err := f.Close(); err != nil {
					return err
				}
			}
			var err error
			if f, err = u.fsys.OpenFile(u.at(r.Path), os.O_RDONLY, 0); err != nil {
				return err
			}
			open = r.Path
		}
		if err := w.save(r.Path, f, r.Offset, end-r.Offset); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if f == nil {
		return nil
	}
	return f.Close()
}

// finish keeps the files that step 4 replaces. Of one that step 3d renamed
// aside there is nothing more to keep.
func (u *undoKeeper) finish(f Finish) error {
	if u == nil {
		return nil
	}
	paths := map[string]bool{}
	for _, a := range f.Late {
		paths[a.Path] = true
	}
	for _, file := range f.Files {
		paths[file.Path] = true
	}
	maps.DeleteFunc(paths, func(path string, _ bool) bool {
		return u.whole[path] || u.aside[path] || u.known[path].kind == undoAbsent
	})
	if len(paths) == 0 {
		return nil
	}
	name := undoFinish + strconv.Itoa(len(u.finishLogs()))
	return u.write(name, func(w *undoWriter) error {
		for _, path := range slices.Sorted(maps.Keys(paths)) {
			if err := u.note(w, path, true); err != nil {
				return err
			}
		}
		return nil
	})
}

// remove takes the place of removing the file of action i: it is renamed
// aside, unless that has been done before, or nothing was there before.
func (u *undoKeeper) remove(path string, i int) error {
	if u.known[path].kind != undoFile {
		return u.fsys.Remove(u.at(path))
	}
	places := asidePlaces(u.fsys, u.target, u.id, path, u.known)
	name := undoAside + strconv.Itoa(i)
	for _, place := range places {
		if _, err := u.fsys.Lstat(filepath.Join(place, name)); err == nil {
			u.aside[path], u.asked[place] = true, true
			return u.fsys.Remove(u.at(path))
		} else if !missing(err) {
			return err
		}
	}
	if _, err := u.fsys.Lstat(u.at(path)); err != nil {
		return err
	}
	var err error
	for n, place := range places {
		if n > 0 {
			if err := u.makePlace(place); err != nil {
				return err
			}
		}
		if err = u.fsys.Rename(u.at(path), filepath.Join(place, name)); !errors.Is(err, syscall.EXDEV) {
			u.aside[path], u.asked[place], u.unsynced[place] = true, true, true
			return err
		}
	}
	return err
}

// syncAside makes durable where files are now that were renamed aside.
func (u *undoKeeper) syncAside() error {
	if u == nil {
		return nil
	}
	for _, place := range slices.Sorted(maps.Keys(u.unsynced)) {
		if err := u.fsys.SyncDir(place); err != nil {
			return err
		}
	}
	clear(u.unsynced)
	return nil
}

// makePlace makes a directory for renamed files, durably.
func (u *undoKeeper) makePlace(place string) error {
	made, err := volume.MkdirAll(u.fsys, place, u.modes.dir)
	for _, dir := range made {
		if err == nil {
			err = u.fsys.SyncDir(filepath.Dir(dir))
		}
	}
	return err
}

func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// asidePlaces are the directories that a file may be renamed into. The second
// serves where it lies on another file system than the journal: a tablespace,
// or a pg_wal that is a link or a mount point. A link that the run removes is
// looked through.
func asidePlaces(fsys volume.FS, target, id, path string, known map[string]undoEntry) []string {
	top, rest, _ := strings.Cut(path, "/")
	if top == "pg_tblspc" {
		oid, _, _ := strings.Cut(rest, "/")
		top += "/" + oid
	}
	root := placeOf(target, top)
	if e := known[top]; e.kind == undoLink {
		root = string(e.text)
		if !filepath.IsAbs(root) {
			root = filepath.Join(filepath.Dir(placeOf(target, top)), root)
		}
	}
	places := []string{undoDirOf(target)}
	if rest == "" {
		return places // a file at the top of the data directory
	}
	return append(places, filepath.Join(root, undoDirAbove, id))
}

// size sums up what is kept for the undo.
func (u *undoKeeper) size() int64 {
	if u == nil {
		return 0
	}
	var n int64
	dirs := map[string]bool{undoDirOf(u.target): true}
	maps.Copy(dirs, u.asked)
	for dir := range dirs {
		entries, err := u.fsys.ReadDir(dir)
		if err != nil {
			continue // it is a figure for people
		}
		for _, e := range entries {
			if fi, err := e.Info(); err == nil {
				n += fi.Size()
			}
		}
	}
	return n
}
