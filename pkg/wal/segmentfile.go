package wal

import (
	"fmt"
	"io"
)

// CheckSegmentFile checks that a file of size bytes is the segment, or the
// partial one, that its name says, and the cluster's: by its first page
// header. A server that got a short segment would stop; one of another cluster
// must never get that far.
func CheckSegmentFile(r io.ReaderAt, size int64, name FileName, systemID uint64) error {
	head := make([]byte, LongHeaderSize)
	if _, err := r.ReadAt(head, 0); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	h, err := ParsePageHeader(head)
	if err == nil {
		err = h.Validate()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	number, ok := name.Number(h.SegmentSize)
	switch {
	case !h.Long() || !ok || h.Address != h.SegmentSize.Start(number):
		return fmt.Errorf("%s begins with the page of %s: it is another segment", name, h.Address)
	case h.SystemID != systemID:
		return fmt.Errorf("%s belongs to cluster %d, not to %d", name, h.SystemID, systemID)
	case h.Timeline > name.Timeline:
		return fmt.Errorf("%s was written on timeline %d", name, h.Timeline)
	case size != int64(h.SegmentSize):
		return fmt.Errorf("%s is %d bytes long, a segment has %d", name, size, h.SegmentSize)
	}
	return nil
}
