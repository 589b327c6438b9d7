package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

// WalkEntry is a file, directory or link of a data directory.
type WalkEntry struct {
	Path       string      // relative to the data directory, with slashes
	Info       fs.FileInfo // of the thing itself, not of what a link leads to
	LinkTarget string      // of a symbolic link
}

// IsDir and IsLink tell what kind of entry it is; whatever is neither and not
// a regular file (a socket, say) has no place in a data directory.
func (e WalkEntry) IsDir() bool     { return e.Info.IsDir() }
func (e WalkEntry) IsLink() bool    { return e.Info.Mode()&fs.ModeSymlink != 0 }
func (e WalkEntry) IsRegular() bool { return e.Info.Mode().IsRegular() }

// Walk calls fn for everything in the data directory dir, but for dir itself,
// each directory before its content, in the order of the names. It goes on
// behind the links in pg_tblspc and behind a pg_wal that is a link, and behind
// no others. What vanishes meanwhile is passed over. fn may return fs.SkipDir
// for a directory or link that it does not want to see the content of, and
// fs.SkipAll to end the walk.
func Walk(fsys FS, dir string, fn func(WalkEntry) error) error {
	if _, err := fsys.Stat(dir); err != nil {
		return err
	}
	err := walkDir(fsys, dir, "", fn)
	if errors.Is(err, fs.SkipAll) {
		return nil
	}
	return err
}

func walkDir(fsys FS, root, path string, fn func(WalkEntry) error) error {
	names, err := readNames(fsys, filepath.Join(root, filepath.FromSlash(path)))
	if err != nil {
		return ignoreMissing(err)
	}
	for _, name := range names {
		if path != "" {
			name = path + "/" + name
		}
		if err := walkEntry(fsys, root, name, fn); err != nil {
			return err
		}
	}
	return nil
}

// nameReader is implemented by an FS that can list the names in a directory
// alone. They take a third of the room of entries, and a database may well
// have a million files in its directory.
type nameReader interface {
	ReadNames(dir string) ([]string, error)
}

// readNames returns the names in a directory, in order.
func readNames(fsys FS, dir string) ([]string, error) {
	if r, ok := fsys.(nameReader); ok {
		names, err := r.ReadNames(dir)
		slices.Sort(names)
		return names, err
	}
	entries, err := fsys.ReadDir(dir)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	slices.Sort(names)
	return names, err
}

func walkEntry(fsys FS, root, path string, fn func(WalkEntry) error) error {
	full := filepath.Join(root, filepath.FromSlash(path))
	info, err := fsys.Lstat(full)
	if err != nil {
		return ignoreMissing(err)
	}
	e := WalkEntry{Path: path, Info: info}
	descend := e.IsDir()
	if e.IsLink() {
		if e.LinkTarget, err = fsys.Readlink(full); err != nil {
			return ignoreMissing(err)
		}
		descend = Follows(path)
	}
	err = fn(e)
	if errors.Is(err, fs.SkipDir) {
		return nil
	}
	if err != nil || !descend {
		return err
	}
	return walkDir(fsys, root, path, fn)
}

// Follows tells whether a symbolic link at this path is part of the cluster's
// structure: pg_wal, and the tablespaces in pg_tblspc.
func Follows(path string) bool {
	rest, ok := strings.CutPrefix(path, "pg_tblspc/")
	return path == "pg_wal" || ok && rest != "" && !strings.Contains(rest, "/")
}

// CheckPath refuses a path that came from another machine and would lead out
// of the data directory, or that is not written in the one way that Walk
// writes it. Quotes, blanks and bytes that are no UTF-8 are allowed.
func CheckPath(path string) error {
	bad := path == "" || strings.ContainsRune(path, 0)
	for part := range strings.SplitSeq(path, "/") {
		bad = bad || part == "" || part == "." || part == ".."
	}
	if bad {
		return fmt.Errorf("%q is not a path inside a data directory", path)
	}
	return nil
}
