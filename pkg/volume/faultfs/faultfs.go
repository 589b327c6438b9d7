package faultfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"tidemark/pkg/volume"
)

// Op is one operation that changes something or makes it durable. Reading is
// not counted.
type Op struct {
	N    int // counts from 0
	Name string
	Path string
}

func (o Op) String() string { return fmt.Sprintf("%d: %s %s", o.N, o.Name, o.Path) }

// ErrInjected is what a failing operation returns where the test names no
// other error.
var ErrInjected = errors.New("injected fault")

// FS passes operations on to another file system and asks before each one that
// changes something. The usual loop:
//
//	for n := 0; ; n++ {
//		mem := faultfs.NewMem()
//		f := faultfs.Wrap(mem, faultfs.StopAt(n))
//		err := work(f)
//		check(mem.Crash(nil)) // the invariant holds, and the work can be resumed
//		if f.Count() <= n {
//			break // it ran without a fault
//		}
//	}
type FS struct {
	volume.FS
	inject func(Op) error

	mu  sync.Mutex
	ops []Op
}

// Wrap returns an FS over base. inject is called before each operation, one at
// a time; the operation is not done when it returns an error.
func Wrap(base volume.FS, inject func(Op) error) *FS { return &FS{FS: base, inject: inject} }

// FailAt makes operation n fail, and only that one.
func FailAt(n int, err error) func(Op) error {
	return func(o Op) error {
		if o.N == n {
			return err
		}
		return nil
	}
}

// StopAt makes operation n and all after it fail: the process was killed, or
// the machine lost its power.
func StopAt(n int) func(Op) error {
	return func(o Op) error {
		if o.N >= n {
			return ErrInjected
		}
		return nil
	}
}

// Count returns how many operations were asked for.
func (f *FS) Count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.ops)
}

// Ops returns the operations that were asked for, in their order.
func (f *FS) Ops() []Op {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Op(nil), f.ops...)
}

func (f *FS) ask(name, path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	op := Op{len(f.ops), name, path}
	f.ops = append(f.ops, op)
	if f.inject == nil {
		return nil
	}
	if err := f.inject(op); err != nil {
		return &fs.PathError{Op: name, Path: path, Err: err}
	}
	return nil
}

// OpenFile counts where it makes or empties a file.
func (f *FS) OpenFile(name string, flag int, perm fs.FileMode) (volume.File, error) {
	if flag&(os.O_CREATE|os.O_TRUNC) != 0 {
		if err := f.ask("create", name); err != nil {
			return nil, err
		}
	}
	file, err := f.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &faultFile{file, f}, nil
}

// Mkdir is counted.
func (f *FS) Mkdir(name string, perm fs.FileMode) error {
	return f.do("mkdir", name, func() error { return f.FS.Mkdir(name, perm) })
}

// Rename is counted.
func (f *FS) Rename(oldname, newname string) error {
	return f.do("rename", newname, func() error { return f.FS.Rename(oldname, newname) })
}

// Remove is counted.
func (f *FS) Remove(name string) error {
	return f.do("remove", name, func() error { return f.FS.Remove(name) })
}

// Symlink is counted.
func (f *FS) Symlink(target, name string) error {
	return f.do("symlink", name, func() error { return f.FS.Symlink(target, name) })
}

// Truncate is counted.
func (f *FS) Truncate(name string, size int64) error {
	return f.do("truncate", name, func() error { return f.FS.Truncate(name, size) })
}

// Chmod is counted.
func (f *FS) Chmod(name string, mode fs.FileMode) error {
	return f.do("chmod", name, func() error { return f.FS.Chmod(name, mode) })
}

// SyncDir is counted.
func (f *FS) SyncDir(name string) error {
	return f.do("syncdir", name, func() error { return f.FS.SyncDir(name) })
}

func (f *FS) do(op, path string, run func() error) error {
	if err := f.ask(op, path); err != nil {
		return err
	}
	return run()
}

type faultFile struct {
	volume.File
	fs *FS
}

func (f *faultFile) Write(p []byte) (int, error) {
	if err := f.fs.ask("write", f.Name()); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f *faultFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fs.ask("write", f.Name()); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *faultFile) Truncate(size int64) error {
	return f.fs.do("truncate", f.Name(), func() error { return f.File.Truncate(size) })
}

func (f *faultFile) Sync() error {
	return f.fs.do("sync", f.Name(), f.File.Sync)
}
