package blockcopy

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"tidemark/internal/exit"
)

// spacer is an FS that knows how much room there is. Where it does not, a full
// disk is met when it is full: the run stops and can be resumed or undone.
type spacer interface {
	Space(name string) (free int64, device uint64, err error)
}

// room is what a run needs of one file system.
type room struct {
	at         string // a directory on it
	free       int64
	data, undo int64 // that files grow by; that is kept for an undo
}

// checkSpace refuses a run that the file systems cannot hold. Nothing is
// changed yet. What is kept for the undo is counted as if it did not compress.
func (r *runner) checkSpace() error {
	fsys, ok := r.FS.(spacer)
	if !ok {
		return nil
	}
	s := spaceSum{runner: r, fsys: fsys, rooms: map[uint64]*room{}, dirs: map[string]*room{}, links: map[string]string{}}
	home, err := s.of(r.Target)
	if err != nil {
		return err
	}
	sizes := map[string]int64{}
	for _, a := range r.plan.Actions {
		if a.Kind == CreateLink {
			s.links[a.Path] = a.LinkTarget
		}
		if a.Kind != Copy && a.Kind != CopyBlocks && a.Kind != CopyTail && a.Kind != Truncate {
			continue
		}
		old, ok := sizes[a.Path]
		if !ok {
			if fi, err := r.FS.Stat(s.place(a.Path)); err == nil {
				old = fi.Size()
			}
			sizes[a.Path] = old
		}
		there, err := s.of(filepath.Dir(s.place(a.Path)))
		if err != nil {
			return err
		}
		there.data += grows(a, old)
		if r.undo != nil {
			home.undo += kept(a, old)
		}
	}
	for _, need := range s.rooms {
		if need.data+need.undo > need.free {
			return need.refuse(r.plan.Operation)
		}
	}
	return nil
}

// grows is how much longer an action makes a file of size old.
func grows(a Action, old int64) int64 {
	if a.Kind == Copy || a.Kind == CopyTail {
		return max(0, a.Size+a.Zeros-old)
	}
	return 0
}

// kept is how much an action destroys of a file of size old.
func kept(a Action, old int64) int64 {
	switch a.Kind {
	case Copy:
		return old // what it overwrites, and what is cut off
	case Truncate:
		return max(0, old-a.Size)
	}
	var n int64
	for _, span := range a.spans() {
		n += max(0, min(span.Offset+span.Length, old)-span.Offset)
	}
	return n
}

func (n *room) refuse(operation string) error {
	const mb = 1e6
	text := fmt.Sprintf("the %s needs %.0f MB on the file system of %s, which has %.0f MB left", operation, float64(n.data+n.undo)/mb, n.at, float64(n.free)/mb)
	hint := "free space there"
	if n.undo > 0 {
		text += fmt.Sprintf(" (%.0f MB of it to be able to undo it)", float64(n.undo)/mb)
	}
	if n.data <= n.free {
		hint += fmt.Sprintf(", or do without the undo (--no-undo): %.0f MB are then enough", float64(n.data)/mb)
	}
	return exit.New(exit.Failed, hint, "%s; nothing is changed", text)
}

// spaceSum collects what is needed by file system.
type spaceSum struct {
	*runner
	fsys  spacer
	rooms map[uint64]*room
	dirs  map[string]*room
	links map[string]string // tablespaces that the run makes
}

// place is where a path will lie.
func (s *spaceSum) place(path string) string {
	for link, target := range s.links {
		if rest, ok := strings.CutPrefix(path, link+"/"); ok {
			return filepath.Join(target, filepath.FromSlash(rest))
		}
	}
	return s.path(path)
}

// of finds the file system of a directory, or of the first parent that exists.
func (s *spaceSum) of(dir string) (*room, error) {
	if n := s.dirs[dir]; n != nil {
		return n, nil
	}
	free, device, err := s.fsys.Space(dir)
	if errors.Is(err, fs.ErrNotExist) && filepath.Dir(dir) != dir {
		n, err := s.of(filepath.Dir(dir))
		s.dirs[dir] = n
		return n, err
	}
	if err != nil {
		return nil, err
	}
	if s.rooms[device] == nil {
		s.rooms[device] = &room{at: dir, free: free}
	}
	s.dirs[dir] = s.rooms[device]
	return s.rooms[device], nil
}
