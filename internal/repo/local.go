package repo

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/internal/exit"
)

// Local stores objects as files below a directory.
//
// An object is written to a temporary file in ".tmp", synced, and then given
// its name by a rename that fails when the name is taken (renameat2 with
// RENAME_NOREPLACE, or link and unlink where the file system lacks that);
// last its directory is synced. The writer holds a lock on the temporary file,
// so that Sweep can tell a dead process's leavings from a living one's work.
type Local struct {
	root string
}

const (
	tmpDir      = ".tmp"
	dirMode     = 0o750
	objectMode  = 0o440
	staleNoLock = 24 * time.Hour // where the file system has no locks
)

// NewLocal returns the driver for the directory root, which must exist.
func NewLocal(root string) (*Local, error) {
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(abs)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		return nil, &fs.PathError{Op: "open", Path: abs, Err: unix.ENOTDIR}
	}
	return &Local{root: abs}, nil
}

// Location returns the directory.
func (l *Local) Location() string { return l.root }

func (l *Local) path(name string) string { return filepath.Join(l.root, filepath.FromSlash(name)) }

// Put implements Driver.
func (l *Local) Put(ctx context.Context, name string, write func(io.Writer) error) error {
	if err := checkName("put", name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	final := l.path(name)
	dir := filepath.Dir(final)
	if _, err := os.Lstat(final); err == nil {
		return l.taken(name, dir)
	}
	f, err := l.createTemp()
	if err != nil {
		return diskError(err, l.root)
	}
	tmp := f.Name()
	defer os.Remove(tmp) // a no-op once it has its final name
	defer f.Close()      // releases the lock last of all

	w, finish := diskWriter(f, name)
	err = write(&ctxWriter{ctx, w})
	if ferr := finish(); err == nil {
		err = ferr
	}
	if err != nil {
		return diskError(err, l.root)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := f.Chmod(objectMode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return diskError(err, l.root)
	}
	if err := l.mkdirs(dir); err != nil {
		return diskError(err, l.root)
	}
	if err := renameCreateOnly(tmp, final); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return l.taken(name, dir)
		}
		return diskError(err, l.root)
	}
	return syncDir(dir)
}

// taken makes sure that the object which has the name is there to stay: its
// writer may be between its rename and its sync.
func (l *Local) taken(name, dir string) error {
	if err := syncDir(dir); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", name, ErrExist)
}

// createTemp makes a temporary file and locks it.
func (l *Local) createTemp() (*os.File, error) {
	dir := filepath.Join(l.root, tmpDir)
	for range 100 {
		var r [12]byte
		if _, err := rand.Read(r[:]); err != nil {
			return nil, err
		}
		tmp := filepath.Join(dir, hex.EncodeToString(r[:]))
		f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
		if errors.Is(err, fs.ErrNotExist) {
			if err := l.mkdirs(dir); err != nil {
				return nil, err
			}
			continue
		}
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			f.Close() // a sweep got in between: the file is about to go
			continue
		}
		// A sweep may have come and gone between open and lock.
		if _, err := os.Lstat(tmp); err != nil {
			f.Close()
			continue
		}
		return f, nil
	}
	return nil, fmt.Errorf("cannot create a temporary file in %s", dir)
}

// mkdirs creates dir and its missing parents below the root, durably. It does
// not create the root: a repository on a disk that is not mounted is missing.
func (l *Local) mkdirs(dir string) error {
	if dir == l.root {
		_, err := os.Stat(dir)
		return err
	}
	err := os.Mkdir(dir, dirMode)
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrExist):
		// Another process may have made it and not synced it yet. Opening it
		// for the sync of the parent is cheap next to the object's own sync.
	case errors.Is(err, fs.ErrNotExist):
		if err := l.mkdirs(filepath.Dir(dir)); err != nil {
			return err
		}
		return l.mkdirs(dir)
	default:
		return err
	}
	if err == nil {
		return syncDir(filepath.Dir(dir))
	}
	return nil
}

// Get implements Driver.
func (l *Local) Get(ctx context.Context, name string, offset, length int64) (*Object, error) {
	if err := checkName("get", name); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := os.Open(l.path(name))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return nil, l.missing(name)
		}
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	if !st.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, ErrNotExist)
	}
	size := st.Size()
	if offset < 0 {
		offset = max(size+offset, 0)
	}
	offset = min(offset, size)
	if length < 0 || length > size-offset {
		length = size - offset
	}
	return &Object{
		ReadCloser: struct {
			io.Reader
			io.Closer
		}{io.NewSectionReader(f, offset, length), f},
		Size: size, Offset: offset, Length: length,
	}, nil
}

// missing tells an object that is not there from a store that is not there:
// an unmounted disk must not pass for an empty archive.
func (l *Local) missing(name string) error {
	if _, err := os.Stat(l.root); err != nil {
		return fmt.Errorf("the repository directory is gone: %w", errors.Join(errStoreGone, err))
	}
	return fmt.Errorf("%s: %w", name, ErrNotExist)
}

// List implements Driver.
func (l *Local) List(ctx context.Context, prefix string, each func(ObjectInfo) error) error {
	if err := checkPrefix(prefix); err != nil {
		return err
	}
	top := l.path(strings.TrimSuffix(prefix, "/"))
	return filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if cerr := ctx.Err(); cerr != nil {
			return cerr
		}
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				if path == l.root {
					return err
				}
				return nil // removed while listing, or never there
			}
			return err
		}
		if path != top && strings.HasPrefix(d.Name(), ".") {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		st, err := d.Info()
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		rel, err := filepath.Rel(l.root, path)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(rel)
		if !ValidName(name) {
			return nil // not ours: lost+found, an editor's backup
		}
		return each(ObjectInfo{Name: name, Size: st.Size()})
	})
}

// Delete implements Driver.
func (l *Local) Delete(ctx context.Context, name string) error {
	if err := checkName("delete", name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	path := l.path(name)
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return syncDir(filepath.Dir(path))
}

// Sweep removes temporary files whose writer is gone.
func (l *Local) Sweep(ctx context.Context) (int, error) {
	dir := filepath.Join(l.root, tmpDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	removed := 0
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return removed, err
		}
		if !e.Type().IsRegular() {
			continue
		}
		ok, err := sweepOne(filepath.Join(dir, e.Name()))
		if err != nil {
			return removed, err
		}
		if ok {
			removed++
		}
	}
	return removed, nil
}

// sweepOne removes one temporary file if it can take its lock. The file is
// removed under the lock, so that its name cannot be reused in between.
func sweepOne(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return false, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case err == nil:
	case errors.Is(err, unix.EWOULDBLOCK):
		return false, nil
	default:
		st, serr := f.Stat()
		if serr != nil || time.Since(st.ModTime()) < staleNoLock {
			return false, nil
		}
	}
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return false, err
	}
	return true, nil
}

// renameCreateOnly gives tmp its final name unless that name is taken.
func renameCreateOnly(tmp, final string) error {
	err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, final, unix.RENAME_NOREPLACE)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
		if err := os.Link(tmp, final); err != nil {
			return err
		}
		return os.Remove(tmp)
	}
	return &os.LinkError{Op: "rename", Old: tmp, New: final, Err: err}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return &fs.PathError{Op: "sync", Path: dir, Err: err}
	}
	return nil
}

// errStoreGone marks a store that has vanished, as against an object that is not in it.
var errStoreGone = errors.New("the store is not reachable")

// diskError adds what to do to the errors that an operator can resolve.
func diskError(err error, root string) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return exit.Hint(err, fmt.Sprintf("free space in %s or add some; nothing that was complete there is affected", root))
	case errors.Is(err, fs.ErrPermission):
		return exit.Hint(err, fmt.Sprintf("the user that runs this command needs to own %s", root))
	}
	return err
}

// ctxWriter stops a long write when the context ends.
type ctxWriter struct {
	ctx context.Context
	w   io.Writer
}

func (w *ctxWriter) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.w.Write(p)
}
