package repo

import (
	"bytes"
	"fmt"
	"io"

	"tidemark/internal/exit"
	"tidemark/pkg/wal"
)

// checkWAL checks by its beginning that a file is what its name says, and this
// cluster's. What it returns checks the rest, as it is read: the block at an
// offset, in whole pages.
func (c *Cluster) checkWAL(f wal.FileName, content io.ReaderAt, size int64) (func(off int64, block []byte) error, error) {
	anything := func(int64, []byte) error { return nil }
	if f.Kind == wal.FileHistory || f.Kind == wal.FileBackupHistory {
		if size == 0 || size > maxTextFile {
			return nil, refuseWAL(f, "a %s file of %d bytes", f.Kind, size)
		}
		return anything, nil
	}
	if !wal.SegmentSize(size).Valid() || size > int64(wal.MaxSegmentSize) {
		return nil, refuseWAL(f, "it has %d bytes, which is not the size of a segment", size)
	}
	first := make([]byte, wal.LongHeaderSize)
	if _, err := content.ReadAt(first, 0); err != nil {
		return nil, fmt.Errorf("reading %s: %w", f, err)
	}
	h, err := wal.ParsePageHeader(first)
	if err != nil {
		return nil, refuseWAL(f, "%v", err)
	}
	if err := h.Validate(); err != nil {
		return nil, refuseWAL(f, "its first page header is wrong: %v", err)
	}
	switch n, ok := f.Number(wal.SegmentSize(size)); {
	case !h.Long():
		return nil, refuseWAL(f, "its first page has no long header")
	case h.SystemID != c.systemID:
		return nil, refuseWAL(f, "it was written by the cluster with system identifier %d, the repository's folder is that of %d", h.SystemID, c.systemID)
	case int64(h.SegmentSize) != size:
		return nil, refuseWAL(f, "it has %d bytes, its header says %d", size, h.SegmentSize)
	case !ok || h.Address != wal.SegmentSize(size).Start(n):
		return nil, refuseWAL(f, "its header says that it begins at %s", h.Address)
	case h.Timeline > f.Timeline:
		return nil, refuseWAL(f, "its header says timeline %s", h.Timeline)
	}
	if f.Kind == wal.FilePartial {
		return anything, nil // what follows the end of the timeline may be anything
	}
	return func(off int64, block []byte) error { return checkPages(f, h, off, block) }, nil
}

// checkPages checks that every page of a block of a complete segment is in its
// place: it has the right address, or is empty.
func checkPages(f wal.FileName, first wal.PageHeader, off int64, block []byte) error {
	for at := 0; at < len(block); at += int(first.PageSize) {
		page := block[at:min(at+int(first.PageSize), len(block))]
		h, err := wal.ParsePageHeader(page)
		if err != nil {
			return refuseWAL(f, "%v", err)
		}
		if h.Magic == first.Magic && h.Address == first.Address+wal.LSN(off)+wal.LSN(at) {
			continue
		}
		if !isZero(page) {
			return refuseWAL(f, "the page at offset %d is not a page of this segment", off+int64(at))
		}
	}
	return nil
}

func refuseWAL(f wal.FileName, format string, args ...any) error {
	return exit.New(exit.Refused, "the repository was not changed; look at the file with pg_waldump",
		"%s is refused: %s", f, fmt.Sprintf(format, args...))
}

var zeros [64 << 10]byte

// isZero reports whether b is all zero.
func isZero(b []byte) bool {
	for len(b) > len(zeros) {
		if !bytes.Equal(b[:len(zeros)], zeros[:]) {
			return false
		}
		b = b[len(zeros):]
	}
	return bytes.Equal(b, zeros[:len(b)])
}
