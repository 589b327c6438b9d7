package blockcopy

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"
)

// EntryType says what a directory entry is.
type EntryType uint8

// The entry types. There are no others in a data directory; anything else
// (sockets, devices) is not listed.
const (
	File EntryType = iota
	Dir
	Link
)

var entryTypeNames = [...]string{File: "file", Dir: "dir", Link: "link"}

func (t EntryType) String() string {
	if int(t) < len(entryTypeNames) {
		return entryTypeNames[t]
	}
	return fmt.Sprintf("EntryType(%d)", uint8(t))
}

// Entry is one file, directory or symbolic link below a data directory.
//
// Links are listed as links only where the server follows them by design:
// below pg_tblspc. What lies behind such a link is listed too, under the
// link's path. pg_wal is listed as a directory even where it is a link.
type Entry struct {
	Path       string // relative to the data directory, slashes, no leading "./"
	Type       EntryType
	Size       int64       // bytes, for files
	Mode       fs.FileMode // permission bits; 0 where the source does not tell
	ModTime    time.Time   // zero where the source does not tell
	LinkTarget string      // for links; "" where the source does not tell
}

// Range is a part of a file: Length bytes from Offset on.
type Range struct {
	Path   string
	Offset int64
	Length int64
}

// End is the offset after the range's last byte.
func (r Range) End() int64 { return r.Offset + r.Length }

func (r Range) String() string { return fmt.Sprintf("%s[%d+%d]", r.Path, r.Offset, r.Length) }

// Deliver takes one piece of a range that was asked for. data is valid during
// the call only.
//
//   - piece lies inside a range that was asked for; the pieces of one range
//     come in ascending order, without gaps, and are as long as the source
//     likes (at most a few MB).
//   - len(data) < piece.Length means that the file ends at
//     piece.Offset+len(data): no further piece of that range follows.
//   - gone means that there is no such file (any more): data is nil and no
//     further piece of that range follows.
//
// An error from Deliver ends the Fetch with that error.
type Deliver func(piece Range, data []byte, gone bool) error

// Source is where blocks come from: a local directory (DirSource), a live
// server, a backup.
type Source interface {
	// Name says what the source is, for messages ("server host=db2 port=5432",
	// "directory /srv/pg"). It holds no password.
	Name() string
	// List returns every file, directory and link, parents before children.
	// An entry that vanishes meanwhile is left out; one that cannot be read
	// is an error.
	List(ctx context.Context) ([]Entry, error)
	// Fetch reads the ranges, in order, and hands them to deliver piece by
	// piece, one after the other. It may be called from several goroutines
	// at once. A file that does not exist is delivered as gone; any other
	// fault is an error that names the file.
	Fetch(ctx context.Context, ranges []Range, deliver Deliver) error
	// ReadFile returns a small file's whole content, or an error that is
	// fs.ErrNotExist.
	ReadFile(ctx context.Context, path string) ([]byte, error)
	// Close ends connections and the like.
	Close() error
}

// CheckPath refuses names that must not come from a source: absolute ones,
// ones with "..", empty parts, NUL or a trailing slash. A source's names are
// joined to the target directory, so every planner checks them first.
func CheckPath(name string) error {
	if name == "" || name == "." || path.IsAbs(name) || strings.ContainsRune(name, 0) || path.Clean(name) != name ||
		name == ".." || strings.HasPrefix(name, "../") {
		return fmt.Errorf("the source lists an unsafe file name %q", name)
	}
	return nil
}
