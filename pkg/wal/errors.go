package wal

import (
	"errors"
	"fmt"
)

var (
	// ErrNoSegment is returned by a Source that does not have a segment, and
	// is the cause of the end that a Reader reports for it.
	ErrNoSegment = errors.New("WAL segment not found")

	// ErrUnknownVersion is returned when a page, or a caller, names a version
	// of PostgreSQL that is not in Formats.
	ErrUnknownVersion = errors.New("unknown WAL format version")
)

// Causes that a Stop may carry; match them with errors.Is.
var (
	ErrNoRecord      = errors.New("no record follows")                    // zeros where a record would begin
	ErrNoPage        = errors.New("page was never written")               // a page of zeros
	ErrRecycledPage  = errors.New("page belongs to an older segment")     // left over in a recycled file
	ErrShortSegment  = errors.New("segment file is too short")            // the file ends before the page
	ErrPageHeader    = errors.New("invalid page header")                  // anything else wrong with a header
	ErrOtherCluster  = errors.New("segment belongs to another cluster")   // system identifier differs
	ErrOtherVersion  = errors.New("page is of another PostgreSQL")        // magic differs from the first page's
	ErrRecordHeader  = errors.New("invalid record header")                // impossible length or resource manager
	ErrPrevLink      = errors.New("record does not follow its neighbour") // xl_prev is not the last record
	ErrCRC           = errors.New("record checksum does not match")       // CRC32C
	ErrContinuation  = errors.New("record is not continued on the page")  // flag or remaining length disagree
	ErrRecordContent = errors.New("malformed record")                     // CRC matches, but the parts do not add up
)

// Stop says where and why reading ended.
type Stop struct {
	End      LSN           // the log is whole up to here: where the missing or unreadable record begins
	Last     LSN           // start of the last whole record before End; 0 if it is not known
	Timeline TimelineID    // of the last page read
	Fault    LSN           // the byte at which the reason was found
	Segment  SegmentNumber // of Fault
	Offset   uint32        // of Fault inside its segment
	Cause    error
}

// EndOfLog is the clean end: every record is whole, and none begins at End.
type EndOfLog struct{ Stop }

// TornTail is what a crash leaves: a record begins at End but was not written
// to its end, and nothing valid follows. The server ends recovery there, too.
type TornTail struct{ Stop }

// Corruption is damage inside the log: what stands at End cannot be read
// although the log goes on behind it, or is of another cluster or version.
type Corruption struct {
	Stop
	Resumes LSN // a page or record behind the damage that is in its place; 0 when unknown
}

func (s *Stop) describe(what string) string {
	at := ""
	if s.Fault != s.End {
		at = fmt.Sprintf(", seen at %s", s.Fault)
	}
	return fmt.Sprintf("%s at %s%s (segment %d, offset %d): %v", what, s.End, at, s.Segment, s.Offset, s.Cause)
}

func (e *EndOfLog) Error() string { return e.describe("end of WAL") }
func (e *TornTail) Error() string { return e.describe("incomplete last WAL record") }
func (e *Corruption) Error() string {
	s := e.describe("corrupt WAL")
	if e.Resumes != 0 {
		s += fmt.Sprintf("; the log goes on at %s", e.Resumes)
	}
	return s
}

// Unwrap returns the cause.
func (e *EndOfLog) Unwrap() error { return e.Cause }

// Unwrap returns the cause.
func (e *TornTail) Unwrap() error { return e.Cause }

// Unwrap returns the cause.
func (e *Corruption) Unwrap() error { return e.Cause }
