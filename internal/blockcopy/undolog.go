package blockcopy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/klauspost/compress/s2"

	"tidemark/pkg/volume"
)

// An undo log keeps what a step is about to destroy. It is written under a
// temporary name, synced, renamed, and only then the step begins: a log that
// is there is whole, and one that is not there has nothing to tell. A log that
// is there is never written again, so the first pre-image stays.
//
//	undo/names      what each path of the plan was before: step 1
//	undo/batch-17   the bytes that the tasks of batch 17 overwrite: before the
//	                first of them is fetched (batch.go says what a batch is)
//	undo/tails      the bytes that are cut off: before step 3c
//	undo/finish-0   the files that step 4 replaces, whole; -1 and on where
//	                a resumed run replaces others
//	undo/r17        the file of action 17 itself, renamed aside by step 3d
//
// A log is an S2 stream (github.com/klauspost/compress/s2: Snappy's framing
// format, each frame with its own checksum) of a row of entries, integers
// little-endian:
//
//	0   4  CRC-32C of all that follows in the entry
//	4   1  kind: 1 absent, 2 file, 3 directory, 4 link, 5 bytes
//	5   1  1: the file's whole content follows in this log
//	6   2  0
//	8   4  permission bits
//	12  4  length of the path
//	16  4  length of the text: a link's target, or the bytes
//	20  8  file: its size; bytes: their offset
//	28     path, text
//
// Paths are relative to the data directory, but for the absolute ones of
// directories that were made to hold a tablespace. All this is part of the
// format, do not change.
type undoEntry struct {
	kind  undoKind
	whole bool
	mode  fs.FileMode
	path  string
	size  int64  // or the offset
	text  []byte // valid until the next entry is read
}

type undoKind uint8

const (
	undoAbsent undoKind = iota + 1
	undoFile
	undoDir
	undoLink
	undoBytes

	undoHeader   = 28
	undoChunk    = 1 << 20
	undoFrame    = 256 << 10
	undoMaxPath  = 1 << 14
	undoDirName  = "undo"
	undoNames    = "names"
	undoTails    = "tails"
	undoBatch    = "batch-"
	undoFinish   = "finish-"
	undoAside    = "r"
	undoDirAbove = volume.OwnDir // holds what is renamed aside on another file system
)

// header is an entry without its path and text.
func (e undoEntry) header() []byte {
	b := make([]byte, undoHeader)
	b[4] = byte(e.kind)
	if e.whole {
		b[5] = 1
	}
	binary.LittleEndian.PutUint32(b[8:], uint32(e.mode.Perm()))
	binary.LittleEndian.PutUint32(b[12:], uint32(len(e.path)))
	binary.LittleEndian.PutUint32(b[16:], uint32(len(e.text)))
	binary.LittleEndian.PutUint64(b[20:], uint64(e.size))
	sum := crc32.Update(crc32.Checksum(b[4:], castagnoli), castagnoli, []byte(e.path))
	binary.LittleEndian.PutUint32(b, crc32.Update(sum, castagnoli, e.text))
	return b
}

// undoWriter writes one undo log.
type undoWriter struct {
	fsys   volume.FS
	name   string // the final one
	noSync bool
	f      volume.File
	w      *s2.Writer
	buf    []byte
	was    *overwritten // learns what is saved, where set
}

// Making a log is quick, making its buffers is not.
var s2Writers = sync.Pool{New: func() any {
	return s2.NewWriter(nil, s2.WriterConcurrency(1), s2.WriterBlockSize(undoFrame))
}}

func newUndoWriter(fsys volume.FS, name string, mode fs.FileMode, noSync bool) (*undoWriter, error) {
	f, err := fsys.OpenFile(name+volume.TempSuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return nil, err
	}
	w := s2Writers.Get().(*s2.Writer)
	w.Reset(f)
	return &undoWriter{fsys: fsys, name: name, noSync: noSync, f: f, w: w}, nil
}

func (u *undoWriter) add(e undoEntry) error {
	_, err := u.w.Write(e.header())
	if err == nil {
		_, err = u.w.Write([]byte(e.path))
	}
	if err == nil {
		_, err = u.w.Write(e.text)
	}
	return err
}

// save adds what a file holds from off on, length bytes or up to its end.
func (u *undoWriter) save(path string, f volume.File, off, length int64) error {
	if want := min(length, undoChunk); int64(len(u.buf)) < want {
		u.buf = make([]byte, want)
	}
	for length > 0 {
		n, err := f.ReadAt(u.buf[:min(length, int64(len(u.buf)))], off)
		if n > 0 {
			if err := u.add(undoEntry{kind: undoBytes, path: path, size: off, text: u.buf[:n]}); err != nil {
				return err
			}
			u.was.note(path, off, u.buf[:n])
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		off, length = off+int64(n), length-int64(n)
	}
	return nil
}

// commit makes the log durable, then its name.
func (u *undoWriter) commit() error {
	err := u.w.Close()
	s2Writers.Put(u.w)
	if err == nil && !u.noSync {
		err = volume.SyncData(u.f)
	}
	if err = errors.Join(err, u.f.Close()); err != nil {
		return err
	}
	if err := u.fsys.Rename(u.name+volume.TempSuffix, u.name); err != nil || u.noSync {
		return err
	}
	return u.fsys.SyncDir(filepath.Dir(u.name))
}

func (u *undoWriter) abandon() error { return errors.Join(u.w.Close(), u.f.Close()) }

// readUndoLog hands a log's entries to fn. A damaged log is an error; one that
// is not there is fs.ErrNotExist.
func readUndoLog(fsys volume.FS, name string, fn func(undoEntry) error) error {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	r := s2.NewReader(f, s2.ReaderMaxBlockSize(undoFrame))
	var buf []byte
	for err == nil {
		var e undoEntry
		if e, buf, err = readUndoEntry(r, buf); err == nil {
			err = fn(e)
		} else if err != io.EOF {
			err = fmt.Errorf("%s: %w", name, err)
		}
	}
	if err == io.EOF {
		err = nil
	}
	return errors.Join(err, f.Close())
}

var errUndoDamaged = errors.New("the undo log is damaged")

func readUndoEntry(r io.Reader, buf []byte) (undoEntry, []byte, error) {
	var h [undoHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		if err != io.EOF {
			err = fmt.Errorf("%w: %w", errUndoDamaged, err)
		}
		return undoEntry{}, buf, err
	}
	path, text := binary.LittleEndian.Uint32(h[12:]), binary.LittleEndian.Uint32(h[16:])
	if path > undoMaxPath || text > undoChunk {
		return undoEntry{}, buf, errUndoDamaged
	}
	n := int(path + text)
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		return undoEntry{}, buf, fmt.Errorf("%w: %w", errUndoDamaged, err)
	}
	sum := crc32.Update(crc32.Checksum(h[4:], castagnoli), castagnoli, buf)
	e := undoEntry{kind: undoKind(h[4]), whole: h[5] == 1, mode: fs.FileMode(binary.LittleEndian.Uint32(h[8:])).Perm(),
		path: string(buf[:path]), size: int64(binary.LittleEndian.Uint64(h[20:])), text: buf[path:]}
	if sum != binary.LittleEndian.Uint32(h[:]) || e.kind < undoAbsent || e.kind > undoBytes || e.size < 0 {
		return undoEntry{}, buf, errUndoDamaged
	}
	return e, buf, nil
}
