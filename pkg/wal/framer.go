package wal

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crcResidue is the CRC-32C of any message that is followed by its own
// CRC-32C. A record header ends with the checksum, which covers first what
// follows the header and then the header: running over the header's last four
// bytes as well must give this constant. It saves taking the header apart.
const crcResidue = 0x48674BC7

// headSize holds the headers of any record: 33 block references of at most 27
// bytes, origin, top-level transaction and main data header.
const headSize = 1024

// framer finds the records in the pages: where each begins and ends, put
// together over page boundaries, checksum and back link verified. It does not
// look into them.
type framer struct {
	pages
	end      LSN  // stop before records from here on
	headOnly bool // a record over several pages needs no more than headSize bytes put together

	page    []byte // the current page; nil at a boundary whose page is not read yet
	pageLSN LSN
	off     int // of the next record in page
	prev    LSN // start of the last record; 0 when it is not known
	before  LSN // the last record begins before this, when it is not known
	tli     TimelineID

	start LSN    // of the record found
	raw   []byte // its bytes: all of them, or with headOnly at least the headers
	own   []byte // buffer for records that cross a page

	aborted LSN // start of the record whose rest the current page replaces; 0 for none
	reached bool
	fault   *fault
	partial bool // the fault cuts off a record that had begun
}

func (f *framer) init(p pages, start, end LSN) {
	f.pages = p
	f.setEnd(end)
	f.seek(start)
}

// setEnd sets where to stop. An end right behind a page header is taken for the
// page's boundary: the server names such a place before it writes the page.
func (f *framer) setEnd(end LSN) {
	f.end = f.boundary(end)
	if end == 0 {
		f.end = ^LSN(0)
	}
}

// seek puts the next record at lsn.
func (f *framer) seek(lsn LSN) {
	size := LSN(f.opt.PageSize)
	f.page, f.pageLSN, f.off = nil, lsn&^(size-1), int(lsn&(size-1))
	f.prev, f.before, f.aborted, f.fault, f.partial, f.reached = 0, lsn, 0, nil, false, false
}

// position returns where the next record begins, or the page boundary before it.
func (f *framer) position() LSN { return f.pageLSN + LSN(f.off) }

// boundary returns lsn, or the page boundary before it when only a page header
// lies between. The two mean the same place in the log, and the server names
// it by the boundary.
func (f *framer) boundary(lsn LSN) LSN {
	header := LSN(ShortHeaderSize)
	if off := f.opt.SegmentSize.Offset(lsn); off == LongHeaderSize {
		header = LongHeaderSize
	} else if off == ShortHeaderSize {
		return lsn // inside the long header
	}
	if lsn&LSN(f.opt.PageSize-1) == header {
		return lsn - header
	}
	return lsn
}

// next finds the next record. False means the end of the range (reached) or a fault.
func (f *framer) next() bool {
	if rest := f.page[min(f.off, len(f.page)):]; len(rest) >= RecordHeaderSize {
		total := int(binary.LittleEndian.Uint32(rest))
		start := f.position()
		if total >= RecordHeaderSize && total <= len(rest) && start < f.end && f.prev != 0 {
			raw := rest[:total:total]
			if LSN(binary.LittleEndian.Uint64(raw[8:])) == f.prev && f.format.validRmgr(RMID(raw[17])) && crcMatches(raw) {
				f.start, f.raw = start, raw
				f.accept(f.off + total)
				return true
			}
		}
	}
	return f.nextSlow()
}

// crcMatches checks a whole record's CRC-32C.
func crcMatches(raw []byte) bool {
	crc := crc32.Update(0, castagnoli, raw[RecordHeaderSize:])
	return crc32.Update(crc, castagnoli, raw[:RecordHeaderSize]) == crcResidue
}

// accept ends a record at offset off of the current page.
func (f *framer) accept(off int) {
	f.prev = f.start
	f.tli = f.timeline
	f.off = (off + 7) &^ 7
	if f.off >= len(f.page) {
		f.turn()
	}
	if f.raw[17] == uint8(RmXLOG) && f.raw[16]&infoMask == xlogSwitch {
		f.afterSwitch()
	}
}

// turn goes to the boundary behind the current page.
func (f *framer) turn() {
	f.pageLSN += LSN(f.opt.PageSize)
	f.page, f.off = nil, 0
}

// afterSwitch skips the rest of the segment.
func (f *framer) afterSwitch() {
	size := LSN(f.opt.SegmentSize)
	f.page, f.pageLSN, f.off = nil, (f.position()+size-1)&^(size-1), 0
}

// nextSlow handles everything but a good record inside the current page.
func (f *framer) nextSlow() bool {
	for f.fault == nil && !f.reached {
		if f.position() >= f.end {
			f.reached = true
		} else if f.page == nil {
			f.enter()
		} else if f.record() {
			return true
		}
	}
	return false
}

// enter reads the page at the current position. At a boundary the record
// begins behind the header.
func (f *framer) enter() {
	page, h, fault := f.pages.page(f.pageLSN)
	switch {
	case fault != nil:
		f.fault = fault
		f.fault.at = max(fault.at, f.pageLSN)
	case f.off == 0 && h.Info&PageFirstIsContrecord != 0:
		f.fault = f.failf(f.pageLSN, ErrContinuation, "it begins with the rest of a record, but none is open")
	case f.off == 0:
		f.page, f.off = page, h.Size()
	case f.off < h.Size() || f.off%8 != 0:
		f.fault = f.failf(f.position(), ErrRecordHeader, "no record can begin here")
	default:
		f.page = page
	}
}

// record frames the record at the current position. False without a fault
// means that it is to be tried again somewhere else.
func (f *framer) record() bool {
	f.start = f.position()
	rest := f.page[f.off:]
	total := binary.LittleEndian.Uint32(rest)
	if fault := f.checkLength(total, rest); fault != nil {
		f.fault = fault
		return false
	}
	if len(rest) >= RecordHeaderSize {
		if fault := f.checkHeader(rest); fault != nil {
			return f.broken(fault)
		}
	}
	if int(total) > len(rest) {
		if !f.assemble(total) {
			return false
		}
	} else {
		f.raw = rest[:total:total]
		if !crcMatches(f.raw) {
			return f.broken(f.fail(f.start, ErrCRC))
		}
		f.accept(f.off + int(total))
	}
	return f.aborted == 0 || f.checkOverwrite()
}

// broken ends reading inside a record. It returns false.
func (f *framer) broken(reason *fault) bool {
	f.fault, f.partial = reason, true
	return false
}

// checkOverwrite makes sure that the record found is the one that stands for
// the record cut off before it.
func (f *framer) checkOverwrite() bool {
	const mainAt = RecordHeaderSize + 2 // behind the header of short main data
	want := f.aborted
	f.aborted = 0
	if raw := f.raw; RMID(raw[17]) == RmXLOG && raw[16]&infoMask == xlogOverwriteContrecord &&
		len(raw) >= mainAt+8 && raw[RecordHeaderSize] == idDataShort &&
		LSN(binary.LittleEndian.Uint64(raw[mainAt:])) == want {
		return true
	}
	return f.broken(f.failf(f.start, ErrContinuation, "the record at %s was cut off, but no record stands for it", want))
}

// checkLength tells the end of the log from a record. A page is zeroed before
// it is filled, so behind the last record there are zeros.
func (f *framer) checkLength(total uint32, rest []byte) *fault {
	switch {
	case total == 0 && allZero(rest):
		return f.fail(f.start, ErrNoRecord)
	case total < RecordHeaderSize || total > maxRecordSize:
		f.partial = true
		return f.failf(f.start, ErrRecordHeader, "length %d", total)
	}
	return nil
}

func (f *framer) checkHeader(h []byte) *fault {
	prev := LSN(binary.LittleEndian.Uint64(h[8:]))
	switch {
	case f.prev != 0 && prev != f.prev:
		return f.failf(f.start, ErrPrevLink, "it names %s as the record before, which is %s", prev, f.prev)
	case f.prev == 0 && prev >= f.before:
		return f.failf(f.start, ErrPrevLink, "it names %s as the record before, which must be before %s", prev, f.before)
	}
	if id := RMID(h[17]); !f.format.validRmgr(id) {
		return f.failf(f.start, ErrRecordHeader, "resource manager %d", id)
	}
	return nil
}

// assemble puts together a record that goes on on further pages. The checksum
// runs over the pages as they come, so that with headOnly most bytes are
// never copied.
func (f *framer) assemble(total uint32) bool {
	span, tli, left := f.page[f.off:], f.timeline, total
	crc := f.collect(0, span, true)
	for left -= uint32(len(span)); left > 0; left -= uint32(len(span)) {
		at := f.pageLSN + LSN(f.opt.PageSize)
		page, h, fault := f.pages.page(at)
		if fault == nil && h.Info&PageFirstIsOverwriteContrecord != 0 {
			f.aborted = f.start
			f.turn() // the log goes on at this page as if nothing had begun
			return false
		}
		if fault == nil {
			fault = f.checkContinuation(at, h, left)
		}
		if fault != nil {
			fault.at = max(fault.at, at)
			return f.broken(fault)
		}
		f.pageLSN = at
		span = page[h.Size():]
		span = span[:min(uint32(len(span)), left)]
		crc = f.collect(crc, span, false)
		f.page, f.off = page, h.Size()+len(span)
	}
	if fault := f.checkHeader(f.own); fault != nil {
		return f.broken(fault)
	}
	if crc32.Update(crc, castagnoli, f.own[:RecordHeaderSize]) != crcResidue {
		return f.broken(f.fail(f.start, ErrCRC))
	}
	f.raw = f.own
	f.accept(f.off)
	f.tli = tli
	return true
}

// checkContinuation checks the header of the page at as the continuation of a
// record of which left bytes are missing.
func (f *framer) checkContinuation(at LSN, h PageHeader, left uint32) *fault {
	switch {
	case h.Info&PageFirstIsContrecord == 0:
		return f.failf(at, ErrContinuation, "%d bytes are missing", left)
	case h.Remaining != left:
		return f.failf(at, ErrContinuation, "%d bytes are missing, the page announces %d", left, h.Remaining)
	}
	return nil
}

// collect adds the next bytes of a record to its checksum and, as far as they
// are wanted, to the buffer.
func (f *framer) collect(crc uint32, span []byte, first bool) uint32 {
	body := span
	if first {
		f.own = f.own[:0]
		if f.headOnly && len(span) >= headSize && !needsMain(span) {
			span = span[:headSize]
		}
	}
	have := len(f.own)
	if have < RecordHeaderSize {
		body = body[min(len(body), RecordHeaderSize-have):]
	}
	if first || !f.headOnly || have < headSize || needsMain(f.own) {
		f.own = append(f.own, span...)
	}
	return crc32.Update(crc, castagnoli, body)
}

// findFirst moves to the first record that begins at or behind the current
// position.
func (f *framer) findFirst() {
	wanted := f.position()
	f.findOnPage()
	if start := f.opt.SegmentSize.Start(f.opt.SegmentSize.Number(wanted)); f.fault != nil && errors.Is(f.fault.cause, ErrNoPage) && f.pageLSN > start {
		// Perhaps the segment was ended early: pages behind a switch stay empty.
		f.seek(start)
		f.findOnPage()
	}
	if f.fault != nil {
		return
	}
	end := f.end
	f.end = min(wanted, end)
	for f.next() {
	}
	f.end, f.reached = end, false
}

// findOnPage moves to the first record that begins on the current page or
// behind it, by what the page headers say of continued records. What they say
// is checked as far as can be: the pages of one record must agree, and the
// record before the one found begins on an earlier page.
func (f *framer) findOnPage() {
	f.off = 0
	left := uint32(0) // of the record that fills the pages so far
	for {
		page, h, fault := f.pages.page(f.pageLSN)
		if fault == nil && left != 0 && h.Info&PageFirstIsOverwriteContrecord == 0 {
			fault = f.checkContinuation(f.pageLSN, h, left)
		}
		if fault != nil {
			f.fault = fault
			return
		}
		if h.Info&PageFirstIsContrecord == 0 {
			h.Remaining = 0
		}
		if off := uint64(h.Size()) + (uint64(h.Remaining)+7)&^7; off < uint64(len(page)) {
			f.page, f.off, f.before = page, int(off), f.pageLSN
			return
		}
		room := uint32(len(page) - h.Size())
		left = max(h.Remaining, room) - room
		f.turn()
	}
}

// needsMain reports whether a page map needs the main data of the record whose
// header this is.
func needsMain(h []byte) bool {
	switch id, op := RMID(h[17]), h[16]&infoMask; id {
	case RmXLOG:
		return op != xlogFPI && op != xlogFPIForHint
	case RmTransaction, RmStorage, RmDatabase, RmTablespace, RmRelMap:
		return true
	}
	return false
}
