package blockcopy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"tidemark/pkg/volume"
)

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
