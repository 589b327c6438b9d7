package ssh

import (
	"cmp"
	"context"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/pkg/sftp"

	"tidemark/pkg/volume"
)

// folders is as much of a file system as walking through it takes. The host
// lists a directory with all that Lstat would say, so that is kept until the
// walk is through with it.
type folders struct {
	volume.FS // nil: nothing else is called
	ctx       context.Context
	s         *Source
	listed    map[string]*listing // the directories from the root to the present one
}

// listing is the content of a directory, which may have a million entries: it
// keeps what is needed of each, and lets the library's go at once.
type listing struct {
	names []string // in order
	stats []stat
	next  int // where the walk is
}

// stat is what is kept of an entry beside its name.
type stat struct {
	size    int64
	changed int64 // seconds
	mode    fs.FileMode
}

// newListing takes the entries over.
func newListing(infos []fs.FileInfo) *listing {
	slices.SortFunc(infos, func(a, b fs.FileInfo) int { return cmp.Compare(a.Name(), b.Name()) })
	l := &listing{names: make([]string, len(infos)), stats: make([]stat, len(infos))}
	for i, info := range infos {
		l.names[i], l.stats[i] = info.Name(), stat{info.Size(), info.ModTime().Unix(), info.Mode()}
		infos[i] = nil
	}
	return l
}

// find returns an entry: the next one in the order of the names is at hand.
func (l *listing) find(name string) (fs.FileInfo, bool) {
	i, ok := l.next, l.next < len(l.names) && l.names[l.next] == name
	if !ok {
		if i, ok = slices.BinarySearch(l.names, name); !ok {
			return nil, false
		}
	}
	l.next = i + 1
	return listedInfo{l.names[i], l.stats[i]}, true
}

// listedInfo implements fs.FileInfo.
type listedInfo struct {
	name string
	stat
}

func (i listedInfo) Name() string       { return i.name }
func (i listedInfo) Size() int64        { return i.size }
func (i listedInfo) Mode() fs.FileMode  { return i.mode }
func (i listedInfo) ModTime() time.Time { return time.Unix(i.changed, 0) }
func (i listedInfo) IsDir() bool        { return i.mode.IsDir() }
func (i listedInfo) Sys() any           { return nil }

func (f *folders) do(op func(c *sftp.Client) error) error {
	return f.s.do(f.ctx, func(c *Session) error { return c.Watch(func() error { return op(c.Client) }) })
}

// ReadNames lists a directory. Its caller does not change the names.
func (f *folders) ReadNames(dir string) (names []string, err error) {
	err = f.s.do(f.ctx, func(c *Session) error { // no limit: it may take long
		infos, err := c.Client.ReadDirContext(f.ctx, dir)
		if err != nil {
			return err
		}
		l := newListing(infos)
		maps.DeleteFunc(f.listed, func(other string, _ *listing) bool { return !strings.HasPrefix(dir, other+"/") })
		f.listed[dir], names = l, l.names
		return nil
	})
	return names, err
}

func (f *folders) Lstat(name string) (info fs.FileInfo, err error) {
	if here := f.listed[path.Dir(name)]; here != nil {
		if info, ok := here.find(path.Base(name)); ok {
			return info, nil
		}
	}
	err = f.do(func(c *sftp.Client) (err error) { info, err = c.Lstat(name); return err })
	return info, err
}

func (f *folders) Stat(name string) (info fs.FileInfo, err error) {
	err = f.do(func(c *sftp.Client) (err error) { info, err = c.Stat(name); return err })
	return info, err
}

func (f *folders) Readlink(name string) (target string, err error) {
	err = f.do(func(c *sftp.Client) (err error) { target, err = c.ReadLink(name); return err })
	return target, err
}
