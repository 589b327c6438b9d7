package volume

import (
	"encoding/binary"
)

// What a primary and its standby may differ in on a page of the same LSN,
// because the WAL does not carry it: the checksum (it follows the rest), hint
// bits, hints about free line pointers and dead items, the hole between the
// line pointers and the tuples, and a few fields of the access methods
// (access/common/bufmask.c and the *_mask functions of each access method).
//
// An access method is recognised by its special area at the page's end; the
// last two bytes of most hold a number for that purpose:
//
//	special bytes  last two   page of
//	0              -          a heap
//	16             < 0xFF80   a b-tree (its vacuum cycle id)
//	16             0xFF80     a hash index
//	16             0xFF81     a GiST index
//	8              0xFF82     an SP-GiST index
//	8              0xF091-93  a BRIN index
//	8              (0x1717 as four bytes)  a sequence
//	8              other      a GIN index, or one of an extension

// Part of the format, do not change.
const (
	hashPageID     = 0xFF80
	gistPageID     = 0xFF81
	spgistPageID   = 0xFF82
	brinMeta       = 0xF091
	brinRegular    = 0xF093
	sequenceMagic  = 0x1717
	itemIDSize     = 4
	itemNormal     = 1
	itemDead       = 3
	heapHeaderSize = TupleHeaderSize

	heapComboCID      = 0x0020
	heapXminHints     = HeapXminCommitted | HeapXminInvalid
	heapXmaxHints     = HeapXmaxCommitted | HeapXmaxInvalid
	heapSpeculative   = 0xFFFE // the offset in t_ctid of an insertion that is not confirmed
	btreeDeleted      = 0x0004
	btreeLeaf         = 0x0001
	btreeSplitEnd     = 0x0020
	btreeHasGarbage   = 0x0040
	hashOverflow      = 0x0001
	hashBucket        = 0x0002
	hashHasDead       = 0x0080
	ginDeleted        = 0x0004
	gistLeaf          = 0x0001
	spgistMeta        = 0x0001
	gistFollowRight   = 0x0008
	gistHasGarbage    = 0x0010
	brinEvacuate      = 0x0001
	pageHintFlags     = 0x0007
	pageOffsetLower   = 12
	pageOffsetFlags   = 10
	pageOffsetPrune   = 20
	tupleOffCID       = 8
	tupleOffCtid      = 12
	tupleOffInfomask  = 20
	tupleOffHeaderLen = 22
)

// le is the byte order of a page.
var le = binary.LittleEndian

// MaskPage overwrites in a page of a main fork what may legitimately differ
// between a primary and its standby. block is the page's number in its fork.
// After it, two pages of the same LSN are equal, or one of them is wrong. A
// page whose header no server wrote is left as it is.
func MaskPage(page []byte, block uint32) {
	h := ParsePageHeader(page)
	if h.Validate(len(page)) != nil {
		return
	}
	clear(page[checksumOffset : checksumOffset+2])
	le.PutUint16(page[pageOffsetFlags:], h.Flags&^pageHintFlags)
	clear(page[pageOffsetPrune : pageOffsetPrune+4])
	m := pageMask{page: page, header: h, block: block, special: page[h.Special:]}
	m.byMethod()
}

// IsEmptyPage tells whether a page is zero, or was initialized and never used:
// what the extension of a relation leaves, on which the WAL is silent.
func IsEmptyPage(page []byte) bool {
	if IsZero(page) {
		return true
	}
	h := ParsePageHeader(page)
	return h.LSN == 0 && h.Validate(len(page)) == nil && h.Lower == PageHeaderSize && h.Upper == h.Special && IsZero(page[h.Special:])
}

type pageMask struct {
	page    []byte
	header  PageHeader
	block   uint32
	special []byte
}

func (m *pageMask) byMethod() {
	n := len(m.special)
	if n < 2 {
		m.hole()
		m.heap()
		return
	}
	id := le.Uint16(m.special[n-2:])
	switch {
	case n == 16 && id == hashPageID:
		m.hash()
	case n == 16 && id == gistPageID:
		m.gist()
	case n == 16 && id < hashPageID:
		m.btree()
	case n == 8 && le.Uint32(m.special) == sequenceMagic:
		m.hole()
		m.sequence()
	case n == 8 && id >= brinMeta && id <= brinRegular:
		m.knownHole()
		m.clearFlags(4, brinEvacuate)
	case n == 8 && id == spgistPageID:
		m.knownHole()
		m.spgistCache()
	case n == 8:
		m.gin()
	default:
		m.knownHole()
	}
}

// hole clears what lies between the line pointers and the tuples.
func (m *pageMask) hole() { clear(m.page[m.header.Lower:m.header.Upper]) }

// knownHole is hole for pages that may hold data there while their header
// does not say so.
func (m *pageMask) knownHole() {
	if m.header.Lower > PageHeaderSize {
		m.hole()
	}
}

// content clears all that a deleted page still holds: replay may leave it empty.
func (m *pageMask) content() {
	clear(m.page[pageOffsetLower : pageOffsetLower+4]) // and upper
	clear(m.page[PageHeaderSize:])
}

// clearFlags clears bits of a 16 bit field of the special area.
func (m *pageMask) clearFlags(offset int, bits uint16) {
	le.PutUint16(m.special[offset:], le.Uint16(m.special[offset:])&^bits)
}

// deadItems takes the hint that an index item is dead back.
func (m *pageMask) deadItems() {
	for at := PageHeaderSize; at+itemIDSize <= int(m.header.Lower); at += itemIDSize {
		id := le.Uint32(m.page[at:])
		if id>>15&3 == itemDead && id>>17 > 0 {
			le.PutUint32(m.page[at:], id&^(3<<15)|itemNormal<<15)
		}
	}
}

// tuples calls f for every tuple with a header, with its number from 1 on.
func (m *pageMask) tuples(f func(number int, tuple []byte)) {
	number := 0
	for at := PageHeaderSize; at+itemIDSize <= int(m.header.Lower); at += itemIDSize {
		number++
		id := le.Uint32(m.page[at:])
		offset, flags, length := int(id&0x7FFF), id>>15&3, int(id>>17)
		if flags != itemNormal || length < heapHeaderSize || offset < int(m.header.Upper) || offset+length > int(m.header.Special) {
			continue
		}
		// The padding to the next tuple's alignment is nobody's.
		clear(m.page[offset+length : min(offset+(length+7)&^7, int(m.header.Special))])
		f(number, m.page[offset:offset+length])
	}
}

// heap clears hint bits and command ids.
func (m *pageMask) heap() {
	m.tuples(func(number int, t []byte) {
		info := le.Uint16(t[tupleOffInfomask:])
		if info&heapXminHints != heapXminHints { // both: frozen, which the WAL tells
			info &^= heapXminHints
		}
		le.PutUint16(t[tupleOffInfomask:], info&^(heapXmaxHints|heapComboCID))
		clear(t[tupleOffCID : tupleOffCID+4])
		if ctid := t[tupleOffCtid:]; le.Uint16(ctid[4:]) == heapSpeculative { // replay lets it point to itself
			le.PutUint16(ctid[0:], uint16(m.block>>16))
			le.PutUint16(ctid[2:], uint16(m.block))
			le.PutUint16(ctid[4:], uint16(number))
		}
	})
}

// sequence clears a sequence's values: the WAL runs ahead of them.
func (m *pageMask) sequence() {
	m.heap()
	m.tuples(func(_ int, t []byte) {
		clear(t[min(int(t[tupleOffHeaderLen]), len(t)):])
	})
}

func (m *pageMask) btree() {
	flags := le.Uint16(m.special[12:])
	m.hole()
	switch {
	case flags&btreeDeleted != 0:
		m.content()
		return
	case flags&btreeLeaf != 0:
		m.deadItems()
	}
	m.clearFlags(12, btreeSplitEnd|btreeHasGarbage)
	clear(m.special[14:16]) // vacuum's cycle id
}

func (m *pageMask) hash() {
	flags := le.Uint16(m.special[12:])
	m.hole()
	if flags&(hashOverflow|hashBucket) != 0 {
		m.deadItems()
	}
	m.clearFlags(12, hashHasDead)
}

func (m *pageMask) gist() {
	flags := le.Uint16(m.special[12:])
	m.hole()
	if flags&gistLeaf != 0 {
		m.deadItems()
	}
	clear(m.special[0:8]) // the number of the last split, an LSN of its own kind
	m.clearFlags(12, gistFollowRight|gistHasGarbage)
}

// spgistCache clears the metapage's list of pages with free space, a mere cache.
func (m *pageMask) spgistCache() {
	const begin, size = PageHeaderSize + 4, 64
	if le.Uint16(m.special)&spgistMeta != 0 {
		clear(m.page[begin : begin+size])
	}
}

func (m *pageMask) gin() {
	if le.Uint16(m.special[6:])&ginDeleted != 0 {
		m.content()
		return
	}
	m.knownHole()
}

// StaleVisibility returns how many bits of a visibility map's page are set at a
// standby and not at its primary: each would let a scan skip a heap page that
// it must look at. Bits that only the primary has are harmless.
func StaleVisibility(standby, primary []byte) int {
	bits := 0
	for i := PageHeaderSize; i < len(standby); i++ {
		var there byte
		if i < len(primary) {
			there = primary[i]
		}
		for b := standby[i] &^ there; b != 0; b &= b - 1 {
			bits++
		}
	}
	return bits
}
