package blockcopy

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"tidemark/pkg/volume"
)

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
		if a.Zeros > 0 {
			if err := r.lengthen(a.Path, size+a.Zeros); err != nil {
				return err
			}
		}
	}
	return nil
}

// lengthen adds zeros up to size.
func (r *runner) lengthen(name string, size int64) error {
	if err := r.FS.Truncate(r.path(name), size); err != nil || r.NoSync {
		return err
	}
	return volume.SyncFile(r.FS, r.path(name))
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
