package blockcopy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"tidemark/internal/exit"
	"tidemark/pkg/volume"
)

// pieceBytes is the most that a DirSource hands over at once.
const pieceBytes = 1 << 20

// DirSource is a Source that reads a local data directory.
type DirSource struct {
	dir    string
	stable bool

	mu     sync.Mutex
	listed map[string]stamp // where stable: what List saw
}

type stamp struct {
	size  int64
	mtime time.Time
}

// NewDirSource returns a source for the data directory dir. stable says that
// nothing may change in it meanwhile, as its server is stopped: a file that
// changed since it was listed is then an error.
func NewDirSource(dir string, stable bool) *DirSource {
	return &DirSource{dir: dir, stable: stable, listed: map[string]stamp{}}
}

// Name is "directory " and the path.
func (s *DirSource) Name() string { return "directory " + s.dir }

// Close does nothing.
func (s *DirSource) Close() error { return nil }

// List walks the directory, behind pg_tblspc's links and a pg_wal that is a
// link. A link anywhere else is listed as the file that it leads to, or left
// out where it leads to a directory (a server's log, say).
func (s *DirSource) List(ctx context.Context) ([]Entry, error) {
	return s.list(ctx, volume.OS)
}

// ListDir lists a data directory in the way of DirSource.List, through fsys.
func ListDir(ctx context.Context, fsys volume.FS, dir string) ([]Entry, error) {
	return (&DirSource{dir: dir}).list(ctx, fsys)
}

// EachIn calls do for what ListDir returns, one by one.
func EachIn(ctx context.Context, fsys volume.FS, dir string, do func(Entry) error) error {
	return (&DirSource{dir: dir}).each(ctx, fsys, do)
}

// Each calls do for what List returns, one by one.
func (s *DirSource) Each(ctx context.Context, do func(Entry) error) error {
	return s.each(ctx, volume.OS, do)
}

func (s *DirSource) list(ctx context.Context, fsys volume.FS) ([]Entry, error) {
	var out []Entry
	err := s.each(ctx, fsys, func(e Entry) error {
		out = append(out, e)
		return nil
	})
	return out, err
}

func (s *DirSource) each(ctx context.Context, fsys volume.FS, do func(Entry) error) error {
	return volume.Walk(fsys, s.dir, func(w volume.WalkEntry) error {
		e, err := s.entry(fsys, w)
		if err != nil || e == nil {
			return err
		}
		if s.stable && e.Type == File {
			s.mu.Lock()
			s.listed[e.Path] = stamp{e.Size, e.ModTime}
			s.mu.Unlock()
		}
		if err := do(*e); err != nil {
			return err
		}
		return ctx.Err()
	})
}

func (s *DirSource) entry(fsys volume.FS, w volume.WalkEntry) (*Entry, error) {
	e := &Entry{Path: w.Path, Mode: w.Info.Mode().Perm(), ModTime: w.Info.ModTime()}
	switch {
	case w.IsDir():
		e.Type = Dir
	case w.IsRegular():
		e.Size = w.Info.Size()
	case w.IsLink() && w.Path == "pg_wal":
		e.Type = Dir
	case w.IsLink() && volume.Follows(w.Path):
		e.Type, e.LinkTarget = Link, w.LinkTarget
	case w.IsLink():
		fi, err := fsys.Stat(filepath.Join(s.dir, filepath.FromSlash(w.Path)))
		if errors.Is(err, fs.ErrNotExist) || err == nil && !fi.Mode().IsRegular() {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		e.Size, e.Mode, e.ModTime = fi.Size(), fi.Mode().Perm(), fi.ModTime()
	default:
		return nil, nil // a socket or a pipe is none of the server's files
	}
	return e, nil
}

// ReadFile returns a file's content.
func (s *DirSource) ReadFile(_ context.Context, name string) ([]byte, error) {
	return os.ReadFile(s.path(name))
}

func (s *DirSource) path(name string) string { return filepath.Join(s.dir, filepath.FromSlash(name)) }

var pieces = sync.Pool{New: func() any { return new([pieceBytes]byte) }}

// Fetch reads the ranges from the files.
func (s *DirSource) Fetch(ctx context.Context, ranges []Range, deliver Deliver) error {
	buf := pieces.Get().(*[pieceBytes]byte)
	defer pieces.Put(buf)
	for i := 0; i < len(ranges); {
		same := i + 1
		for same < len(ranges) && ranges[same].Path == ranges[i].Path {
			same++
		}
		if err := s.fetchFile(ctx, ranges[i:same], buf[:], deliver); err != nil {
			return err
		}
		i = same
	}
	return nil
}

// fetchFile reads ranges of one file.
func (s *DirSource) fetchFile(ctx context.Context, ranges []Range, buf []byte, deliver Deliver) error {
	name := ranges[0].Path
	f, err := os.Open(s.path(name))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		if s.stable {
			return s.changed(name, "it is gone")
		}
		for _, r := range ranges {
			if err := deliver(r, nil, true); err != nil {
				return err
			}
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for _, r := range ranges {
		if err := fetchRange(ctx, f, r, buf, deliver); err != nil {
			return err
		}
	}
	return s.checkUnchanged(f, name)
}

func fetchRange(ctx context.Context, f io.ReaderAt, r Range, buf []byte, deliver Deliver) error {
	for off := r.Offset; off < r.End(); {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		piece := Range{r.Path, off, min(r.End()-off, int64(len(buf)))}
		n, err := f.ReadAt(buf[:piece.Length], off)
		if err != nil && err != io.EOF {
			return err
		}
		if err := deliver(piece, buf[:n], false); err != nil {
			return err
		}
		if int64(n) < piece.Length {
			return nil
		}
		off += int64(n)
	}
	return nil
}

// checkUnchanged compares a file with what List saw.
func (s *DirSource) checkUnchanged(f *os.File, name string) error {
	if !s.stable {
		return nil
	}
	s.mu.Lock()
	was, ok := s.listed[name]
	s.mu.Unlock()
	if !ok {
		return nil
	}
	fi, err := f.Stat()
	switch {
	case err != nil:
		return err
	case fi.Size() != was.size:
		return s.changed(name, fmt.Sprintf("its size was %d and is %d", was.size, fi.Size()))
	case !fi.ModTime().Equal(was.mtime):
		return s.changed(name, "it was written to")
	}
	return nil
}

func (s *DirSource) changed(name, how string) error {
	return exit.New(exit.Failed, "is a server running on "+s.dir+"? stop it, or use it as a live source",
		"%s changed while it was copied: %s", cmp.Or(s.path(name), name), how)
}
