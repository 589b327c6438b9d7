package volume

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// TempSuffix ends the names of the files that WriteFile has not finished. A
// leftover of that name is garbage of a crash and may be removed.
const TempSuffix = ".tidemark.tmp"

// WriteFile puts data durably under name: a temporary file beside it, write,
// fsync, close, rename, fsync of the directory. A crash at any point leaves
// either the old file or the new one.
func WriteFile(fsys FS, name string, data []byte, perm fs.FileMode) error {
	tmp := name + TempSuffix
	if err := writeSynced(fsys, tmp, data, perm); err != nil {
		return errors.Join(err, ignoreMissing(fsys.Remove(tmp)))
	}
	return RenameDurable(fsys, tmp, name)
}

// WriteFiles puts several files durably under their names, each as WriteFile
// does, with one sync for each directory at the end. After a crash some of
// them may be the old ones still.
func WriteFiles(fsys FS, names []string, data [][]byte, perm fs.FileMode) error {
	var dirs []string
	for i, name := range names {
		tmp := name + TempSuffix
		err := writeSynced(fsys, tmp, data[i], perm)
		if err == nil {
			err = fsys.Rename(tmp, name)
		}
		if err != nil {
			return errors.Join(err, ignoreMissing(fsys.Remove(tmp)))
		}
		if dir := filepath.Dir(name); !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	for _, dir := range dirs {
		if err := fsys.SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// writeSynced writes a new file under its final name and syncs its content.
func writeSynced(fsys FS, name string, data []byte, perm fs.FileMode) error {
	f, err := fsys.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	if len(data) > 0 { // an empty file has its name only
		if _, err = f.Write(data); err == nil {
			err = f.Sync()
		}
	}
	return errors.Join(err, f.Close())
}

// RenameDurable renames a file and syncs the directories of both names.
func RenameDurable(fsys FS, oldname, newname string) error {
	if err := fsys.Rename(oldname, newname); err != nil {
		return err
	}
	to, from := filepath.Dir(newname), filepath.Dir(oldname)
	if err := fsys.SyncDir(to); err != nil {
		return err
	}
	if from == to {
		return nil
	}
	return fsys.SyncDir(from)
}

// RemoveDurable removes a file, a link or an empty directory and syncs the
// directory that held it. That it is gone already is no error.
func RemoveDurable(fsys FS, name string) error {
	if err := ignoreMissing(fsys.Remove(name)); err != nil {
		return err
	}
	return ignoreMissing(fsys.SyncDir(filepath.Dir(name)))
}

// RemoveAll removes name and all that is below it, without following links.
// That it is gone already is no error.
func RemoveAll(fsys FS, name string) error {
	fi, err := fsys.Lstat(name)
	if err != nil {
		return ignoreMissing(err)
	}
	if fi.IsDir() {
		entries, err := fsys.ReadDir(name)
		if ignoreMissing(err) != nil {
			return err
		}
		for _, e := range entries {
			if err := RemoveAll(fsys, filepath.Join(name, e.Name())); err != nil {
				return err
			}
		}
	}
	return ignoreMissing(fsys.Remove(name))
}

// SyncFile makes the content of an existing file durable.
func SyncFile(fsys FS, name string) error {
	f, err := fsys.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// SyncAll makes the content of many files durable, and then the names in many
// directories, workers at a time. Files are synced before directories, so that
// no durable name leads to content that is not. Names that vanished are passed
// over. The first error ends it.
func SyncAll(ctx context.Context, fsys FS, files, dirs []string, workers int) error {
	syncFile := func(name string) error { return SyncFile(fsys, name) }
	if err := forEach(ctx, files, workers, syncFile); err != nil {
		return err
	}
	return forEach(ctx, dirs, workers, fsys.SyncDir)
}

func forEach(ctx context.Context, names []string, workers int, do func(string) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan string)
	var wg sync.WaitGroup
	for range max(1, min(workers, len(names))) {
		wg.Go(func() {
			for name := range next {
				if err := ignoreMissing(do(name)); err != nil {
					cancel(err)
				}
			}
		})
	}
feed:
	for _, name := range names {
		select {
		case next <- name:
		case <-ctx.Done():
			break feed
		}
	}
	close(next)
	wg.Wait()
	return context.Cause(ctx)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
