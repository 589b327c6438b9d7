package wal

import "fmt"

// The operations of the resource managers Heap and Heap2 that change rows, as
// the upper four bits of xl_info, and their flags. Part of the format
// (access/heapam_xlog.h); the same in 13 to 18.
const (
	heapOpMask    = 0x70
	heapInsert    = 0x00
	heapDelete    = 0x10
	heapUpdate    = 0x20
	heapTruncate  = 0x30
	heapHotUpdate = 0x40
	heapConfirm   = 0x50
	heapInitPage  = 0x80

	heap2MultiInsert = 0x50

	insertIsSpeculative = 1 << 2 // XLH_INSERT_IS_SPECULATIVE
	deleteIsSuper       = 1 << 3 // XLH_DELETE_IS_SUPER

	infobitsKeysUpdated = 1 << 4 // XLHL_KEYS_UPDATED
)

// HeapOp is what a record does to the rows of a table.
type HeapOp uint8

// The operations.
const (
	HeapInsert   HeapOp = iota // one row or, by COPY, several
	HeapUpdate                 // a row gets a new version
	HeapDelete                 // a row goes
	HeapTruncate               // TRUNCATE; written at wal_level = logical only
	HeapConfirm                // the speculative insertion of ON CONFLICT has taken place
	HeapRetract                // the speculative insertion of ON CONFLICT is taken back
)

var heapOpNames = [...]string{"insert", "update", "delete", "truncate", "confirm", "retract"}

// String returns the operation's name.
func (o HeapOp) String() string {
	if int(o) < len(heapOpNames) {
		return heapOpNames[o]
	}
	return "unknown"
}

// TID names a version of a row: a block of the table's main fork and a line
// pointer in it, counted from 1.
type TID struct {
	Block  uint32
	Offset uint16
}

// String writes the identifier as the server does: "(0,1)".
func (t TID) String() string { return fmt.Sprintf("(%d,%d)", t.Block, t.Offset) }

// HeapChange is what a record of the resource managers Heap and Heap2 does to
// rows.
//
//	operation  Block, Offsets         Old
//	insert     the new rows
//	update     the new version        the version that it replaces
//	delete     the row
//	confirm    the row
//	retract    the row
//	truncate   (none: Relations)
type HeapChange struct {
	Op          HeapOp
	XID         uint32 // of the transaction or subtransaction
	File        RelFile
	Block       uint32
	Offsets     []uint16
	Old         TID
	KeyChanged  bool     // update: a column of a unique index changed
	Speculative bool     // insert: an HeapConfirm or HeapRetract follows
	Database    uint32   // truncate
	Relations   []uint32 // truncate: OIDs of the tables
}

// DecodeHeap decodes a record into c, whose slices are used again. It reports
// false for records that leave rows as they are (locks, pruning, freezing,
// in-place updates of the catalog), and an error that matches ErrRecordContent
// for a malformed one.
func DecodeHeap(r *Record, c *HeapChange) (bool, error) {
	multi := r.RMID == RmHeap2
	if r.RMID != RmHeap && !(multi && r.Op()&heapOpMask == heap2MultiInsert) {
		return false, nil
	}
	*c = HeapChange{XID: r.XID, Offsets: c.Offsets[:0], Relations: c.Relations[:0]}
	d := decoder{b: r.Main, format: r.format}
	ok := true
	switch op := r.Op() & heapOpMask; {
	case multi:
		c.multiInsert(&d, r.Op()&heapInitPage != 0)
	case op == heapInsert: // xl_heap_insert
		c.Offsets = append(c.Offsets, d.u16())
		c.Speculative = d.u8()&insertIsSpeculative != 0
	case op == heapDelete: // xl_heap_delete
		c.delete(&d)
	case op == heapUpdate || op == heapHotUpdate:
		c.update(&d, r)
	case op == heapConfirm: // xl_heap_confirm
		c.Op, c.Offsets = HeapConfirm, append(c.Offsets, d.u16())
	case op == heapTruncate:
		c.truncate(&d)
	default:
		ok = false
	}
	if ok && c.Op != HeapTruncate {
		c.place(&d, r)
	}
	if d.err != nil {
		return false, fmt.Errorf("%w: %s record at %s, info %02X: %w", ErrRecordContent, r.RMID, r.LSN, r.Info, d.err)
	}
	return ok, nil
}

// place takes the relation and block from the first block reference.
func (c *HeapChange) place(d *decoder, r *Record) {
	if len(r.Blocks) == 0 {
		d.fail("no block reference")
		return
	}
	c.File, c.Block = r.Blocks[0].File, r.Blocks[0].Block
}

// multiInsert decodes xl_heap_multi_insert. A page that is made anew holds
// nothing but these rows, and their offsets are left out.
func (c *HeapChange) multiInsert(d *decoder, init bool) {
	d.skip(1) // flags
	d.align(2)
	n := d.u16()
	for i := range n {
		if d.err != nil {
			return
		}
		if init {
			c.Offsets = append(c.Offsets, i+1)
		} else {
			c.Offsets = append(c.Offsets, d.u16())
		}
	}
}

// delete decodes xl_heap_delete.
func (c *HeapChange) delete(d *decoder) {
	d.skip(4) // xmax
	c.Op, c.Offsets = HeapDelete, append(c.Offsets, d.u16())
	d.skip(1) // infobits
	if d.u8()&deleteIsSuper != 0 {
		c.Op = HeapRetract
	}
}

// update decodes xl_heap_update. Block reference 0 is the new version's page, 1
// the old one's where that is another.
func (c *HeapChange) update(d *decoder, r *Record) {
	d.skip(4) // xmax of the old version
	c.Op, c.Old.Offset = HeapUpdate, d.u16()
	c.KeyChanged = d.u8()&infobitsKeysUpdated != 0
	d.skip(1 + 4) // flags, xmax of the new version
	c.Offsets = append(c.Offsets, d.u16())
	for i := range r.Blocks {
		c.Old.Block = r.Blocks[i].Block // the last one
	}
}

// truncate decodes xl_heap_truncate.
func (c *HeapChange) truncate(d *decoder) {
	c.Op, c.Database = HeapTruncate, d.u32()
	n := d.u32()
	d.skip(1) // flags
	d.align(4)
	for range d.bound(n, 4) {
		c.Relations = append(c.Relations, d.u32())
	}
}
