package wal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// chunkSize is how much of a segment is read at once. It divides every segment
// size, and is small enough to stay in a core's cache until it is parsed.
const chunkSize = 256 << 10

// pages hands out whole pages by address, their headers checked. It holds one
// open segment and one chunk of it.
type pages struct {
	ctx context.Context
	src Source
	opt Options

	format   *Format    // of the first page; nil before
	systemID uint64     // of the first long header; 0 before
	timeline TimelineID // of the newest page: later pages must not go back

	seg     Segment // nil when closed
	segNo   SegmentNumber
	buf     []byte
	window  []byte // what is loaded, a part of buf
	address LSN    // of window[0]
}

// fault is the reason why something cannot be read, before it is known what
// follows. io marks errors of the source, which say nothing about the log.
type fault struct {
	at    LSN
	cause error
	io    bool
}

func (p *pages) fail(at LSN, cause error) *fault { return &fault{at: at, cause: cause} }

func (p *pages) failf(at LSN, cause error, format string, args ...any) *fault {
	return &fault{at: at, cause: fmt.Errorf("%w: %s", cause, fmt.Sprintf(format, args...))}
}

func (p *pages) close() error {
	if p.seg == nil {
		return nil
	}
	seg := p.seg
	p.seg, p.window = nil, nil
	return seg.Close()
}

// bytes returns the page at address, which is a multiple of the page size,
// without looking at it. The page is valid until another chunk is loaded.
func (p *pages) bytes(address LSN) ([]byte, *fault) {
	size := LSN(p.opt.PageSize)
	if address >= p.address {
		if off := address - p.address; off+size <= LSN(len(p.window)) {
			return p.window[off : off+size : off+size], nil
		}
	}
	if f := p.load(address); f != nil {
		return nil, f
	}
	off := address - p.address
	if off+size > LSN(len(p.window)) {
		at := min(p.address+LSN(len(p.window)), address+size)
		return nil, p.failf(max(at, address), ErrShortSegment, "it ends at offset %d", p.opt.SegmentSize.Offset(p.address)+uint32(len(p.window)))
	}
	return p.window[off : off+size : off+size], nil
}

// load reads the chunk that holds address. A file that ends early gives a
// short window.
func (p *pages) load(address LSN) *fault {
	if err := p.ctx.Err(); err != nil {
		return &fault{at: address, cause: err, io: true}
	}
	if f := p.open(p.opt.SegmentSize.Number(address)); f != nil {
		f.at = address
		return f
	}
	if p.buf == nil {
		p.buf = make([]byte, chunkSize)
	}
	start := address &^ (chunkSize - 1)
	p.window = nil
	n, err := p.seg.ReadAt(p.buf, int64(p.opt.SegmentSize.Offset(start)))
	if err != nil && !errors.Is(err, io.EOF) && n < len(p.buf) {
		return &fault{at: start + LSN(n), cause: err, io: true}
	}
	p.window, p.address = p.buf[:n], start
	return nil
}

// open makes n the open segment.
func (p *pages) open(n SegmentNumber) *fault {
	if p.seg != nil && p.segNo == n {
		return nil
	}
	if err := p.close(); err != nil {
		return &fault{cause: err, io: true}
	}
	seg, err := p.src.OpenSegment(p.ctx, n)
	if err != nil {
		return &fault{cause: err, io: !errors.Is(err, ErrNoSegment)}
	}
	p.seg, p.segNo = seg, n
	return p.identify()
}

// identify looks at the first page of a segment that was just opened, so that
// another cluster's segment is noticed wherever reading begins in it. A first
// page that is no such page at all is left to whoever reads it.
func (p *pages) identify() *fault {
	var b [LongHeaderSize]byte
	if n, _ := p.seg.ReadAt(b[:], 0); n < len(b) {
		return nil
	}
	h, err := ParsePageHeader(b[:])
	if err != nil || h.Validate() != nil || !h.Long() || h.Address != p.opt.SegmentSize.Start(p.segNo) {
		return nil
	}
	return p.checkLong(h)
}

// page returns the page at address and its header, checked against everything
// known about the log.
func (p *pages) page(address LSN) ([]byte, PageHeader, *fault) {
	b, f := p.bytes(address)
	if f != nil {
		return nil, PageHeader{}, f
	}
	h, err := ParsePageHeader(b)
	if err != nil {
		return nil, h, p.failf(address, ErrPageHeader, "%v", err)
	}
	if f := p.check(address, h, b); f != nil {
		return nil, h, f
	}
	p.timeline = h.Timeline
	return b, h, nil
}

func (p *pages) check(address LSN, h PageHeader, b []byte) *fault {
	if p.format == nil || h.Magic != p.format.PageMagic {
		if f := p.checkMagic(address, h, b); f != nil {
			return f
		}
	}
	if h.Address != address {
		if h.Address < address && h.Address%LSN(p.opt.PageSize) == 0 {
			return p.failf(address, ErrRecycledPage, "its address is %s", h.Address)
		}
		return p.failf(address, ErrPageHeader, "its address is %s", h.Address)
	}
	if h.Info&^pageKnownFlags != 0 {
		return p.failf(address, ErrPageHeader, "flags %04X", uint16(h.Info))
	}
	if first := p.opt.SegmentSize.Offset(address) == 0; first != h.Long() {
		return p.failf(address, ErrPageHeader, "long header on the wrong page")
	}
	if h.Timeline < p.timeline || h.Timeline == 0 {
		return p.failf(address, ErrPageHeader, "timeline %d after timeline %d", h.Timeline, p.timeline)
	}
	if h.Long() {
		if f := p.checkLong(h); f != nil {
			f.at = address
			return f
		}
	}
	return nil
}

// checkMagic settles the version by the first page, and says what is wrong with
// a page of another one.
func (p *pages) checkMagic(address LSN, h PageHeader, b []byte) *fault {
	if allZero(b[:ShortHeaderSize]) {
		return p.fail(address, ErrNoPage)
	}
	format, err := FormatByMagic(h.Magic)
	switch {
	case p.format == nil && err != nil && h.Address == address:
		return p.fail(address, err) // a page of this place: the version is the matter
	case err != nil:
		return p.failf(address, ErrPageHeader, "magic %04X", h.Magic)
	case p.format == nil && (p.opt.Major == 0 || p.opt.Major == format.Major):
		p.format = format
		return nil
	}
	want := p.opt.Major
	if p.format != nil {
		want = p.format.Major
	}
	return p.failf(address, ErrOtherVersion, "PostgreSQL %d, not %d", format.Major, want)
}

// checkLong checks what only the long header says.
func (p *pages) checkLong(h PageHeader) *fault {
	if h.SegmentSize != p.opt.SegmentSize {
		return p.failf(h.Address, ErrPageHeader, "segment size %d, expected %d", h.SegmentSize, p.opt.SegmentSize)
	}
	if h.PageSize != p.opt.PageSize {
		return p.failf(h.Address, ErrPageHeader, "WAL page size %d, expected %d", h.PageSize, p.opt.PageSize)
	}
	if p.systemID == 0 {
		p.systemID = h.SystemID
	}
	if h.SystemID != p.systemID {
		return p.failf(h.Address, ErrOtherCluster, "system identifier %d, expected %d", h.SystemID, p.systemID)
	}
	return nil
}

// goesOn returns the first page behind address, to the end of its segment and
// at the head of the next one, that the server wrote for this very place.
// It tells damage inside the log from the log's end.
func (p *pages) goesOn(address LSN) (LSN, bool) {
	size := LSN(p.opt.PageSize)
	next := p.opt.SegmentSize.End(p.opt.SegmentSize.Number(address))
	for a := address - address%size + size; a <= next; a += size {
		if b, f := p.bytes(a); f != nil {
			if f.io || a == next {
				return 0, false
			}
			a = next - size // the rest of this segment is missing, the next may be there
		} else if p.written(a, b) {
			return a, true
		}
	}
	return 0, false
}

// written reports whether b is a page of this log written for address.
func (p *pages) written(address LSN, b []byte) bool {
	if LSN(binary.LittleEndian.Uint64(b[8:])) != address {
		return false // the common case while zeros or old pages are skipped
	}
	h, err := ParsePageHeader(b)
	if err != nil || h.Validate() != nil || h.Timeline < p.timeline || p.format != nil && h.Magic != p.format.PageMagic {
		return false
	}
	return !h.Long() || p.systemID == 0 || h.SystemID == p.systemID
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
