package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// lineNormal marks a line pointer with a row version behind it.
const lineNormal = 1

// tuple is a version of a row: its header and columns, in the page's memory.
type tuple []byte

func (t tuple) xmin() uint32     { return binary.LittleEndian.Uint32(t) }
func (t tuple) xmax() uint32     { return binary.LittleEndian.Uint32(t[4:]) }
func (t tuple) infomask() uint16 { return binary.LittleEndian.Uint16(t[volume.TupleInfomask:]) }

// columns are the bytes from the first column on.
func (t tuple) columns() []byte { return t[t[22]:] }

// eachTuple calls fn for every version of a row that a page holds.
func eachTuple(page []byte, fn func(tuple)) {
	if len(page) < volume.PageHeaderSize {
		return
	}
	h := volume.ParsePageHeader(page)
	if h.Validate(len(page)) != nil {
		return // a new page, or one that is not to be trusted
	}
	for at := volume.PageHeaderSize; at+4 <= int(h.Lower); at += 4 {
		line := binary.LittleEndian.Uint32(page[at:])
		off, state, size := int(line&0x7FFF), line>>15&3, int(line>>17)
		if state != lineNormal || size < volume.TupleHeaderSize || off+size > len(page) {
			continue
		}
		if t := tuple(page[off : off+size]); int(t[22]) >= volume.TupleHeaderSize && int(t[22]) <= size {
			fn(t)
		}
	}
}

// eachRow calls fn for every version of a row in a relation's main fork, read
// block by block. A file that is not there has no rows.
func (c *Catalog) eachRow(f wal.RelFile, fn func(tuple)) error {
	page := make([]byte, c.control.BlockSize)
	for segment := uint32(0); ; segment++ {
		name := volume.RelSegment{RelFile: f, Segment: segment}.Path(c.control.VersionDir())
		file, err := os.Open(filepath.Join(c.dir, filepath.FromSlash(name)))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		for err == nil {
			if _, err = io.ReadFull(file, page); err == nil {
				eachTuple(page, fn)
			}
		}
		if cerr := file.Close(); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
}

// live reports whether the version counts now.
func (c *Catalog) live(t tuple) bool {
	mask := t.infomask()
	switch {
	case mask&(volume.HeapXminCommitted|volume.HeapXminInvalid) == volume.HeapXminInvalid:
		return false
	case mask&volume.HeapXminCommitted == 0 && !c.committed(t.xmin()):
		return false
	case mask&volume.HeapXmaxInvalid != 0 || mask&volume.HeapXmaxLockOnly != 0 || t.xmax() == 0:
		return true
	case mask&volume.HeapXmaxIsMulti != 0:
		return true // several transactions locked it; one that replaced a catalog's row among them is rare
	}
	return mask&volume.HeapXmaxCommitted == 0 && !c.committed(t.xmax())
}

// committed tells a transaction's fate by pg_xact, or by what the caller knows
// from WAL that the files do not reflect yet.
func (c *Catalog) committed(xid uint32) bool {
	const perByte, normal = 4, 3
	if xid < normal {
		return xid != 0 // bootstrap and frozen
	}
	if c.opt.Committed != nil && c.opt.Committed(xid) {
		return true
	}
	perSegment := c.control.BlockSize * perByte * 32
	data, ok := c.clog[xid/perSegment]
	if !ok {
		// One that cannot be read says that nothing committed.
		data, _ = volume.ReadFile(volume.OS, filepath.Join(c.dir, "pg_xact", fmt.Sprintf("%04X", xid/perSegment)), 0)
		c.clog[xid/perSegment] = data
	}
	i := xid % perSegment
	return int(i/perByte) < len(data) && data[i/perByte]>>(i%perByte*2)&3 == 1
}
