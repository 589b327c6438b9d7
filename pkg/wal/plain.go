package wal

import "encoding/binary"

// plainRecord holds the block references of a record that does nothing beyond
// them. Nearly all records are of this kind, and reading them is where the scan
// of a log of small records spends its time; so they are read in one pass that
// keeps only what a page map needs. Whatever is unusual is left to
// Record.parse, which knows all forms and says what is wrong.
type plainRecord struct {
	refs   [4]plainRef // few records have more
	n      int
	images int
	data   int // bytes of images and data announced so far
}

type plainRef struct {
	file  RelFile
	block uint32
}

// readPlain takes in the plain records that follow on the current page. It does
// what Reader.advance and addPlain do in turn, with the position in registers,
// and leaves everything but the usual to them: the first record of a page, one
// that crosses into the next, the end of the range, and whatever is wrong.
func (m *Map) readPlain(r *Reader) {
	page, off, prev := r.page, r.off, r.prev
	if page == nil || prev == 0 || r.fault != nil || r.aborted != 0 || r.end <= r.pageLSN {
		return
	}
	limit := len(page) - RecordHeaderSize // no record begins behind
	if left := r.end - r.pageLSN; left <= LSN(limit) {
		limit = int(left) - 1
	}
	n := uint64(0)
	for off <= limit {
		rest := page[off:]
		total := int(binary.LittleEndian.Uint32(rest))
		if total < RecordHeaderSize || total >= len(rest) {
			break
		}
		raw := rest[:total:total]
		if id := RMID(raw[17]); id == RmXLOG || id > RmMaxBuiltin || LSN(binary.LittleEndian.Uint64(raw[8:])) != prev ||
			!crcMatches(raw) || !m.addPlain(raw, r.format, r.opt.BlockSize) {
			break
		}
		n++
		prev = r.pageLSN + LSN(off)
		off = (off + total + 7) &^ 7
	}
	if n == 0 {
		return
	}
	m.Records += n
	r.prev, r.off, r.tli = prev, off, r.timeline
	if off >= len(page) {
		r.turn()
	}
}

// addPlain takes in the record if it is a plain one. Otherwise it has done
// nothing and returns false. raw holds at least the record's headers.
func (m *Map) addPlain(raw []byte, format *Format, blockSize uint32) bool {
	total := binary.LittleEndian.Uint32(raw)
	if id := RMID(raw[17]); id <= RmRelMap || raw[16]&infoSpecialUpdate != 0 {
		if id != RmTransaction || !plainTransaction(raw) {
			return false
		}
		m.Bytes += uint64(total)
		return true
	}
	p := &m.plain
	if !p.read(raw, int(total), format, blockSize) {
		return false
	}
	for i := range p.refs[:p.n] {
		ref := &p.refs[i]
		m.file(ref.file).Blocks.add(ref.block)
	}
	m.Bytes += uint64(total)
	m.Refs += uint64(p.n)
	m.Images += uint64(p.images)
	return true
}

// plainTransaction reports whether a Transaction record removes no files: it
// has nothing but main data, with no extra parts or no list of files.
func plainTransaction(raw []byte) bool {
	const mainAt = RecordHeaderSize + 2
	if len(raw) < mainAt+12 || raw[RecordHeaderSize] != idDataShort || len(raw) != mainAt+int(raw[RecordHeaderSize+1]) {
		return false
	}
	switch raw[16] & xactOpMask {
	case xactCommit, xactAbort, xactCommitPrepared, xactAbortPrepared:
		return raw[16]&xactHasInfo == 0 || binary.LittleEndian.Uint32(raw[mainAt+8:])&xactHasRelFiles == 0
	}
	return false
}

// read collects the block references, if there are only such and main data.
func (p *plainRecord) read(raw []byte, total int, format *Format, blockSize uint32) bool {
	p.n, p.images, p.data = 0, 0, 0
	pos, last := RecordHeaderSize, -1
	for total-pos > p.data {
		if pos+5 > len(raw) {
			return pos+2 == len(raw) && raw[pos] == idDataShort && raw[pos+1] == 0 && p.data == 0
		}
		id := int(raw[pos])
		switch {
		case id == idDataShort:
			return total-pos-2 == p.data+int(raw[pos+1])
		case id == idDataLong:
			return uint64(total-pos-5) == uint64(p.data)+uint64(binary.LittleEndian.Uint32(raw[pos+1:]))
		case id > maxBlockID || id <= last || p.n == len(p.refs):
			return false
		}
		size := p.block(raw[pos:], format, blockSize)
		if size == 0 {
			return false
		}
		pos += size
		last = id
	}
	return total-pos == p.data
}

// block reads one block reference and returns the size of its headers, or 0
// when it is not a usual one.
func (p *plainRecord) block(h []byte, format *Format, blockSize uint32) int {
	const location = 12 + 4 // RelFileLocator and block number
	flags, dataLen, at := h[1], int(binary.LittleEndian.Uint16(h[2:])), 4
	if flags&blockForkMask > uint8(MaxFork) || (flags&blockHasData != 0) != (dataLen != 0) {
		return 0
	}
	if flags&blockHasImage != 0 {
		n := plainImage(h[at:], format, blockSize)
		if n == 0 {
			return 0
		}
		at += 5
		p.images++
		p.data += n
	}
	ref := &p.refs[p.n]
	if flags&blockSameRel != 0 {
		if p.n == 0 || len(h) < at+4 {
			return 0
		}
		ref.file = p.refs[p.n-1].file
		at -= location - 4 // only the block number follows
	} else {
		if len(h) < at+location {
			return 0
		}
		ref.file.Tablespace = binary.LittleEndian.Uint32(h[at:])
		ref.file.Database = binary.LittleEndian.Uint32(h[at+4:])
		ref.file.Relation = binary.LittleEndian.Uint32(h[at+8:])
	}
	ref.file.Fork = Fork(flags & blockForkMask)
	ref.block = binary.LittleEndian.Uint32(h[at+location-4:])
	p.n++
	p.data += dataLen
	return at + location
}

// plainImage returns the length of an uncompressed page image, by the rules
// that parser.checkImage applies, or 0.
func plainImage(h []byte, format *Format, blockSize uint32) int {
	if len(h) < 5 || h[4]&format.imageBits.compressed != 0 {
		return 0
	}
	length, holeAt := uint32(binary.LittleEndian.Uint16(h)), uint32(binary.LittleEndian.Uint16(h[2:]))
	if h[4]&format.imageBits.hole == 0 {
		if length != blockSize || holeAt != 0 {
			return 0
		}
	} else if length >= blockSize || holeAt == 0 || holeAt > length {
		return 0 // the hole must end inside the page: holeAt + (blockSize - length) <= blockSize
	}
	return int(length)
}
