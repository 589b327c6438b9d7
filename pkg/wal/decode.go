package wal

import (
	"encoding/binary"
	"fmt"
	"time"
)

// Decode takes apart a record that changes more than the blocks it refers to,
// or that a recovery cares about. It returns nil for all others, and an error
// that matches ErrRecordContent when the main data is malformed. The result
// holds no part of the reader's buffers.
func Decode(r *Record) (Detail, error) {
	d := decoder{b: r.Main, format: r.format}
	detail := d.record(r)
	if d.err != nil {
		return nil, fmt.Errorf("%w: %s record at %s, info %02X: %w", ErrRecordContent, r.RMID, r.LSN, r.Info, d.err)
	}
	return detail, nil
}

// decoder reads main data front to back. After the first error it returns
// zeros, so that callers check once.
type decoder struct {
	b      []byte
	pos    int
	format *Format
	err    error
}

func (d *decoder) record(r *Record) Detail {
	switch r.RMID {
	case RmXLOG:
		return d.xlog(r.Op())
	case RmTransaction:
		return d.transaction(r)
	case RmStorage:
		return d.storage(r.Op())
	case RmDatabase:
		return d.database(r.Op())
	case RmTablespace:
		return d.tablespace(r.Op())
	case RmRelMap:
		if r.Op() == relmapUpdate {
			return d.relationMap()
		}
	}
	return nil
}

// take returns the next n bytes, or nil with an error set.
func (d *decoder) take(n int) []byte {
	if d.err != nil {
		return nil
	}
	if n < 0 || len(d.b)-d.pos < n {
		d.err = fmt.Errorf("main data of %d bytes is too short", len(d.b))
		return nil
	}
	d.pos += n
	return d.b[d.pos-n : d.pos]
}

func (d *decoder) skip(n int) { d.take(n) }

// align skips the padding that the C struct has before a field of n bytes.
func (d *decoder) align(n int) { d.skip((n - d.pos%n) % n) }

func (d *decoder) u8() uint8 {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) u16() uint16 {
	if b := d.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if b := d.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if b := d.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (d *decoder) bool() bool { return d.u8() != 0 }
func (d *decoder) lsn() LSN   { return LSN(d.u64()) }

// count reads the number of elements of size bytes each that follow, and
// refuses one that the rest of the data cannot hold, before anything is allocated.
func (d *decoder) count(size int) int { return d.bound(d.u32(), size) }

func (d *decoder) bound(n uint32, size int) int {
	if d.err == nil && uint64(n)*uint64(size) > uint64(len(d.b)-d.pos) {
		d.err = fmt.Errorf("%d elements of %d bytes do not fit", n, size)
	}
	if d.err != nil {
		return 0
	}
	return int(n)
}

// text reads up to and without the next zero byte.
func (d *decoder) text() string {
	if d.err != nil {
		return ""
	}
	for i := d.pos; i < len(d.b); i++ {
		if d.b[i] == 0 {
			s := string(d.b[d.pos:i])
			d.pos = i + 1
			return s
		}
	}
	d.err = fmt.Errorf("text without an end")
	return ""
}

func (d *decoder) u32s(n int) []uint32 {
	if n == 0 {
		return nil
	}
	s := make([]uint32, 0, n)
	for range n {
		s = append(s, d.u32())
	}
	return s
}

// relFile reads a RelFileLocator.
func (d *decoder) relFile() RelFile {
	return RelFile{Tablespace: d.u32(), Database: d.u32(), Relation: d.u32()}
}

func (d *decoder) relFiles(n int) []RelFile {
	if n == 0 {
		return nil
	}
	s := make([]RelFile, 0, n)
	for range n {
		s = append(s, d.relFile())
	}
	return s
}

// postgresEpoch is 2000-01-01 in seconds since 1970.
const postgresEpoch = 946684800

// timestamp reads a TimestampTz: microseconds since 2000. Zero stays the zero
// Time, as origins leave it.
func (d *decoder) timestamp() time.Time {
	us := int64(d.u64())
	if us == 0 {
		return time.Time{}
	}
	sec, rest := us/1e6, us%1e6
	return time.Unix(postgresEpoch+sec, rest*1000).UTC()
}

// unixTime reads a pg_time_t: seconds since 1970.
func (d *decoder) unixTime() time.Time { return time.Unix(int64(d.u64()), 0).UTC() }
