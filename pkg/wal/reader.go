package wal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
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
	// 0 reads to the end of the log. It may lie behind the header of a page that
	// is not written yet, as pg_current_wal_insert_lsn() does on an idle server.
	End LSN

	SegmentSize SegmentSize // required
	PageSize    uint32      // XLOG_BLCKSZ; 0 means DefaultPageSize
	BlockSize   uint32      // BLCKSZ, to check page images; 0 means DefaultBlockSize
	SystemID    uint64      // when set, segments of another cluster are corruption
	Major       int         // when set, pages of another major version are corruption
}

// DefaultBlockSize is the usual size of a relation's block (BLCKSZ).
const DefaultBlockSize = 8192

// withDefaults checks the options and fills in what was left out.
func (o Options) withDefaults() (Options, error) {
	if err := o.SegmentSize.Validate(); err != nil {
		return o, err
	}
	if o.PageSize == 0 {
		o.PageSize = DefaultPageSize
	}
	if o.BlockSize == 0 {
		o.BlockSize = DefaultBlockSize
	}
	if !validPageSize(o.PageSize) {
		return o, fmt.Errorf("invalid WAL page size %d", o.PageSize)
	}
	if o.BlockSize < 1024 || o.BlockSize > 32768 || o.BlockSize&(o.BlockSize-1) != 0 {
		return o, fmt.Errorf("invalid block size %d", o.BlockSize)
	}
	if o.Major != 0 {
		if _, err := FormatByMajor(o.Major); err != nil {
			return o, err
		}
	}
	if o.End != 0 && o.End < o.Start {
		return o, fmt.Errorf("the end of the range, %s, lies before its start, %s", o.End, o.Start)
	}
	return o, nil
}

// Reader reads records forward. It allocates nothing per record. It is not safe
// for use by several goroutines at once.
//
//	r, err := wal.NewReader(ctx, source, opts)
//	...
//	defer r.Close()
//	for r.Next() {
//		use(r.Record())
//	}
//	if err := r.Err(); err != nil { ... }
type Reader struct {
	framer
	rec     Record
	begun   bool
	stopped bool
	why     error // of stopped; nil at Options.End
}

// NewReader checks the options and returns a reader. It opens nothing yet.
func NewReader(ctx context.Context, src Source, opt Options) (*Reader, error) {
	opt, err := opt.withDefaults()
	if err != nil {
		return nil, err
	}
	r := &Reader{}
	r.init(pages{ctx: ctx, src: src, opt: opt, systemID: opt.SystemID}, opt.Start, opt.End)
	return r, nil
}

// Next advances to the next record and reports whether there is one.
func (r *Reader) Next() bool {
	return r.advance() && r.parse()
}

// advance frames the next record without parsing it.
func (r *Reader) advance() bool {
	if r.stopped {
		return false
	}
	if !r.begun {
		r.begun = true
		if r.opt.FindFirst {
			r.findFirst()
		}
	}
	if r.fault == nil && r.next() {
		return true
	}
	r.stop()
	return false
}

// parse fills in the record. One whose checksum matches and whose parts do not
// add up was written so: this cannot be the log's torn end.
func (r *Reader) parse() bool {
	r.rec.format = r.format
	if err := r.rec.parse(r.raw, r.opt.BlockSize); err != nil {
		r.corrupt(fmt.Errorf("%w: %w", ErrRecordContent, err))
		return false
	}
	r.rec.LSN, r.rec.End, r.rec.Timeline = r.start, r.boundary(r.position()), r.tli
	return true
}

// corrupt stops at the current record, which was framed but makes no sense.
func (r *Reader) corrupt(cause error) {
	s := r.newStop(r.start, r.start, cause)
	s.Last = LSN(binary.LittleEndian.Uint64(r.raw[8:])) // r.prev is this record already
	r.stopped, r.why = true, &Corruption{Stop: s, Resumes: r.position()}
}

// Record returns the current record, valid until the next call of Next or ReadAt.
func (r *Reader) Record() *Record { return &r.rec }

// Err returns why Next returned false, when that is anything but a clean end: a
// *TornTail, a *Corruption, or an error of the source. It is nil at the end of
// the log and at Options.End.
func (r *Reader) Err() error {
	var end *EndOfLog
	if errors.As(r.why, &end) {
		return nil
	}
	return r.why
}

// End returns what ended the log: *EndOfLog, *TornTail or *Corruption (or an
// error of the source, or ErrUnknownVersion). It is nil while records follow and
// when reading stopped at Options.End.
func (r *Reader) End() error { return r.why }

// Position returns where the next record would begin: the end of the last one.
// Of the two names of a place on a page boundary, before the page's header and
// behind it, it is the one that Options.End uses, and otherwise the first.
func (r *Reader) Position() LSN {
	p := r.boundary(r.position())
	if end := r.opt.End; end != 0 && p == r.boundary(end) {
		return end
	}
	return p
}

// Format returns the format of the log, nil before the first page was read.
func (r *Reader) Format() *Format { return r.format }

// SystemID returns the cluster's system identifier, 0 before one was seen.
func (r *Reader) SystemID() uint64 { return r.systemID }

// ReadAt reads the record that begins at lsn, or behind the page header when
// lsn is a page boundary, wherever Options.End lies. Next then goes on behind
// it. Errors are those of End, or ErrNoSegment when the record's segment is missing.
func (r *Reader) ReadAt(lsn LSN) (*Record, error) {
	end := r.end
	r.end = ^LSN(0)
	defer func() { r.end = end }()

	r.seek(lsn)
	r.timeline = 0 // pages before the last one may be of an older timeline
	r.begun, r.stopped, r.why = true, false, nil
	if r.Next() {
		return &r.rec, nil
	}
	if r.fault != nil && !r.partial && errors.Is(r.fault.cause, ErrNoSegment) {
		return nil, fmt.Errorf("read WAL record at %s: %w", lsn, r.fault.cause)
	}
	return nil, r.why
}

// Close closes the open segment.
func (r *Reader) Close() error { return r.close() }

// stop settles what the fault means.
func (r *Reader) stop() {
	r.stopped = true
	if r.fault == nil {
		return // at Options.End
	}
	end, cause := r.position(), r.fault.cause
	if r.partial {
		end = r.start
	}
	if r.fault.io || errors.Is(cause, ErrUnknownVersion) {
		r.why = fmt.Errorf("read WAL at %s: %w", r.fault.at, cause)
		return
	}
	s := r.newStop(end, r.fault.at, cause)
	resumes, more := r.resumes(end)
	switch {
	case more || errors.Is(cause, ErrOtherCluster) || errors.Is(cause, ErrOtherVersion):
		r.why = &Corruption{Stop: s, Resumes: resumes}
	case r.partial || errors.Is(cause, ErrPageHeader):
		r.why = &TornTail{Stop: s}
	default:
		r.why = &EndOfLog{Stop: s}
	}
}

func (r *Reader) newStop(end, at LSN, cause error) Stop {
	size := r.opt.SegmentSize
	return Stop{
		End: r.boundary(end), Last: r.prev, Timeline: r.timeline,
		Fault: at, Segment: size.Number(at), Offset: size.Offset(at), Cause: cause,
	}
}

// resumes looks for the log behind the place where it could not be read.
func (r *Reader) resumes(end LSN) (LSN, bool) {
	at := r.fault.at
	if errors.Is(r.fault.cause, ErrContinuation) {
		return at, true // the page is in place, but does not fit
	}
	if at == end {
		// The fault is in the record itself: look behind it. Of a record over
		// several pages the last page may be there in part, which proves nothing.
		at = max(r.position().Align(), end+8)
		if lsn, ok := r.recordFrom(at); ok {
			return lsn, true
		}
		at--
	}
	return r.goesOn(at)
}

// recordFrom looks for a whole record from lsn to the end of its page. The
// record must point back to the last good one or behind it, which the remains
// of an older segment do not.
func (r *Reader) recordFrom(lsn LSN) (LSN, bool) {
	size := LSN(r.opt.PageSize)
	start := lsn &^ (size - 1)
	if lsn == start || r.format == nil {
		return 0, false
	}
	page, f := r.bytes(start)
	if f != nil {
		return 0, false
	}
	for off := int(lsn - start); off+RecordHeaderSize <= len(page); off += 8 {
		total := binary.LittleEndian.Uint32(page[off:])
		if total < RecordHeaderSize || int(total) > len(page)-off {
			continue
		}
		raw := page[off : off+int(total)]
		prev := LSN(binary.LittleEndian.Uint64(raw[8:]))
		if prev >= r.prev && prev < start+LSN(off) && r.format.validRmgr(RMID(raw[17])) && crcMatches(raw) {
			return start + LSN(off), true
		}
	}
	return 0, false
}

// WalkBack calls fn with the record at from, or behind the page header when from
// is a page boundary, and then with each record before it, following xl_prev,
// until fn returns false or there is none. Where a segment is missing the
// error matches ErrNoSegment.
func WalkBack(ctx context.Context, src Source, opt Options, from LSN, fn func(*Record) (bool, error)) error {
	r, err := NewReader(ctx, src, opt)
	if err != nil {
		return err
	}
	defer r.Close()
	for lsn := from; lsn != 0; {
		rec, err := r.ReadAt(lsn)
		if err != nil {
			return err
		}
		if more, err := fn(rec); err != nil || !more {
			return err
		}
		lsn = rec.Prev
	}
	return nil
}

// FirstRecord returns the position of the first record that begins at or after lsn.
func FirstRecord(ctx context.Context, src Source, opt Options, lsn LSN) (LSN, error) {
	opt.Start, opt.End, opt.FindFirst = lsn, 0, true
	r, err := NewReader(ctx, src, opt)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	if !r.Next() {
		return 0, r.End()
	}
	return r.Record().LSN, nil
}
