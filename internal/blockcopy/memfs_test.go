package blockcopy

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"tidemark/pkg/volume"
)

// memFS is a file system in memory that knows what is durable: a file's
// content after Sync, a directory's names after SyncDir. At operation failAt
// (counting what changes something) it fails once, or stops for good.
type memFS struct {
	mu     sync.Mutex
	root   *node
	ops    int
	failAt int   // -1: never
	crash  bool  // stop for good, not once
	err    error // what the failing operation returns
}

var errCrashed = errors.New("the machine is gone")

type node struct {
	kind     fs.FileMode // 0, fs.ModeDir, fs.ModeSymlink
	data     []byte      // content, or a link's target
	synced   []byte
	children map[string]*node
	durable  map[string]*node
}

func newDir() *node {
	return &node{kind: fs.ModeDir, children: map[string]*node{}, durable: map[string]*node{}}
}

func newMemFS() *memFS { return &memFS{root: newDir(), failAt: -1} }

// step counts one changing operation and fails where it should.
func (m *memFS) step() error {
	n := m.ops
	m.ops++
	switch {
	case m.failAt < 0 || n < m.failAt:
		return nil
	case m.crash:
		return errCrashed
	case n == m.failAt:
		return m.err
	}
	return nil
}

// afterCrash is the file system that the next start finds: with what was
// never synced lost, or kept.
func (m *memFS) afterCrash(lose bool) *memFS {
	return &memFS{root: m.root.after(lose), failAt: -1}
}

func (n *node) after(lose bool) *node {
	c := &node{kind: n.kind}
	if n.kind != fs.ModeDir {
		c.data = slices.Clone(n.data)
		if lose && n.kind == 0 {
			c.data = slices.Clone(n.synced)
		}
		c.synced = slices.Clone(c.data)
		return c
	}
	c.children = map[string]*node{}
	names := n.children
	if lose {
		names = n.durable
	}
	for name, child := range names {
		c.children[name] = child.after(lose)
	}
	c.durable = maps.Clone(c.children)
	return c
}

// find resolves a name. It returns the parent too, so that a missing last
// part can be created.
func (m *memFS) find(name string, follow bool) (parent *node, base string, n *node, err error) {
	return m.findFrom(name, follow, 0)
}

func (m *memFS) findFrom(name string, follow bool, depth int) (parent *node, base string, n *node, err error) {
	if depth > 8 {
		return nil, "", nil, syscall.ELOOP
	}
	parts := strings.FieldsFunc(name, func(r rune) bool { return r == '/' })
	n = m.root
	for i, part := range parts {
		if n.kind != fs.ModeDir {
			return nil, "", nil, &fs.PathError{Op: "open", Path: name, Err: syscall.ENOTDIR}
		}
		parent, base = n, part
		n = parent.children[part]
		last := i == len(parts)-1
		if n == nil {
			if last {
				return parent, base, nil, nil
			}
			return nil, "", nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		if n.kind == fs.ModeSymlink && (!last || follow) {
			return m.findFrom(path.Join(append([]string{string(n.data)}, parts[i+1:]...)...), follow, depth+1)
		}
	}
	return parent, base, n, nil
}

func (m *memFS) existing(op, name string, follow bool) (*node, string, *node, error) {
	parent, base, n, err := m.find(name, follow)
	if err == nil && n == nil {
		err = &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	return parent, base, n, err
}

func (m *memFS) OpenFile(name string, flag int, _ fs.FileMode) (volume.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	parent, base, n, err := m.find(name, true)
	switch {
	case err != nil:
		return nil, err
	case n == nil && flag&syscall.O_CREAT == 0:
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	case n != nil && flag&syscall.O_EXCL != 0:
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrExist}
	case n != nil && n.kind == fs.ModeDir:
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EISDIR}
	}
	if n == nil || flag&syscall.O_TRUNC != 0 {
		if err := m.step(); err != nil {
			return nil, err
		}
	}
	if n == nil {
		n = &node{}
		parent.children[base] = n
	}
	if flag&syscall.O_TRUNC != 0 {
		n.data = nil
	}
	return &memFile{fs: m, node: n, name: name}, nil
}

func (m *memFS) add(name string, n *node) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	parent, base, have, err := m.find(name, false)
	if err != nil {
		return err
	}
	if have != nil {
		return &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	if err := m.step(); err != nil {
		return err
	}
	parent.children[base] = n
	return nil
}

func (m *memFS) Mkdir(name string, _ fs.FileMode) error { return m.add(name, newDir()) }

func (m *memFS) Symlink(target, name string) error {
	return m.add(name, &node{kind: fs.ModeSymlink, data: []byte(target)})
}

func (m *memFS) Rename(oldname, newname string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	from, oldbase, n, err := m.existing("rename", oldname, false)
	if err != nil {
		return err
	}
	to, newbase, _, err := m.find(newname, false)
	if err != nil {
		return err
	}
	if err := m.step(); err != nil {
		return err
	}
	delete(from.children, oldbase)
	to.children[newbase] = n
	return nil
}

func (m *memFS) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	parent, base, n, err := m.existing("remove", name, false)
	if err != nil {
		return err
	}
	if len(n.children) > 0 {
		return &fs.PathError{Op: "remove", Path: name, Err: syscall.ENOTEMPTY}
	}
	if err := m.step(); err != nil {
		return err
	}
	delete(parent.children, base)
	return nil
}

func (m *memFS) Readlink(name string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, _, n, err := m.existing("readlink", name, false)
	if err != nil {
		return "", err
	}
	return string(n.data), nil
}

func (m *memFS) Truncate(name string, size int64) error {
	f, err := m.OpenFile(name, syscall.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Truncate(size)
}

func (m *memFS) Chmod(name string, _ fs.FileMode) error { return m.step() }

func (m *memFS) ReadDir(name string) ([]fs.DirEntry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, _, n, err := m.existing("readdir", name, true)
	if err != nil {
		return nil, err
	}
	var out []fs.DirEntry
	for _, base := range slices.Sorted(maps.Keys(n.children)) {
		out = append(out, fs.FileInfoToDirEntry(memInfo{base, n.children[base]}))
	}
	return out, nil
}

func (m *memFS) stat(name string, follow bool) (fs.FileInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, base, n, err := m.existing("stat", name, follow)
	if err != nil {
		return nil, err
	}
	return memInfo{base, n}, nil
}

func (m *memFS) Stat(name string) (fs.FileInfo, error)  { return m.stat(name, true) }
func (m *memFS) Lstat(name string) (fs.FileInfo, error) { return m.stat(name, false) }

func (m *memFS) SyncDir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, _, n, err := m.existing("sync", name, true)
	if err != nil {
		return err
	}
	if err := m.step(); err != nil {
		return err
	}
	n.durable = maps.Clone(n.children)
	return nil
}

// tree lists everything below dir, links not followed: path -> content, with
// "/" for a directory and "-> target" for a link.
func (m *memFS) tree(dir string) map[string]string {
	out := map[string]string{}
	_, _, n, err := m.existing("tree", dir, false)
	if err != nil {
		return out
	}
	var walk func(prefix string, n *node)
	walk = func(prefix string, n *node) {
		for name, c := range n.children {
			switch c.kind {
			case fs.ModeDir:
				out[prefix+name] = "/"
				walk(prefix+name+"/", c)
			case fs.ModeSymlink:
				out[prefix+name] = "-> " + string(c.data)
			default:
				out[prefix+name] = string(c.data)
			}
		}
	}
	walk("", n)
	return out
}

// put writes a file durably, and its directories.
func (m *memFS) put(name, data string) {
	n := m.root
	parts := strings.Split(strings.Trim(name, "/"), "/")
	for _, part := range parts[:len(parts)-1] {
		if n.children[part] == nil {
			n.children[part] = newDir()
			n.durable[part] = n.children[part]
		}
		n = n.children[part]
	}
	c := &node{data: []byte(data), synced: []byte(data)}
	n.children[parts[len(parts)-1]], n.durable[parts[len(parts)-1]] = c, c
}

type memInfo struct {
	name string
	node *node
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return int64(len(i.node.data)) }
func (i memInfo) Mode() fs.FileMode  { return i.node.kind | 0o700 }
func (i memInfo) ModTime() time.Time { return time.Time{} }
func (i memInfo) IsDir() bool        { return i.node.kind == fs.ModeDir }
func (i memInfo) Sys() any           { return nil }

type memFile struct {
	fs   *memFS
	node *node
	name string
	pos  int64
}

func (f *memFile) Name() string               { return f.name }
func (f *memFile) Stat() (fs.FileInfo, error) { return memInfo{path.Base(f.name), f.node}, nil }
func (f *memFile) Close() error               { return nil }

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if off >= int64(len(f.node.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.node.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.pos)
	f.pos += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

// WriteAt tears: the failing write leaves its first half.
func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	err := f.fs.step()
	if err != nil {
		p = p[:len(p)/2]
	}
	if err == errCrashed && f.fs.ops > f.fs.failAt+1 {
		return 0, err
	}
	if end := off + int64(len(p)); end > int64(len(f.node.data)) {
		f.node.data = append(f.node.data, make([]byte, end-int64(len(f.node.data)))...)
	}
	copy(f.node.data[off:], p)
	return len(p), err
}

func (f *memFile) Write(p []byte) (int, error) {
	n, err := f.WriteAt(p, f.pos)
	f.pos += int64(n)
	return n, err
}

func (f *memFile) Seek(off int64, whence int) (int64, error) {
	if whence != io.SeekStart {
		return 0, errors.New("only from the start")
	}
	f.pos = off
	return off, nil
}

func (f *memFile) Truncate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.step(); err != nil {
		return err
	}
	if size < int64(len(f.node.data)) {
		f.node.data = f.node.data[:size]
	} else {
		f.node.data = append(f.node.data, make([]byte, size-int64(len(f.node.data)))...)
	}
	return nil
}

func (f *memFile) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.step(); err != nil {
		return err
	}
	f.node.synced = slices.Clone(f.node.data)
	return nil
}
