package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

// Driver stores immutable objects under write-once names. It is the whole of
// what the repository asks of a store, and drivertest.Run is the suite that
// every implementation passes.
//
// Names are slash-separated paths that ValidName accepts. All methods may be
// called from several goroutines and from several processes at once.
type Driver interface {
	// Location names the store for people ("/srv/backup", "s3://bucket/x").
	Location() string

	// Put creates the object name from what write produces. The object appears
	// whole and durable when Put returns nil, and not at all otherwise. Put
	// never replaces: if the name is taken it returns an error that wraps
	// ErrExist, and what has that name is then durable as well. An error of
	// write is returned as it is.
	Put(ctx context.Context, name string, write func(io.Writer) error) error

	// Get reads length bytes from offset on; fewer where the object ends
	// sooner, and up to its end for a negative length. A negative offset counts
	// from the end of the object and is cut at its start. An object that is not
	// there gives an error that wraps ErrNotExist.
	Get(ctx context.Context, name string, offset, length int64) (*Object, error)

	// List calls each for every whole object below the folder prefix ("" or
	// ending in a slash), in no particular order. Unfinished objects do not
	// show. A folder without objects is empty, not an error.
	List(ctx context.Context, prefix string, each func(ObjectInfo) error) error

	// Delete removes an object, durably. One that is not there is no error.
	Delete(ctx context.Context, name string) error
}

// Sweeper is implemented by drivers that can leave unfinished objects behind
// when a process dies. Sweep removes those that no living process writes.
type Sweeper interface {
	Sweep(ctx context.Context) (removed int, err error)
}

// folderLister is implemented by drivers that can name the topmost folders
// which hold objects without listing all objects.
type folderLister interface {
	folders(ctx context.Context) ([]string, error)
}

// Object is an open range of an object.
type Object struct {
	io.ReadCloser
	Size   int64 // of the whole object
	Offset int64 // where the range begins
	Length int64 // of the range
}

// ObjectInfo describes an object in a listing.
type ObjectInfo struct {
	Name string
	Size int64
}

var (
	// ErrExist is returned by Put when the name is taken.
	ErrExist error = &kind{"object exists already", fs.ErrExist}
	// ErrNotExist is returned by Get when no such object is in the store.
	ErrNotExist error = &kind{"no such object", fs.ErrNotExist}
	// ErrLocked is returned by Delete when the store keeps the object for a time
	// that has not passed yet (object lock).
	ErrLocked = errors.New("kept by the store's lock")
	// ErrBadName is returned for a name that ValidName does not accept.
	ErrBadName = errors.New("not a valid object name")
)

// kind is a sentinel that is also one of io/fs's, without repeating its words.
type kind struct {
	text string
	as   error
}

func (k *kind) Error() string { return k.text }
func (k *kind) Unwrap() error { return k.as }

// maxNameLength leaves room for a prefix below the 1024 bytes of object stores.
const maxNameLength = 512

// ValidName reports whether name may be the name of an object: elements of
// letters, digits, and "._-", none beginning with a dot, joined by slashes.
func ValidName(name string) bool {
	if name == "" || len(name) > maxNameLength {
		return false
	}
	for elem := range strings.SplitSeq(name, "/") {
		if elem == "" || elem[0] == '.' {
			return false
		}
		for i := range len(elem) {
			c := elem[i]
			ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
				c == '.' || c == '_' || c == '-'
			if !ok {
				return false
			}
		}
	}
	return true
}

func checkName(op, name string) error {
	if !ValidName(name) {
		return &fs.PathError{Op: op, Path: name, Err: ErrBadName}
	}
	return nil
}

func checkPrefix(prefix string) error {
	if prefix == "" || strings.HasSuffix(prefix, "/") && ValidName(strings.TrimSuffix(prefix, "/")) {
		return nil
	}
	return &fs.PathError{Op: "list", Path: prefix, Err: ErrBadName}
}

// putBytes stores a small object.
func putBytes(ctx context.Context, d Driver, name string, data []byte) error {
	return d.Put(ctx, name, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// getBytes reads a range whole into buf (which it may grow) and returns it
// with the object's size. Lengths come from the store, so the read is bounded
// by limit.
func getBytes(ctx context.Context, d Driver, name string, offset, length, limit int64, buf []byte) ([]byte, int64, error) {
	obj, err := d.Get(ctx, name, offset, length)
	if err != nil {
		return nil, 0, err
	}
	defer obj.Close()
	if obj.Length > limit {
		return nil, obj.Size, fmt.Errorf("%s: %d bytes where at most %d are expected", name, obj.Length, limit)
	}
	if int64(cap(buf)) < obj.Length {
		buf = make([]byte, obj.Length)
	}
	buf = buf[:obj.Length]
	if _, err := io.ReadFull(obj, buf); err != nil {
		return nil, obj.Size, fmt.Errorf("reading %s at %d: %w", name, obj.Offset, err)
	}
	return buf, obj.Size, nil
}
