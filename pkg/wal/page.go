package wal

import (
	"encoding/binary"
	"fmt"
)

// The page header, part of the format (access/xlog_internal.h).
const (
	// DefaultPageSize is the usual size of a WAL page (XLOG_BLCKSZ).
	DefaultPageSize = 8192

	// ShortHeaderSize is the size of the header of every page but a segment's first.
	ShortHeaderSize = 24
	// LongHeaderSize is the size of the header of a segment's first page.
	LongHeaderSize = 40

	minPageSize = 1024
	maxPageSize = 65536
)

// PageInfo holds a page header's flags.
type PageInfo uint16

// The flags (XLP_...).
const (
	PageFirstIsContrecord          PageInfo = 0x0001 // the page begins with the rest of a record
	PageLongHeader                 PageInfo = 0x0002 // the header is the long one
	PageBackupBlocksRemovable      PageInfo = 0x0004 // no backup needs the page images (13-18)
	PageFirstIsOverwriteContrecord PageInfo = 0x0008 // replaces the rest of a record that was never written

	pageKnownFlags PageInfo = 0x000F
)

// PageHeader is the header of one WAL page.
type PageHeader struct {
	Magic     uint16
	Info      PageInfo
	Timeline  TimelineID // of the server that began the page
	Address   LSN        // of the page's first byte
	Remaining uint32     // bytes of the continued record from here on, when PageFirstIsContrecord

	// In the long header only.
	SystemID    uint64
	SegmentSize SegmentSize
	PageSize    uint32
}

// Long reports whether the header is the long one.
func (h PageHeader) Long() bool { return h.Info&PageLongHeader != 0 }

// Size returns the header's size in bytes: where the page's content begins.
func (h PageHeader) Size() int {
	if h.Long() {
		return LongHeaderSize
	}
	return ShortHeaderSize
}

// ParsePageHeader decodes the header at the start of b without judging it; see
// Validate. It fails only when b is too short.
func ParsePageHeader(b []byte) (PageHeader, error) {
	if len(b) < ShortHeaderSize {
		return PageHeader{}, fmt.Errorf("WAL page header needs %d bytes, have %d", ShortHeaderSize, len(b))
	}
	h := PageHeader{
		Magic:     binary.LittleEndian.Uint16(b),
		Info:      PageInfo(binary.LittleEndian.Uint16(b[2:])),
		Timeline:  TimelineID(binary.LittleEndian.Uint32(b[4:])),
		Address:   LSN(binary.LittleEndian.Uint64(b[8:])),
		Remaining: binary.LittleEndian.Uint32(b[16:]),
	}
	if !h.Long() {
		return h, nil
	}
	if len(b) < LongHeaderSize {
		return PageHeader{}, fmt.Errorf("long WAL page header needs %d bytes, have %d", LongHeaderSize, len(b))
	}
	h.SystemID = binary.LittleEndian.Uint64(b[24:])
	h.SegmentSize = SegmentSize(binary.LittleEndian.Uint32(b[32:]))
	h.PageSize = binary.LittleEndian.Uint32(b[36:])
	return h, nil
}

// Validate checks what can be checked of a header by itself: a known version,
// known flags, an address on a page boundary, sane sizes. An unknown version
// is ErrUnknownVersion.
func (h PageHeader) Validate() error {
	if _, err := FormatByMagic(h.Magic); err != nil {
		return err
	}
	if extra := h.Info &^ pageKnownFlags; extra != 0 {
		return fmt.Errorf("unknown page flags %04X", uint16(extra))
	}
	if h.Address%minPageSize != 0 {
		return fmt.Errorf("page address %s is not on a page boundary", h.Address)
	}
	if h.Timeline == 0 {
		return fmt.Errorf("page has no timeline")
	}
	if h.Long() {
		if err := h.SegmentSize.Validate(); err != nil {
			return err
		}
		if !validPageSize(h.PageSize) {
			return fmt.Errorf("invalid WAL page size %d", h.PageSize)
		}
	}
	return nil
}

func validPageSize(n uint32) bool { return n >= minPageSize && n <= maxPageSize && n&(n-1) == 0 }
