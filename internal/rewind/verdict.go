package rewind

import (
	"bytes"
	"fmt"

	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// blockPair is one block as both sides have it; nil where its file is shorter
// or does not exist.
type blockPair struct {
	fork         wal.Fork
	block        uint32
	theirs, mine []byte
}

// suspicion says why a block is not settled.
type suspicion struct {
	what string
	open bool   // nothing is wrong with it yet: it changed behind the common LSN
	bits []byte // of a visibility map: those that are wrong
}

// same tells whether a later look found the same wrong.
func (s suspicion) same(later suspicion) bool {
	if s.open || later.open {
		return false
	}
	if s.bits == nil || later.bits == nil {
		return s.bits == nil && later.bits == nil
	}
	for i := range min(len(s.bits), len(later.bits)) {
		if s.bits[i]&later.bits[i] != 0 {
			return true
		}
	}
	return false
}

// judge compares a block of a standby with the source's, where both sides have
// every change up to common in their files. Nil means that it is as it should
// be:
//
//   - of the same LSN, and equal but for what the WAL does not carry;
//   - of different LSNs, one of them behind common: to be looked at again;
//   - never used on either side.
func (b blockPair) judge(common wal.LSN, checksums bool) *suspicion {
	if bytes.Equal(b.mine, b.theirs) {
		return nil
	}
	if b.fork == wal.ForkVM {
		return b.judgeVisibility()
	}
	theirLSN, theirEmpty := pageLSN(b.theirs)
	myLSN, myEmpty := pageLSN(b.mine)
	switch {
	case theirEmpty && myEmpty:
		return nil
	case !myEmpty && !sound(b.mine, b.block, checksums):
		return &suspicion{what: "the page here is damaged: its header or checksum is wrong"}
	case !theirEmpty && !sound(b.theirs, b.block, checksums):
		return &suspicion{what: "the page at the source is damaged: its header or checksum is wrong"}
	case theirLSN == myLSN:
		mine, theirs := bytes.Clone(b.mine), bytes.Clone(b.theirs)
		volume.MaskPage(mine, b.block)
		volume.MaskPage(theirs, b.block)
		if bytes.Equal(mine, theirs) {
			return nil
		}
		return &suspicion{what: fmt.Sprintf("the contents differ, at the same LSN %s", myLSN)}
	case max(theirLSN, myLSN) > common:
		return &suspicion{open: true}
	case b.mine == nil:
		return &suspicion{what: "it is missing here"}
	case b.theirs == nil:
		return &suspicion{what: "the source does not have it"}
	}
	return &suspicion{what: fmt.Sprintf("the page is of LSN %s at the source and of %s here", theirLSN, myLSN)}
}

// pageLSN returns a page's LSN, and whether it was never used.
func pageLSN(page []byte) (wal.LSN, bool) {
	if page == nil || volume.IsEmptyPage(page) {
		return 0, true
	}
	return volume.PageLSN(page), false
}

// sound tells whether a server wrote this page.
func sound(page []byte, block uint32, checksums bool) bool {
	if checksums {
		return volume.CheckPage(page, block).OK()
	}
	return volume.CheckPageHeader(page).OK()
}

// judgeVisibility: a bit that only the standby has hides rows' changes from
// its scans; one that it lacks costs a look.
func (b blockPair) judgeVisibility() *suspicion {
	if b.mine == nil || volume.StaleVisibility(b.mine, b.theirs) == 0 {
		return nil
	}
	bits := bytes.Clone(b.mine)
	clear(bits[:volume.PageHeaderSize])
	for i := volume.PageHeaderSize; i < len(b.theirs); i++ {
		bits[i] &^= b.theirs[i]
	}
	return &suspicion{what: "pages are marked as all visible here and not at the source", bits: bits}
}
