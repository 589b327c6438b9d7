package volume

import (
	"encoding/binary"
	"fmt"

	"tidemark/pkg/wal"
)

// PageHeaderSize is the size of the header that begins every data page
// (storage/bufpage.h), little-endian:
//
//	offset size
//	     0    4  LSN of the last change, upper half, and 4 the lower half
//	     8    2  checksum, 0 where there is none
//	    10    2  flags
//	    12    2  end of the line pointers (lower)
//	    14    2  start of the tuples (upper)
//	    16    2  start of the special space
//	    18    2  page size, with the layout version in the lower byte
//	    20    4  oldest xid that may be pruned
const PageHeaderSize = 24

const (
	pageLayoutVersion = 4
	pageFlagsKnown    = 0x0007
)

// PageHeader is the header of a data page.
type PageHeader struct {
	LSN      wal.LSN
	Checksum uint16
	Flags    uint16
	Lower    uint16
	Upper    uint16
	Special  uint16
	Size     uint16
	Version  uint8
	PruneXid uint32
}

// ParsePageHeader decodes the header of a page of at least PageHeaderSize bytes.
func ParsePageHeader(page []byte) PageHeader {
	p := (*[PageHeaderSize]byte)(page)
	size := binary.LittleEndian.Uint16(p[18:])
	return PageHeader{
		LSN:      PageLSN(page),
		Checksum: binary.LittleEndian.Uint16(p[8:]),
		Flags:    binary.LittleEndian.Uint16(p[10:]),
		Lower:    binary.LittleEndian.Uint16(p[12:]),
		Upper:    binary.LittleEndian.Uint16(p[14:]),
		Special:  binary.LittleEndian.Uint16(p[16:]),
		Size:     size & 0xFF00,
		Version:  uint8(size),
		PruneXid: binary.LittleEndian.Uint32(p[20:]),
	}
}

// PageLSN returns the LSN of a page's last change.
func PageLSN(page []byte) wal.LSN {
	p := (*[8]byte)(page)
	return wal.LSN(uint64(binary.LittleEndian.Uint32(p[0:]))<<32 | uint64(binary.LittleEndian.Uint32(p[4:])))
}

// Validate checks that the header is one that the server would accept for a
// page of blockSize bytes.
func (h PageHeader) Validate(blockSize int) error {
	switch {
	case h.Version != pageLayoutVersion:
		return fmt.Errorf("page layout version %d, expected %d", h.Version, pageLayoutVersion)
	case int(h.Size) != blockSize:
		return fmt.Errorf("page size %d, expected %d", h.Size, blockSize)
	case h.Flags&^pageFlagsKnown != 0:
		return fmt.Errorf("unknown page flags %#x", h.Flags)
	case h.Lower < PageHeaderSize, h.Lower > h.Upper, h.Upper > h.Special, int(h.Special) > blockSize,
		h.Special%8 != 0:
		return fmt.Errorf("page boundaries lower %d, upper %d, special %d do not fit", h.Lower, h.Upper, h.Special)
	}
	return nil
}

// PageState is what CheckPage finds.
type PageState uint8

// The states of a page.
const (
	PageValid       PageState = iota // the checksum matches, or checksums are off and the header is sound
	PageNew                          // all zero: allocated, never written
	PageBadChecksum                  // the checksum is not that of the content
	PageBadHeader                    // no server wrote such a header
)

var pageStateNames = [...]string{"valid", "new", "checksum mismatch", "invalid header"}

func (s PageState) String() string {
	if int(s) < len(pageStateNames) {
		return pageStateNames[s]
	}
	return "unknown page state"
}

// OK tells whether there is nothing to complain about.
func (s PageState) OK() bool { return s == PageValid || s == PageNew }

// CheckPage examines a whole page with a checksum. blkno counts from the start
// of the fork, over its segments.
//
// A page that is read from a running server may be torn: whoever copies reads
// it once more before complaining, and a page whose LSN is at or after the
// start of the copy is repaired by replay in any case.
func CheckPage(page []byte, blkno uint32) PageState {
	if IsZero(page) {
		return PageNew
	}
	if len(page) < PageHeaderSize || ParsePageHeader(page).Validate(len(page)) != nil {
		return PageBadHeader
	}
	if binary.LittleEndian.Uint16(page[checksumOffset:]) != Checksum(page, blkno) {
		return PageBadChecksum
	}
	return PageValid
}

// CheckPageHeader examines a page of a cluster without checksums.
func CheckPageHeader(page []byte) PageState {
	if IsZero(page) {
		return PageNew
	}
	if len(page) < PageHeaderSize || ParsePageHeader(page).Validate(len(page)) != nil {
		return PageBadHeader
	}
	return PageValid
}

// IsZero tells whether all bytes are zero.
func IsZero(data []byte) bool {
	for len(data) >= 32 {
		w := (*[32]byte)(data)
		if binary.LittleEndian.Uint64(w[0:])|binary.LittleEndian.Uint64(w[8:])|
			binary.LittleEndian.Uint64(w[16:])|binary.LittleEndian.Uint64(w[24:]) != 0 {
			return false
		}
		data = data[32:]
	}
	for _, b := range data {
		if b != 0 {
			return false
		}
	}
	return true
}
