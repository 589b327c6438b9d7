package wal

import "fmt"

// SegmentNumber counts segments from the beginning of the log, which depends
// on the segment size.
type SegmentNumber uint64

// SegmentSize is the size of a WAL segment file in bytes. It is fixed when a
// cluster is made (initdb --wal-segsize) and written in pg_control and in the
// first page header of every segment.
type SegmentSize uint32

// The bounds that initdb accepts, and the default.
const (
	MinSegmentSize     SegmentSize = 1 << 20
	MaxSegmentSize     SegmentSize = 1 << 30
	DefaultSegmentSize SegmentSize = 16 << 20
)

// Valid reports whether the server accepts the size: a power of two between
// 1 MB and 1 GB.
func (s SegmentSize) Valid() bool {
	return s >= MinSegmentSize && s <= MaxSegmentSize && s&(s-1) == 0
}

// Validate returns an error that names the size when it is not Valid.
func (s SegmentSize) Validate() error {
	if s.Valid() {
		return nil
	}
	return fmt.Errorf("invalid WAL segment size %d: want a power of two from 1 MB to 1 GB", uint32(s))
}

// Number returns the segment that holds the byte at l.
func (s SegmentSize) Number(l LSN) SegmentNumber { return SegmentNumber(uint64(l) / uint64(s)) }

// NumberBefore returns the segment that holds the byte before l. For the end of
// a range this is the last segment of the range, where Number would name the
// next one on a boundary. For LSN 0 it is segment 0.
func (s SegmentSize) NumberBefore(l LSN) SegmentNumber {
	if l == 0 {
		return 0
	}
	return s.Number(l - 1)
}

// Start returns the position of the first byte of segment n.
func (s SegmentSize) Start(n SegmentNumber) LSN { return LSN(uint64(n) * uint64(s)) }

// End returns the position after the last byte of segment n.
func (s SegmentSize) End(n SegmentNumber) LSN { return s.Start(n + 1) }

// Offset returns the position of l inside its segment.
func (s SegmentSize) Offset(l LSN) uint32 { return uint32(uint64(l) & uint64(s-1)) }

// perID is the number of segments in 4 GB of log, what one value of the middle
// part of a file name covers.
func (s SegmentSize) perID() uint64 { return (1 << 32) / uint64(s) }
