// Package faultfs holds two file systems for tests of what must survive
// anything: Mem, in memory, which can show what a loss of power would leave,
// and FS, which makes the nth operation on another file system fail.
package faultfs

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"tidemark/pkg/volume"
)

// Mem is a volume.FS in memory. It knows what is durable: the content of a
// file as of its last Sync, the names in a directory as of its last SyncDir.
// Names are absolute.
type Mem struct {
	mu   sync.Mutex
	root *node
}

var _ volume.FS = (*Mem)(nil)

// node is a file, a directory or a link. Only the fields of its kind are used.
type node struct {
	mode    fs.FileMode
	modTime time.Time
	target  string           // link
	data    []byte           // file
	durable []byte           // file: data as of the last Sync
	names   map[string]*node // directory
	kept    map[string]*node // directory: names as of the last SyncDir
}

// NewMem returns an empty file system: a root directory.
func NewMem() *Mem { return &Mem{root: newDir(0o755)} }

func newDir(perm fs.FileMode) *node {
	return &node{mode: fs.ModeDir | perm.Perm(), modTime: time.Now(), names: map[string]*node{}, kept: map[string]*node{}}
}

// Crash returns the file system as it would be found after a loss of power
// now; m itself stays as it is. Without rng all that was not synced is lost.
// With rng each such name and each such content is lost or kept by chance.
func (m *Mem) Crash(rng *rand.Rand) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	seen := map[*node]*node{}
	return &Mem{root: m.root.crash(rng, seen)}
}

func (n *node) crash(rng *rand.Rand, seen map[*node]*node) *node {
	if c, ok := seen[n]; ok {
		return c
	}
	keep := func() bool { return rng != nil && rng.IntN(2) == 0 }
	c := &node{mode: n.mode, modTime: n.modTime, target: n.target}
	seen[n] = c
	if !n.mode.IsDir() {
		data := n.durable
		if keep() {
			data = n.data
		}
		c.data, c.durable = slices.Clone(data), slices.Clone(data)
		return c
	}
	c.names, c.kept = map[string]*node{}, map[string]*node{}
	for _, name := range sortedUnion(n.names, n.kept) {
		child := n.kept[name]
		if live := n.names[name]; live != child && keep() {
			child = live
		}
		if child != nil {
			c.names[name] = child.crash(rng, seen)
			c.kept[name] = c.names[name]
		}
	}
	return c
}

func sortedUnion(a, b map[string]*node) []string {
	var names []string
	for n := range a {
		names = append(names, n)
	}
	for n := range b {
		if _, ok := a[n]; !ok {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}

// lookup finds a node. Where the last part does not exist it returns its
// directory and name with a nil node.
func (m *Mem) lookup(op, name string, follow bool) (dir *node, base string, n *node, err error) {
	fail := func(cause error) error { return &fs.PathError{Op: op, Path: name, Err: cause} }
	if !filepath.IsAbs(name) {
		return nil, "", nil, fail(fs.ErrInvalid)
	}
	path := filepath.Clean(name)
	for range 40 {
		parts := strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
		n, again := m.root, ""
		if len(parts) == 0 {
			return m.root, "", m.root, nil
		}
		for i, part := range parts {
			if !n.mode.IsDir() {
				return nil, "", nil, fail(errNotDir)
			}
			dir, base = n, part
			last := i == len(parts)-1
			n = dir.names[part]
			if n == nil {
				if last {
					return dir, base, nil, nil
				}
				return nil, "", nil, fail(fs.ErrNotExist)
			}
			if n.mode&fs.ModeSymlink != 0 && (!last || follow) {
				again = n.target
				if !filepath.IsAbs(again) {
					again = "/" + strings.Join(parts[:i], "/") + "/" + again
				}
				again = filepath.Join(again, strings.Join(parts[i+1:], "/"))
				break
			}
		}
		if again == "" {
			return dir, base, n, nil
		}
		path = again
	}
	return nil, "", nil, fail(errors.New("too many links"))
}

var (
	errNotDir   = errors.New("not a directory")
	errIsDir    = errors.New("is a directory")
	errNotEmpty = errors.New("directory not empty")
)

// find is lookup for a node that has to exist.
func (m *Mem) find(op, name string, follow bool) (*node, error) {
	_, _, n, err := m.lookup(op, name, follow)
	if err == nil && n == nil {
		err = &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	return n, err
}

// OpenFile opens or makes a file.
func (m *Mem) OpenFile(name string, flag int, perm fs.FileMode) (volume.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, n, err := m.lookup("open", name, true)
	if err != nil {
		return nil, err
	}
	fail := func(cause error) (volume.File, error) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: cause}
	}
	switch {
	case n == nil && flag&os.O_CREATE == 0:
		return fail(fs.ErrNotExist)
	case n == nil:
		n = &node{mode: perm.Perm(), modTime: time.Now()}
		dir.names[base] = n
	case flag&(os.O_CREATE|os.O_EXCL) == os.O_CREATE|os.O_EXCL:
		return fail(fs.ErrExist)
	case n.mode.IsDir():
		return fail(errIsDir)
	}
	if flag&os.O_TRUNC != 0 {
		n.data = nil
	}
	f := &memFile{fs: m, name: name, n: n, flag: flag}
	return f, nil
}

// Mkdir makes a directory.
func (m *Mem) Mkdir(name string, perm fs.FileMode) error {
	return m.create("mkdir", name, newDir(perm))
}

// Symlink makes a link.
func (m *Mem) Symlink(target, name string) error {
	return m.create("symlink", name, &node{mode: fs.ModeSymlink | 0o777, modTime: time.Now(), target: target})
}

func (m *Mem) create(op, name string, n *node) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, old, err := m.lookup(op, name, false)
	if err == nil && old != nil {
		err = &fs.PathError{Op: op, Path: name, Err: fs.ErrExist}
	}
	if err == nil {
		dir.names[base] = n
	}
	return err
}

// Rename renames, over a file that is there.
func (m *Mem) Rename(oldname, newname string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	from, fromBase, n, err := m.lookup("rename", oldname, false)
	if err != nil {
		return err
	}
	if n == nil {
		return &fs.PathError{Op: "rename", Path: oldname, Err: fs.ErrNotExist}
	}
	to, toBase, old, err := m.lookup("rename", newname, false)
	if err != nil {
		return err
	}
	if old != nil && old != n && (old.mode.IsDir() != n.mode.IsDir() || len(old.names) > 0) {
		return &fs.PathError{Op: "rename", Path: newname, Err: fs.ErrExist}
	}
	delete(from.names, fromBase)
	to.names[toBase] = n
	return nil
}

// Remove removes a file, a link or an empty directory.
func (m *Mem) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, n, err := m.lookup("remove", name, false)
	switch {
	case err != nil:
		return err
	case n == nil:
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	case len(n.names) > 0:
		return &fs.PathError{Op: "remove", Path: name, Err: errNotEmpty}
	}
	delete(dir.names, base)
	return nil
}

// Readlink returns what a link leads to.
func (m *Mem) Readlink(name string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.find("readlink", name, false)
	if err == nil && n.mode&fs.ModeSymlink == 0 {
		err = &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	if err != nil {
		return "", err
	}
	return n.target, nil
}

// Truncate sets the size of a file.
func (m *Mem) Truncate(name string, size int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.find("truncate", name, true)
	if err == nil {
		n.resize(size)
	}
	return err
}

func (n *node) resize(size int64) {
	if grow := size - int64(len(n.data)); grow > 0 {
		n.data = append(n.data, make([]byte, grow)...)
	} else {
		n.data = n.data[:size:size]
	}
	n.modTime = time.Now()
}

// Chmod sets the permissions.
func (m *Mem) Chmod(name string, mode fs.FileMode) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.find("chmod", name, true)
	if err == nil {
		n.mode = n.mode&^fs.ModePerm | mode.Perm()
	}
	return err
}

// ReadDir lists a directory.
func (m *Mem) ReadDir(name string) ([]fs.DirEntry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.find("readdir", name, true)
	if err != nil {
		return nil, err
	}
	if !n.mode.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: errNotDir}
	}
	var list []fs.DirEntry
	for name, child := range n.names {
		list = append(list, fs.FileInfoToDirEntry(child.info(name)))
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	return list, nil
}

// Stat describes what a name leads to.
func (m *Mem) Stat(name string) (fs.FileInfo, error) { return m.stat(name, true) }

// Lstat describes the name itself.
func (m *Mem) Lstat(name string) (fs.FileInfo, error) { return m.stat(name, false) }

func (m *Mem) stat(name string, follow bool) (fs.FileInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.find("stat", name, follow)
	if err != nil {
		return nil, err
	}
	return n.info(filepath.Base(name)), nil
}

// SyncDir makes the names in a directory durable.
func (m *Mem) SyncDir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.find("syncdir", name, true)
	if err != nil {
		return err
	}
	n.kept = map[string]*node{}
	for name, child := range n.names {
		n.kept[name] = child
	}
	return nil
}

// memFile is an open file of a Mem.
type memFile struct {
	fs   *Mem
	name string
	n    *node
	flag int
	pos  int64
}

func (f *memFile) Name() string { return f.name }
func (f *memFile) Close() error { return nil }

func (f *memFile) Stat() (fs.FileInfo, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return f.n.info(filepath.Base(f.name)), nil
}

func (f *memFile) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.pos)
	f.pos += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if off >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.n.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) Write(p []byte) (int, error) {
	if f.flag&os.O_APPEND != 0 {
		f.fs.mu.Lock()
		f.pos = int64(len(f.n.data))
		f.fs.mu.Unlock()
	}
	n, err := f.WriteAt(p, f.pos)
	f.pos += int64(n)
	return n, err
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	if f.flag&(os.O_WRONLY|os.O_RDWR) == 0 {
		return 0, &fs.PathError{Op: "write", Path: f.name, Err: fs.ErrPermission}
	}
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if end := off + int64(len(p)); end > int64(len(f.n.data)) {
		f.n.resize(end)
	}
	f.n.modTime = time.Now()
	return copy(f.n.data[off:], p), nil
}

func (f *memFile) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += f.pos
	case io.SeekEnd:
		fi, _ := f.Stat()
		offset += fi.Size()
	}
	f.pos = offset
	return offset, nil
}

func (f *memFile) Truncate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	f.n.resize(size)
	return nil
}

func (f *memFile) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	f.n.durable = slices.Clone(f.n.data)
	return nil
}

// memInfo is a fs.FileInfo.
type memInfo struct {
	name    string
	size    int64
	mode    fs.FileMode
	modTime time.Time
}

func (n *node) info(name string) memInfo {
	return memInfo{name, int64(len(n.data)), n.mode, n.modTime}
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return i.size }
func (i memInfo) Mode() fs.FileMode  { return i.mode }
func (i memInfo) ModTime() time.Time { return i.modTime }
func (i memInfo) IsDir() bool        { return i.mode.IsDir() }
func (i memInfo) Sys() any           { return nil }
