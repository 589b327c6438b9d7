package volume

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// FS is the set of file operations through which everything in this module
// changes a data directory, so that a test can make the nth of them fail or
// lose what was never synced. Names are the operating system's own paths.
//
// Errors wrap fs.ErrNotExist and fs.ErrExist as the os package's do.
type FS interface {
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	Mkdir(name string, perm fs.FileMode) error
	Rename(oldname, newname string) error
	// Remove removes a file, a symbolic link or an empty directory.
	Remove(name string) error
	Symlink(target, name string) error
	Readlink(name string) (string, error)
	Truncate(name string, size int64) error
	Chmod(name string, mode fs.FileMode) error
	// ReadDir returns the entries in the order of their names.
	ReadDir(name string) ([]fs.DirEntry, error)
	Stat(name string) (fs.FileInfo, error)
	Lstat(name string) (fs.FileInfo, error)
	// SyncDir makes the names in a directory durable: what was created,
	// renamed or removed in it before stays so after a loss of power.
	SyncDir(name string) error
}

// File is an open file of an FS. *os.File is one.
type File interface {
	io.Reader
	io.ReaderAt
	io.Writer
	io.WriterAt
	io.Seeker
	io.Closer
	Name() string
	Stat() (fs.FileInfo, error)
	Truncate(size int64) error
	// Sync makes the file's content and size durable, not its name.
	Sync() error
}

// OS is the FS of the machine that we run on.
var OS FS = osFS{}

type osFS struct{}

func (osFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (osFS) Mkdir(name string, perm fs.FileMode) error  { return os.Mkdir(name, perm) }
func (osFS) Rename(oldname, newname string) error       { return os.Rename(oldname, newname) }
func (osFS) Remove(name string) error                   { return os.Remove(name) }
func (osFS) Symlink(target, name string) error          { return os.Symlink(target, name) }
func (osFS) Readlink(name string) (string, error)       { return os.Readlink(name) }
func (osFS) Truncate(name string, size int64) error     { return os.Truncate(name, size) }
func (osFS) Chmod(name string, mode fs.FileMode) error  { return os.Chmod(name, mode) }
func (osFS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }
func (osFS) Stat(name string) (fs.FileInfo, error)      { return os.Stat(name) }
func (osFS) Lstat(name string) (fs.FileInfo, error)     { return os.Lstat(name) }

// ReadNames returns the names in a directory, in no particular order.
func (osFS) ReadNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := d.Readdirnames(-1)
	return names, errors.Join(err, d.Close())
}

func (osFS) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

// ReadFile reads a whole file of fsys. It refuses a file of more than limit
// bytes; limit 0 means 16 MB, more than any file that is read in one piece.
func ReadFile(fsys FS, name string, limit int64) ([]byte, error) {
	if limit <= 0 {
		limit = 16 << 20
	}
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	err = errors.Join(err, f.Close())
	if err == nil && int64(len(data)) > limit {
		err = &fs.PathError{Op: "read", Path: name, Err: errors.New("larger than expected")}
	}
	if err != nil {
		return nil, err
	}
	return data, nil
}

// MkdirAll makes a directory and every missing parent. It returns the names
// that it made, the outermost first, so that the caller can sync their parents.
func MkdirAll(fsys FS, name string, perm fs.FileMode) (made []string, err error) {
	fi, err := fsys.Stat(name)
	if err == nil {
		if fi.IsDir() {
			return nil, nil
		}
		return nil, &fs.PathError{Op: "mkdir", Path: name, Err: errors.New("is a file")}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if parent := filepath.Dir(name); parent != name {
		if made, err = MkdirAll(fsys, parent, perm); err != nil {
			return made, err
		}
	}
	if err := fsys.Mkdir(name, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return made, err
	}
	return append(made, name), nil
}
