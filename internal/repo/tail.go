package repo

import (
	"strings"

	"tidemark/pkg/wal"
)

const tailFolder = "pg_wal/"

// TailPath is where a backup holds a segment that nobody has completed: a file
// as long as a segment, zero behind the backup's stop position.
func TailPath(segment string) string { return tailFolder + segment }

// HoldTail notes that the backup holds its last segment itself, in a file of
// size bytes. The segments before it are in the archive.
func (s *Summary) HoldTail(segment string, size int64) {
	s.Tail = segment
	s.ReadSize += size
	first := wal.SegmentSize(s.WALSegmentSize).Number(s.Start.LSN)
	last := s.TailNumber()
	s.WAL = []WALRange{}
	if first < last {
		seg := wal.SegmentSize(s.WALSegmentSize)
		s.WAL = []WALRange{{Timeline: s.Start.Timeline, First: wal.SegmentName(s.Start.Timeline, first, seg), Last: wal.SegmentName(s.Start.Timeline, last-1, seg)}}
	}
}

// TailNumber is the number of the segment that the backup holds itself, where
// Tail names one.
func (s *Summary) TailNumber() wal.SegmentNumber {
	f, _ := wal.ParseFileName(s.Tail)
	n, _ := f.Number(wal.SegmentSize(s.WALSegmentSize))
	return n
}

// pathOrder checks that entries ascend by path. A backup's own segment comes
// last, for it is known when everything else was read.
type pathOrder struct {
	last string
	tail bool
}

// next reports whether an entry may follow.
func (o *pathOrder) next(path string) bool {
	switch {
	case o.tail:
		return false
	case path > o.last:
	case strings.HasPrefix(path, tailFolder):
		o.tail = true
	default:
		return false
	}
	o.last = path
	return true
}
