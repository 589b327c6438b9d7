package repo

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"slices"
	"strings"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/pkg/wal"
)

// A source that sends its files in an order of its own needs two things of the
// writer: a file list that is sorted when all of it is known, and the entry of
// any file of an earlier backup. Both lie in a temporary file that has no name;
// in memory are some 40 bytes per file.

// lineSpool is a temporary file of lines.
type lineSpool struct {
	file *os.File
	out  *bufio.Writer
	size int64
}

const spoolBuffer = 256 << 10

func newLineSpool() (*lineSpool, error) {
	f, err := os.CreateTemp("", "tidemark-files-")
	if err == nil {
		err = os.Remove(f.Name())
	}
	if err != nil {
		return nil, spoolFault(err)
	}
	return &lineSpool{file: f, out: bufio.NewWriterSize(f, spoolBuffer)}, nil
}

func spoolFault(err error) error {
	return exit.Wrap(err, exit.Failed, "TMPDIR names another directory for temporary files", "the list of files cannot be kept in %s", os.TempDir())
}

// add appends a line and returns where it begins.
func (s *lineSpool) add(line []byte) (at int64, err error) {
	at = s.size
	if _, err := s.out.Write(line); err != nil {
		return 0, spoolFault(err)
	}
	s.size += int64(len(line))
	return at, nil
}

// line reads a line into buf. The spool is flushed.
func (s *lineSpool) line(buf []byte, at int64, length uint32) ([]byte, error) {
	buf = slices.Grow(buf[:0], int(length))[:length]
	if _, err := s.file.ReadAt(buf, at); err != nil {
		return nil, spoolFault(err)
	}
	return buf, nil
}

func (s *lineSpool) close() {
	if s != nil {
		s.file.Close() // nobody reads it again
	}
}

// sortedLines puts the lines of a manifest into order.
type sortedLines struct {
	*lineSpool
	all   []sortedLine
	names []byte // the paths, one behind the other
}

type sortedLine struct {
	at, name       int64
	length, nameOf uint32
}

func newSortedLines() (*sortedLines, error) {
	s, err := newLineSpool()
	return &sortedLines{lineSpool: s}, err
}

func (s *sortedLines) add(path string, line []byte) error {
	at, err := s.lineSpool.add(line)
	s.all = append(s.all, sortedLine{at, int64(len(s.names)), uint32(len(line)), uint32(len(path))})
	s.names = append(s.names, path...)
	return err
}

func (s *sortedLines) path(l sortedLine) []byte { return s.names[l.name : l.name+int64(l.nameOf)] }

// isTail reports whether a path is that of a backup's own segment, which comes last.
func isTail(path []byte) bool {
	name, ok := strings.CutPrefix(string(path), tailFolder)
	if !ok {
		return false
	}
	_, ok = wal.ParseFileName(name)
	return ok
}

// writeTo writes the lines in the order of a manifest.
func (s *sortedLines) writeTo(m *manifestWriter) error {
	if err := s.out.Flush(); err != nil {
		return spoolFault(err)
	}
	slices.SortFunc(s.all, func(a, b sortedLine) int {
		x, y := s.path(a), s.path(b)
		if t, u := isTail(x), isTail(y); t != u {
			return map[bool]int{false: -1, true: 1}[t]
		}
		return bytes.Compare(x, y)
	})
	var buf []byte
	for i, l := range s.all {
		if i > 0 && bytes.Equal(s.path(l), s.path(s.all[i-1])) {
			return exit.New(exit.Failed, "run the command again", "the server sent %s twice", s.path(l))
		}
		var err error
		if buf, err = s.line(buf, l.at, l.length); err != nil {
			return err
		}
		if err := m.line(buf); err != nil {
			return err
		}
	}
	return nil
}

// fileLookup finds the entry of any file of an earlier backup.
type fileLookup struct {
	*lineSpool
	seed      maphash.Seed
	manifests []*Manifest
	all       []lookupLine // by hash
	buf       []byte
}

type lookupLine struct {
	hash             uint64 // of the path
	at               int64
	length, manifest uint32
}

// newFileLookup reads the file lists of manifests, as far as they are sound:
// fault says why not to the end.
func newFileLookup(ctx context.Context, manifests []*Manifest) (l *fileLookup, fault, err error) {
	l = &fileLookup{seed: maphash.MakeSeed(), manifests: manifests}
	if l.lineSpool, err = newLineSpool(); err != nil {
		return nil, nil, err
	}
	for i := range manifests {
		if fault, err = l.read(ctx, i); fault != nil || err != nil {
			break
		}
	}
	if err == nil {
		err = l.out.Flush()
	}
	if err != nil {
		l.close()
		return nil, nil, err
	}
	slices.SortFunc(l.all, func(a, b lookupLine) int { return cmp.Compare(a.hash, b.hash) })
	return l, fault, nil
}

func (l *fileLookup) read(ctx context.Context, i int) (fault, err error) {
	var line []byte
	for files := l.manifests[i].Files(ctx); ; {
		f, err := files.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil, nil
		case isCorrupt(err), errors.Is(err, ErrNotExist): // damaged, or deleted meanwhile
			return err, nil
		case err != nil:
			return nil, err
		}
		if f.Type != blockcopy.File {
			continue
		}
		line = appendFile(line[:0], f)
		at, err := l.add(line)
		if err != nil {
			return nil, err
		}
		l.all = append(l.all, lookupLine{maphash.String(l.seed, f.Path), at, uint32(len(line)), uint32(i)})
	}
}

// find returns the entry of a file and the manifest that it is in; nil where
// there is none.
func (l *fileLookup) find(path string) (*File, *Manifest, error) {
	hash := maphash.String(l.seed, path)
	at, _ := slices.BinarySearchFunc(l.all, hash, func(e lookupLine, h uint64) int { return cmp.Compare(e.hash, h) })
	for ; at < len(l.all) && l.all[at].hash == hash; at++ {
		e := l.all[at]
		var err error
		if l.buf, err = l.line(l.buf, e.at, e.length); err != nil {
			return nil, nil, err
		}
		m := l.manifests[e.manifest]
		f, err := parseFile(l.buf, m.Packs, m.BlockSize)
		if err != nil {
			return nil, nil, fmt.Errorf("the entry of %s: %w", path, err)
		}
		if f.Path == path {
			return f, m, nil
		}
	}
	return nil, nil, nil
}
