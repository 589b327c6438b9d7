package wal

// The record header, part of the format (access/xlogrecord.h).
const (
	// RecordHeaderSize is the size of XLogRecord, with which every record begins.
	RecordHeaderSize = 24

	// maxRecordSize bounds xl_tot_len. The server's own bound (XLogRecordMaxSize)
	// is a little lower; this one only has to tell nonsense.
	maxRecordSize = 1 << 30

	maxBlockID = 32 // XLR_MAX_BLOCK_ID

	idDataShort   = 255 // XLR_BLOCK_ID_DATA_SHORT
	idDataLong    = 254 // XLR_BLOCK_ID_DATA_LONG
	idOrigin      = 253 // XLR_BLOCK_ID_ORIGIN
	idToplevelXID = 252 // XLR_BLOCK_ID_TOPLEVEL_XID (14+)

	blockForkMask = 0x0F // BKPBLOCK_FORK_MASK
	blockHasImage = 0x10 // BKPBLOCK_HAS_IMAGE
	blockHasData  = 0x20 // BKPBLOCK_HAS_DATA
	blockWillInit = 0x40 // BKPBLOCK_WILL_INIT
	blockSameRel  = 0x80 // BKPBLOCK_SAME_REL

	infoMask          = 0xF0 // ~XLR_INFO_MASK: the bits that belong to the resource manager
	infoSpecialUpdate = 0x01 // XLR_SPECIAL_REL_UPDATE
)

// Record is one WAL record. The slices point into the reader's buffers: they
// are valid until its next call.
type Record struct {
	LSN      LSN        // of the record's first byte
	End      LSN        // where the next record may begin: EndRecPtr of the server
	Prev     LSN        // xl_prev: start of the record before
	Timeline TimelineID // of the page on which the record begins

	TotalLen uint32
	XID      uint32
	RMID     RMID
	Info     uint8 // all eight bits of xl_info
	CRC      uint32

	Origin      uint16     // replication origin, 0 for none
	ToplevelXID uint32     // of the subtransaction's parent, 0 where not given
	Blocks      []BlockRef // in the order of their IDs
	Main        []byte     // main data

	format *Format
	blocks [maxBlockID + 1]BlockRef // what Blocks points into
}

// BlockRef is a reference to a block that the record changes.
type BlockRef struct {
	ID       uint8
	File     RelFile
	Block    uint32
	WillInit bool // replay makes the page anew
	SameRel  bool // the record named the relation only once, in the block before
	HasData  bool
	HasImage bool
	Image    BlockImage // when HasImage
	Data     []byte     // when HasData
}

// Compression is the method by which a page image is compressed.
type Compression uint8

// The methods.
const (
	NotCompressed Compression = iota
	PGLZ
	LZ4  // 15+
	Zstd // 15+
)

// String returns the method as wal_compression names it.
func (c Compression) String() string {
	return [...]string{"none", "pglz", "lz4", "zstd"}[c&3]
}

// BlockImage is a full-page image, its hole left out.
type BlockImage struct {
	Data        []byte // the bytes in the record, compressed or not
	HoleOffset  uint16
	HoleLength  uint16
	Compression Compression
	Apply       bool // replay restores the image; otherwise it serves a consistency check
}

// Op returns the resource manager's four bits of Info, which say what the record does.
func (r *Record) Op() uint8 { return r.Info & infoMask }

// SpecialRelUpdate reports whether the record marks that it changes relation
// files in a way that its block references do not show (XLR_SPECIAL_REL_UPDATE).
func (r *Record) SpecialRelUpdate() bool { return r.Info&infoSpecialUpdate != 0 }

// Format returns the format of the version that wrote the record.
func (r *Record) Format() *Format { return r.format }
