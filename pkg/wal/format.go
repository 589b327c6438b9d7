package wal

import "fmt"

// Format describes how one major version of PostgreSQL writes its log. All
// differences between versions that this package knows are columns here.
type Format struct {
	Major     int    // 13 ... 18
	PageMagic uint16 // XLOG_PAGE_MAGIC, access/xlog_internal.h

	imageBits     imageBits // meaning of bimg_info, access/xlogrecord.h
	toplevelXID   bool      // XLR_BLOCK_ID_TOPLEVEL_XID is known (14+)
	customRmgrs   bool      // resource managers 128-255 may be used (15+)
	dbaseDrop     uint8     // info of XLOG_DBASE_DROP, commands/dbcommands_xlog.h
	dbaseWALLog   uint8     // info of XLOG_DBASE_CREATE_WAL_LOG; noInfo where absent
	checkpointWAL bool      // CheckPoint and xl_end_of_recovery carry wal_level (17+)
	xactStats     int       // size of xl_xact_stats_item; 0 before 15 (access/xact.h)
}

const noInfo = 0xFF

// imageBits holds the flag bits of XLogRecordBlockImageHeader.bimg_info.
type imageBits struct {
	hole, apply       uint8
	pglz, lz4, zstd   uint8
	compressed, known uint8 // any compression; every bit that has a meaning
}

var (
	// One bit says "compressed" up to 14, always by pglz.
	imageBits13 = imageBits{hole: 0x01, pglz: 0x02, apply: 0x04, compressed: 0x02, known: 0x07}
	// 15 moved the apply bit and gave each method a bit of its own.
	imageBits15 = imageBits{hole: 0x01, apply: 0x02, pglz: 0x04, lz4: 0x08, zstd: 0x10, compressed: 0x1C, known: 0x1F}
)

// formats is the table of versions. A new major version is one row.
var formats = [...]Format{
	{Major: 13, PageMagic: 0xD106, imageBits: imageBits13, dbaseDrop: 0x10, dbaseWALLog: noInfo},
	{Major: 14, toplevelXID: true, PageMagic: 0xD10D, imageBits: imageBits13, dbaseDrop: 0x10, dbaseWALLog: noInfo},
	{Major: 15, toplevelXID: true, PageMagic: 0xD110, imageBits: imageBits15, dbaseDrop: 0x20, dbaseWALLog: 0x10, customRmgrs: true, xactStats: 12},
	{Major: 16, toplevelXID: true, PageMagic: 0xD113, imageBits: imageBits15, dbaseDrop: 0x20, dbaseWALLog: 0x10, customRmgrs: true, xactStats: 12},
	{Major: 17, toplevelXID: true, PageMagic: 0xD116, imageBits: imageBits15, dbaseDrop: 0x20, dbaseWALLog: 0x10, customRmgrs: true, xactStats: 12, checkpointWAL: true},
	{Major: 18, toplevelXID: true, PageMagic: 0xD118, imageBits: imageBits15, dbaseDrop: 0x20, dbaseWALLog: 0x10, customRmgrs: true, xactStats: 16, checkpointWAL: true},
}

// Formats returns the known versions in ascending order.
func Formats() []Format { return formats[:] }

// FormatByMajor returns the format of a major version, or an error that names it.
func FormatByMajor(major int) (*Format, error) {
	for i := range formats {
		if formats[i].Major == major {
			return &formats[i], nil
		}
	}
	return nil, fmt.Errorf("%w: PostgreSQL %d is not one of %s", ErrUnknownVersion, major, knownMajors())
}

// FormatByMagic returns the format whose pages carry magic, or an error that names it.
func FormatByMagic(magic uint16) (*Format, error) {
	for i := range formats {
		if formats[i].PageMagic == magic {
			return &formats[i], nil
		}
	}
	return nil, fmt.Errorf("%w: page magic %04X does not belong to PostgreSQL %s", ErrUnknownVersion, magic, knownMajors())
}

func knownMajors() string {
	return fmt.Sprintf("%d to %d", formats[0].Major, formats[len(formats)-1].Major)
}
