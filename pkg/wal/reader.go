package wal

import (
	"context"
	"errors"
)

// Options tell a Reader where and what to read.
type Options struct {
	// Start is where reading begins: the start of a record, or a page boundary
	// in front of one.
	Start LSN
	// FindFirst allows Start to be any position; reading begins at the first
	// record that starts at or after it.
	FindFirst bool
	// End stops reading before the first record that starts at or after it;
	// 0 reads to the end of the log.
	End LSN

	SegmentSize SegmentSize // required
	PageSize    uint32      // XLOG_BLCKSZ; 0 means DefaultPageSize
	BlockSize   uint32      // BLCKSZ, to check page images; 0 means 8192
	SystemID    uint64      // when set, segments of another cluster are corruption
	Major       int         // when set, pages of another major version are corruption
}

// Reader reads records forward. It allocates nothing per record.
//
//	r, err := wal.NewReader(ctx, source, opts)
//	for r.Next() {
//		use(r.Record())
//	}
//	if err := r.Err(); err != nil { ... }
//	end := r.End()
type Reader struct{}

// NewReader checks the options and returns a reader. It opens nothing yet.
func NewReader(ctx context.Context, src Source, opt Options) (*Reader, error) {
	return nil, errors.New("not implemented")
}

// Next advances to the next record and reports whether there is one.
func (r *Reader) Next() bool { return false }

// Record returns the current record, valid until the next call of Next or ReadAt.
func (r *Reader) Record() *Record { return nil }

// Err returns why Next returned false, when that is anything but a clean end: a
// *TornTail, a *Corruption, or an error of the source. It is nil at the end of
// the log and at Options.End.
func (r *Reader) Err() error { return nil }

// End returns what ended the log: *EndOfLog, *TornTail or *Corruption (or an
// error of the source). It is nil while records follow and when reading
// stopped at Options.End.
func (r *Reader) End() error { return nil }

// Position returns where the next record would begin: the end of the last one.
func (r *Reader) Position() LSN { return 0 }

// ReadAt reads the record that begins at lsn, or behind the page header when lsn
// is a page boundary. Next then goes on behind it. Errors are those of End.
func (r *Reader) ReadAt(lsn LSN) (*Record, error) { return nil, errors.New("not implemented") }

// Close closes the open segment.
func (r *Reader) Close() error { return nil }

// WalkBack calls fn with the record at from and then with each one before it,
// following xl_prev, until fn returns false or there is none.
func WalkBack(ctx context.Context, src Source, opt Options, from LSN, fn func(*Record) (bool, error)) error {
	return errors.New("not implemented")
}

// FirstRecord returns the position of the first record that begins at or after lsn.
func FirstRecord(ctx context.Context, src Source, opt Options, lsn LSN) (LSN, error) {
	return 0, errors.New("not implemented")
}

// Decode takes apart a record that changes more than the blocks it refers to.
// It returns nil for all others, and an error when the main data is malformed.
func Decode(r *Record) (Detail, error) { return nil, errors.New("not implemented") }
