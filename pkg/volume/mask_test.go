package volume

import (
	"bytes"
	"testing"
)

// maskedPage is a page of 8192 bytes with one item of 40 bytes: an index tuple
// or a heap tuple with a header of 24, as special and last say.
func maskedPage(special []byte) []byte {
	const size = 8192
	page := make([]byte, size)
	start := size - len(special)
	le.PutUint32(page[4:], 0x1000) // LSN 0/1000
	le.PutUint16(page[12:], PageHeaderSize+itemIDSize)
	le.PutUint16(page[14:], uint16(start-40))
	le.PutUint16(page[16:], uint16(start))
	le.PutUint16(page[18:], size|pageLayoutVersion)
	le.PutUint32(page[PageHeaderSize:], uint32(start-40)|itemNormal<<15|37<<17)
	for i := start - 40; i < start-3; i++ {
		page[i] = byte(i)
	}
	page[start-40+tupleOffHeaderLen] = 24
	le.PutUint16(page[start-40+tupleOffInfomask:], 0)
	copy(page[start:], special)
	return page
}

func special(n int, put func(s []byte)) []byte {
	s := make([]byte, n)
	put(s)
	return s
}

// The special areas of pages of each access method.
var (
	noSpecial   []byte
	ofBtree     = special(16, func(s []byte) { le.PutUint16(s[12:], btreeLeaf) })
	ofBtreeTop  = special(16, func(s []byte) { le.PutUint16(s[12:], 0) })
	ofBtreeDel  = special(16, func(s []byte) { le.PutUint16(s[12:], btreeLeaf|btreeDeleted) })
	ofHash      = special(16, func(s []byte) { le.PutUint16(s[12:], hashBucket); le.PutUint16(s[14:], hashPageID) })
	ofGist      = special(16, func(s []byte) { le.PutUint16(s[12:], gistLeaf); le.PutUint16(s[14:], gistPageID) })
	ofSpgist    = special(8, func(s []byte) { le.PutUint16(s[6:], spgistPageID) })
	ofSpgistTop = special(8, func(s []byte) { le.PutUint16(s, spgistMeta); le.PutUint16(s[6:], spgistPageID) })
	ofBrin      = special(8, func(s []byte) { le.PutUint16(s[6:], brinRegular) })
	ofGin       = special(8, func(s []byte) { le.PutUint16(s[6:], 2) })
	ofGinDel    = special(8, func(s []byte) { le.PutUint16(s[6:], ginDeleted) })
	ofSequence  = special(8, func(s []byte) { le.PutUint32(s, sequenceMagic) })
)

const markDead = -1 // in place of an offset: the item is marked as dead

// TestMaskPage changes one thing of a page, and says whether that is legitimate.
func TestMaskPage(t *testing.T) {
	const tuple8, tuple16 = 8192 - 8 - 40, 8192 - 16 - 40 // where the tuple begins
	for _, c := range []struct {
		what    string
		special []byte
		offset  int
		bits    byte
		masked  bool
	}{
		{"LSN", noSpecial, 4, 1, false},
		{"checksum", noSpecial, 8, 1, true},
		{"hint flags", noSpecial, 10, 7, true},
		{"prune xid", noSpecial, 21, 1, true},
		{"hole", noSpecial, 4000, 1, true},
		{"line pointer", noSpecial, PageHeaderSize + 3, 2, false},
		{"dead line pointer of a heap", noSpecial, markDead, 0, false},
		{"padding behind a tuple", noSpecial, 8192 - 1, 1, true},

		{"xmin", noSpecial, 8192 - 40, 1, false},
		{"xmax", noSpecial, 8192 - 40 + 4, 1, false},
		{"command id", noSpecial, 8192 - 40 + tupleOffCID, 1, true},
		{"ctid", noSpecial, 8192 - 40 + tupleOffCtid + 4, 1, false},
		{"infomask2", noSpecial, 8192 - 40 + 18, 1, false},
		{"has nulls", noSpecial, 8192 - 40 + tupleOffInfomask, 1, false},
		{"combo command id", noSpecial, 8192 - 40 + tupleOffInfomask, heapComboCID, true},
		{"lock", noSpecial, 8192 - 40 + tupleOffInfomask, 0x40, false},
		{"xmin committed", noSpecial, 8192 - 40 + tupleOffInfomask + 1, 1, true},
		{"xmin invalid", noSpecial, 8192 - 40 + tupleOffInfomask + 1, 2, true},
		{"xmin frozen", noSpecial, 8192 - 40 + tupleOffInfomask + 1, 3, false},
		{"xmax committed", noSpecial, 8192 - 40 + tupleOffInfomask + 1, 4, true},
		{"xmax invalid", noSpecial, 8192 - 40 + tupleOffInfomask + 1, 8, true},
		{"xmax is a multixact", noSpecial, 8192 - 40 + tupleOffInfomask + 1, 0x10, false},
		{"user data", noSpecial, 8192 - 10, 1, false},

		{"b-tree: tuple", ofBtree, tuple16 + 30, 1, false},
		{"b-tree: dead item", ofBtree, markDead, 0, true},
		{"b-tree: dead item of an inner page", ofBtreeTop, markDead, 0, false},
		{"b-tree: right sibling", ofBtree, 8192 - 12, 1, false},
		{"b-tree: root", ofBtree, 8192 - 4, 2, false},
		{"b-tree: end of a split", ofBtree, 8192 - 4, btreeSplitEnd, true},
		{"b-tree: has garbage", ofBtree, 8192 - 4, btreeHasGarbage, true},
		{"b-tree: cycle id", ofBtree, 8192 - 2, 1, true},
		{"b-tree: content of a deleted page", ofBtreeDel, tuple16 + 30, 1, true},
		{"GIN: lower of a deleted page", ofGinDel, 12, 0x20, true},
		{"b-tree: hole", ofBtree, 4000, 1, true},

		{"hash: tuple", ofHash, tuple16 + 30, 1, false},
		{"hash: dead item", ofHash, markDead, 0, true},
		{"hash: has dead", ofHash, 8192 - 4, hashHasDead, true},
		{"hash: bucket", ofHash, 8192 - 8, 1, false},

		{"GiST: tuple", ofGist, tuple16 + 30, 1, false},
		{"GiST: dead item", ofGist, markDead, 0, true},
		{"GiST: split number", ofGist, 8192 - 16, 1, true},
		{"GiST: follow right", ofGist, 8192 - 4, gistFollowRight, true},
		{"GiST: has garbage", ofGist, 8192 - 4, gistHasGarbage, true},
		{"GiST: right link", ofGist, 8192 - 8, 1, false},

		{"SP-GiST: tuple", ofSpgist, tuple8 + 30, 1, false},
		{"SP-GiST: cache of the metapage", ofSpgistTop, PageHeaderSize + 10, 1, true},
		{"SP-GiST: magic of the metapage", ofSpgistTop, PageHeaderSize, 1, false},
		{"SP-GiST: hole", ofSpgist, 4000, 1, true},
		{"SP-GiST: dead item", ofSpgist, markDead, 0, false},
		{"BRIN: tuple", ofBrin, tuple8 + 30, 1, false},
		{"BRIN: evacuate", ofBrin, 8192 - 4, brinEvacuate, true},
		{"GIN: tuple", ofGin, tuple8 + 30, 1, false},
		{"GIN: hole", ofGin, 4000, 1, true},
		{"GIN: right link", ofGin, 8192 - 8, 1, false},
		{"GIN: content of a deleted page", ofGinDel, tuple8 + 30, 1, true},
		{"sequence: value", ofSequence, tuple8 + 25, 1, true},
		{"sequence: xmin", ofSequence, tuple8, 1, false},
	} {
		primary, standby := maskedPage(c.special), maskedPage(c.special)
		if c.offset == markDead {
			id := le.Uint32(standby[PageHeaderSize:])
			le.PutUint32(standby[PageHeaderSize:], id|itemDead<<15)
		} else {
			standby[c.offset] ^= c.bits
		}
		MaskPage(primary, 5)
		MaskPage(standby, 5)
		if got := bytes.Equal(primary, standby); got != c.masked {
			t.Errorf("%s: masked %v, want %v", c.what, got, c.masked)
		}
	}
}

// TestMaskSpeculative: an insertion that waits for its confirmation has a token
// in the place of its own address.
func TestMaskSpeculative(t *testing.T) {
	const block, ctid = 0x00012345, 8192 - 40 + tupleOffCtid
	primary, standby := maskedPage(nil), maskedPage(nil)
	copy(primary[ctid:], []byte{9, 9, 9, 9, 0xFE, 0xFF})
	copy(standby[ctid:], []byte{1, 0, 0x45, 0x23, 1, 0})
	MaskPage(primary, block)
	MaskPage(standby, block)
	if !bytes.Equal(primary, standby) {
		t.Errorf("% x, % x", primary[ctid:ctid+6], standby[ctid:ctid+6])
	}
}

// TestMaskGarbage: whatever a page holds, masking it does not fail.
func TestMaskGarbage(t *testing.T) {
	for _, s := range [][]byte{noSpecial, ofBtree, ofHash, ofGist, ofSpgist, ofBrin, ofGin, ofSequence} {
		for i := range 8192 {
			page := maskedPage(s)
			page[i] ^= 0xFF
			MaskPage(page, 1)
		}
	}
}

func TestIsEmptyPage(t *testing.T) {
	page := make([]byte, 8192)
	if !IsEmptyPage(page) {
		t.Error("zeros")
	}
	page = maskedPage(nil)
	clear(page[:8])
	clear(page[PageHeaderSize:])
	le.PutUint16(page[12:], PageHeaderSize)
	le.PutUint16(page[14:], 8192)
	if !IsEmptyPage(page) {
		t.Error("initialized")
	}
	page[4] = 1
	if IsEmptyPage(page) || IsEmptyPage(maskedPage(nil)) {
		t.Error("in use")
	}
}

func TestStaleVisibility(t *testing.T) {
	standby, primary := make([]byte, 8192), make([]byte, 8192)
	standby[4], standby[100], primary[100], primary[200] = 9, 3, 1, 0xFF
	if n := StaleVisibility(standby, primary); n != 1 {
		t.Error(n)
	}
	if n := StaleVisibility(standby, nil); n != 2 {
		t.Error(n)
	}
}
