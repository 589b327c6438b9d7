package wal

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"testing"
)

// writer writes a log of made-up records, for what no server can be brought to
// write. It is a Source of what it wrote; pages that it skipped are zeros.
type writer struct {
	format   *Format
	size     SegmentSize
	pageSize LSN
	pages    map[LSN][]byte
	at       LSN // end of the log; may be a page boundary
	prev     LSN
}

const writerSystemID = 42

func newWriter(major int, size SegmentSize, pageSize LSN, start LSN) *writer {
	format, err := FormatByMajor(major)
	if err != nil {
		panic(err)
	}
	return &writer{format: format, size: size, pageSize: pageSize, pages: map[LSN][]byte{}, at: start, prev: 8}
}

// page makes room at the current position and returns the rest of its page.
// left is how much of a record is still to come.
func (w *writer) page(left int) []byte {
	off := w.at % w.pageSize
	if off == 0 {
		w.at += LSN(w.header(w.at, left))
		off = w.at % w.pageSize
	}
	return w.pages[w.at-off][off:]
}

// header begins a page and returns the size of its header.
func (w *writer) header(at LSN, left int) int {
	h := make([]byte, w.pageSize)
	w.pages[at] = h
	info, size := PageInfo(0), ShortHeaderSize
	if left > 0 {
		info |= PageFirstIsContrecord
	}
	if w.size.Offset(at) == 0 {
		info |= PageLongHeader
		size = LongHeaderSize
		binary.LittleEndian.PutUint64(h[24:], writerSystemID)
		binary.LittleEndian.PutUint32(h[32:], uint32(w.size))
		binary.LittleEndian.PutUint32(h[36:], uint32(w.pageSize))
	}
	binary.LittleEndian.PutUint16(h, w.format.PageMagic)
	binary.LittleEndian.PutUint16(h[2:], uint16(info))
	binary.LittleEndian.PutUint32(h[4:], 1)
	binary.LittleEndian.PutUint64(h[8:], uint64(at))
	binary.LittleEndian.PutUint32(h[16:], uint32(left))
	return size
}

func (w *writer) OpenSegment(_ context.Context, n SegmentNumber) (Segment, error) {
	if n > w.size.NumberBefore(w.at) {
		return nil, ErrNoSegment
	}
	return writtenSegment{w, n}, nil
}

type writtenSegment struct {
	w *writer
	n SegmentNumber
}

func (s writtenSegment) Close() error { return nil }

// ReadAt is asked for whole pages, or for less than one.
func (s writtenSegment) ReadAt(b []byte, off int64) (int, error) {
	clear(b)
	at := s.w.size.Start(s.n) + LSN(off)
	for n := 0; n < len(b); n += int(s.w.pageSize) {
		copy(b[n:], s.w.pages[at+LSN(n)])
	}
	return len(b), nil
}

// add writes a record with the given bytes behind its header and returns its position.
func (w *writer) add(id RMID, info uint8, body []byte) LSN {
	rec := make([]byte, RecordHeaderSize, RecordHeaderSize+len(body))
	rec = append(rec, body...)
	binary.LittleEndian.PutUint32(rec, uint32(len(rec)))
	binary.LittleEndian.PutUint64(rec[8:], uint64(w.prev))
	rec[16], rec[17] = info, uint8(id)
	crc := crc32.Update(0, castagnoli, rec[RecordHeaderSize:])
	binary.LittleEndian.PutUint32(rec[20:], crc32.Update(crc, castagnoli, rec[:20]))

	room := w.page(0)
	start := w.at
	for {
		n := copy(room, rec)
		w.at += LSN(n)
		if rec = rec[n:]; len(rec) == 0 {
			break
		}
		room = w.page(len(rec))
	}
	w.at = w.at.Align()
	w.prev = start
	return start
}

// mainData puts short or long main data into a record's form.
func mainData(n int) []byte {
	if n < 256 {
		return append([]byte{idDataShort, uint8(n)}, make([]byte, n)...)
	}
	return append(binary.LittleEndian.AppendUint32([]byte{idDataLong}, uint32(n)), make([]byte, n)...)
}

// blockHeader is a block reference without image and with data of length n.
func blockHeader(id uint8, flags uint8, n int, rel RelFile, block uint32) []byte {
	if n > 0 {
		flags |= blockHasData
	}
	b := binary.LittleEndian.AppendUint16([]byte{id, flags | uint8(rel.Fork)}, uint16(n))
	if flags&blockSameRel == 0 {
		for _, v := range []uint32{rel.Tablespace, rel.Database, rel.Relation} {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
	}
	return binary.LittleEndian.AppendUint32(b, block)
}

// Records of all lengths lie over pages and segments in all ways, header
// included, at every segment size and some page sizes.
func TestEveryAlignment(t *testing.T) {
	for _, pageSize := range []LSN{1024, 8192, 65536} {
		w := newWriter(15, MinSegmentSize, pageSize, 7<<20)
		var want []LSN
		for n := range 3000 {
			size := n % 531
			if n%7 == 0 {
				size = n * 3
			}
			want = append(want, w.add(RmHeap, 0, mainData(size)))
		}
		opt := Options{Start: 7 << 20, SegmentSize: w.size, PageSize: uint32(pageSize), SystemID: writerSystemID}
		r := newTestReader(t, w, opt)
		for i, lsn := range want {
			if !r.Next() || r.Record().LSN != lsn {
				t.Fatalf("pages of %d: record %d at %s, want %s: %v", pageSize, i, r.Record().LSN, lsn, r.End())
			}
		}
		if r.Next() || r.Err() != nil || r.Position() != w.at {
			t.Errorf("pages of %d: ends at %s with %v, want %s", pageSize, r.Position(), r.End(), w.at)
		}
		for i := 0; i < len(want); i += 37 {
			if rec, err := r.ReadAt(want[i]); err != nil || rec.LSN != want[i] {
				t.Fatalf("pages of %d: record %d: %v", pageSize, i, err)
			}
		}
		serial, _ := scanPieces(t, w, opt, 1, 1<<40)
		parallel, _ := scanPieces(t, w, opt, 3, pageSize*4)
		if dump(serial) != dump(parallel) || serial.Records != uint64(len(want)) {
			t.Errorf("pages of %d: %v in line, %v in parallel", pageSize, serial, parallel)
		}
	}
}

// Records cross from one segment into the next at every segment size.
func TestEverySegmentSize(t *testing.T) {
	for size := MinSegmentSize; size != 0 && size <= MaxSegmentSize; size *= 2 {
		start := size.End(1000) - DefaultPageSize
		w := newWriter(16, size, DefaultPageSize, start)
		a := w.add(RmHeap, 0, mainData(100))
		b := w.add(RmHeap, 0, mainData(20000))
		c := w.add(RmHeap, 0, mainData(100))
		r := newTestReader(t, w, Options{Start: start, SegmentSize: size})
		for _, want := range []LSN{a, b, c} {
			if !r.Next() || r.Record().LSN != want {
				t.Fatalf("segments of %d: %v", size, r.End())
			}
		}
		if r.Next() || r.Err() != nil || size.Number(c) != 1001 {
			t.Errorf("segments of %d: %v", size, r.End())
		}
	}
}

// A range may end behind the header of a page that is not there yet.
func TestEndBehindHeader(t *testing.T) {
	w := newWriter(17, MinSegmentSize, DefaultPageSize, 1<<20)
	for w.at < 2<<20 {
		w.add(RmHeap, 0, mainData(min(200, int(2<<20-w.at)-RecordHeaderSize-2)))
		if room := 2<<20 - w.at; room > 0 && room < 300 {
			w.add(RmHeap, 0, mainData(int(room)-RecordHeaderSize-2))
		}
	}
	if w.at != 2<<20 {
		t.Fatalf("the segment is filled up to %s", w.at)
	}
	for _, end := range []LSN{2 << 20, 2<<20 + LongHeaderSize} {
		opt := Options{Start: 1 << 20, End: end, SegmentSize: w.size}
		r := newTestReader(t, w, opt)
		for r.Next() {
		}
		if r.End() != nil || r.Position() != end {
			t.Errorf("to %s: at %s, %v", end, r.Position(), r.End())
		}
		for _, workers := range []int{1, 2} {
			if m, why := scanPieces(t, w, opt, workers, 64<<10); m.End != end || why != nil {
				t.Errorf("map to %s: at %s, %v", end, m.End, why)
			}
		}
	}
}

// Extensions' records are read for their block references; one that says it
// changes files otherwise makes the map incomplete, and so does an unknown
// operation of the server's own managers.
func TestCustomAndUnknownRecords(t *testing.T) {
	rel := RelFile{1663, 5, 16384, ForkMain}
	w := newWriter(17, MinSegmentSize, DefaultPageSize, 1<<20)
	start := w.at
	body := append(blockHeader(3, 0, 0, rel, 77), mainData(9)...)
	w.add(200, 0x30, body)
	special := w.add(200, 0x31, mainData(9))
	odd := w.add(RmStorage, 0x71, mainData(9))
	w.add(RmStorage, 0x70, mainData(9))
	m, end := scanPieces(t, w, Options{Start: start, SegmentSize: w.size}, 1, 1<<40)
	want := []UnknownChange{{special, 200, 0x31}, {odd, RmStorage, 0x71}}
	if m.Records != 4 || !slices.Equal(m.Unknown, want) || !m.Lookup(rel).Blocks.Contains(77) {
		t.Errorf("%v, unknown %+v, end %v", m, m.Unknown, end)
	}

	// 13 and 14 have no such managers.
	w = newWriter(14, MinSegmentSize, DefaultPageSize, 1<<20)
	w.add(200, 0x30, body)
	_, end = scanPieces(t, w, Options{Start: start, SegmentSize: w.size}, 1, 1<<40)
	if !errors.Is(end, ErrRecordHeader) {
		t.Errorf("a custom resource manager in 14 gives %v", end)
	}
}

// A whole record that makes no sense is corruption, wherever it stands.
func TestMalformedRecord(t *testing.T) {
	rel := RelFile{1663, 5, 16384, ForkMain}
	twice := append(blockHeader(1, 0, 0, rel, 1), blockHeader(1, blockSameRel, 0, rel, 2)...)
	for name, body := range map[string][]byte{
		"block twice":        append(twice, mainData(1)...),
		"same as nothing":    append(blockHeader(0, blockSameRel, 0, rel, 1), mainData(1)...),
		"bytes left over":    append(mainData(5), 0),
		"data too short":     {idDataShort, 10, 1},
		"unknown header":     append([]byte{100}, mainData(30)...),
		"cut in a header":    {0, 0, 0},
		"unknown fork":       append(blockHeader(0, 9, 0, rel, 1), mainData(1)...),
		"flag without data":  append([]byte{0, blockHasData, 0, 0}, make([]byte, 40)...),
		"image out of range": append([]byte{0, blockHasImage, 0, 0, 10, 0, 0, 0, 0}, make([]byte, 40)...),
	} {
		w := newWriter(15, MinSegmentSize, DefaultPageSize, 1<<20)
		start := w.at
		w.add(RmHeap, 0, mainData(50))
		bad := w.add(RmHeap, 0, body)
		r := newTestReader(t, w, Options{Start: start, SegmentSize: w.size})
		for r.Next() {
		}
		var c *Corruption
		if !errors.As(r.Err(), &c) || !errors.Is(c, ErrRecordContent) || c.End != bad || c.Last != start+LongHeaderSize {
			t.Errorf("%s: %v", name, r.End())
		}
		m, end := scanPieces(t, w, Options{Start: start, SegmentSize: w.size}, 1, 1<<40)
		if s, _ := stopOf(end); !errors.Is(end, ErrRecordContent) || m.Records != 1 || s.End != bad || s.Last != start+LongHeaderSize {
			t.Errorf("%s: a map of %d records, end %v", name, m.Records, end)
		}
	}
}

// Every block reference of a record counts, however many there are and however
// they are written.
func TestManyBlockReferences(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	w := newWriter(18, MinSegmentSize, DefaultPageSize, 1<<20)
	start := w.at
	want := newMap()
	for range 2000 {
		var heads, data []byte
		last := RelFile{}
		for id := range uint8(rng.IntN(maxBlockID + 2)) {
			rel, flags := RelFile{1663, 5, 16384 + rng.Uint32N(90), Fork(rng.IntN(4))}, uint8(0)
			if id > 0 && rng.IntN(2) == 0 {
				rel = RelFile{last.Tablespace, last.Database, last.Relation, rel.Fork}
				flags = blockSameRel
			}
			block, n := rng.Uint32N(10000), rng.IntN(3)*7
			heads = append(heads, blockHeader(id, flags, n, rel, block)...)
			data = append(data, make([]byte, n)...)
			want.file(rel).Blocks.add(block)
			last = rel
		}
		main := rng.IntN(2) * 40
		if main > 0 {
			heads = append(heads, mainData(main)[:2]...)
		}
		w.add(RmGeneric, 0, append(append(heads, data...), make([]byte, main)...))
	}
	m, end := scanPieces(t, w, Options{Start: start, SegmentSize: w.size}, 2, 64<<10)
	if m.Len() != want.Len() || m.Records != 2000 {
		t.Fatalf("%v, want %d files: %v", m, want.Len(), end)
	}
	for c := range want.Files() {
		if !slices.Equal(slices.Collect(c.Blocks.All()), slices.Collect(m.Lookup(c.File).Blocks.All())) {
			t.Errorf("%s differs", c.File)
		}
	}
}

// A length that the log does not bear out costs no memory.
func TestHugeLength(t *testing.T) {
	w := newWriter(15, MinSegmentSize, DefaultPageSize, 1<<20)
	start := w.at
	w.add(RmHeap, 0, mainData(50))
	lie := w.add(RmHeap, 0, mainData(50))
	binary.LittleEndian.PutUint32(w.pages[start][lie-start:], 900<<20)
	before := allocated()
	r := newTestReader(t, w, Options{Start: start, SegmentSize: w.size})
	for r.Next() {
	}
	var torn *TornTail
	if grown := allocated() - before; grown > 4<<20 || !errors.As(r.Err(), &torn) || torn.End != lie {
		t.Errorf("%d bytes allocated, %v", grown, r.End())
	}
}
