package wal

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"runtime/metrics"
	"strings"
	"testing"
)

// sampleRecords returns one record of each kind that a fixture holds.
func sampleRecords(f testing.TB, major int) (list [][]byte) {
	seen := map[string]bool{}
	fx := loadFixture(f, major)
	r := newTestReader(f, fx.sources[0], fx.options(0))
	for r.Next() {
		rec := r.Record()
		if key := rec.RMID.String() + string(rune(rec.Info)); !seen[key] && rec.TotalLen < 2000 {
			seen[key] = true
			list = append(list, append([]byte(nil), r.raw...))
		}
	}
	return list
}

// Whatever the bytes, parsing and decoding a record neither panics nor reads
// or allocates beyond it, and both ways of finding its blocks agree.
func FuzzRecord(f *testing.F) {
	for _, major := range testMajors {
		for _, raw := range sampleRecords(f, major) {
			f.Add(raw, major)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte, major int) {
		format, err := FormatByMajor(major)
		if err != nil || len(raw) < RecordHeaderSize || len(raw) > 1<<20 {
			return
		}
		raw = append([]byte(nil), raw...)
		binary.LittleEndian.PutUint32(raw, uint32(len(raw)))
		rec := &Record{format: format}
		err = rec.parse(raw, DefaultBlockSize)
		plain := newMap()
		isPlain := plain.addPlain(raw, format, DefaultBlockSize)
		if err != nil {
			if isPlain && rec.RMID != RmTransaction {
				t.Fatalf("a malformed record was taken for a plain one: %v", err)
			}
			return
		}
		total := len(rec.Main)
		for _, b := range rec.Blocks {
			total += len(b.Data) + len(b.Image.Data)
		}
		if total > len(raw) {
			t.Fatalf("%d bytes of data in a record of %d", total, len(raw))
		}
		if _, err := Decode(rec); err != nil {
			return
		}
		if isPlain {
			comparePlain(t, plain, rec)
		}
	})
}

func comparePlain(t *testing.T, plain *Map, rec *Record) {
	want := newMap()
	images := uint64(0)
	for _, b := range rec.Blocks {
		want.file(b.File).Blocks.add(b.Block)
		if b.HasImage {
			images++
		}
	}
	if plain.Len() != want.Len() || plain.Refs != uint64(len(rec.Blocks)) || plain.Images != images {
		t.Fatalf("plain: %d files, %d references, %d images; parsed: %d, %d, %d", plain.Len(), plain.Refs, plain.Images, want.Len(), len(rec.Blocks), images)
	}
	for c := range want.Files() {
		if got := plain.Lookup(c.File); got == nil || got.Blocks.Len() != c.Blocks.Len() {
			t.Fatalf("%s differs", c.File)
		}
	}
}

// Whatever a segment holds, reading it ends with a typed result, forward, in
// parallel and backward, and allocates no more than the segment can justify.
func FuzzSegment(f *testing.F) {
	for _, major := range []int{13, 15, 18} {
		for _, pages := range []int{1, 2} {
			e := newExcerpt(f, major, 1, pages)
			f.Add(append([]byte(nil), e.seg...), uint16(40), false)
		}
	}
	f.Fuzz(func(t *testing.T, seg []byte, at uint16, fix bool) {
		if len(seg) > 64<<10 {
			return
		}
		const n = 3
		size := MinSegmentSize
		seg = append([]byte(nil), seg...)
		if fix {
			fixUp(seg, size.Start(n))
		}
		src := MemorySource{n: seg}
		opt := Options{Start: size.Start(n), FindFirst: true, SegmentSize: size}
		before := allocated()
		m, end := scanPieces(t, src, opt, 1, 16<<10)
		if fix { // what gets that far may as well be cut otherwise
			if m2, end2 := scanPieces(t, src, opt, 2, 8<<10); dump(m2) != dump(m) || end2.Error() != end.Error() {
				t.Fatalf("in parallel %v, %v; in line %v, %v", m2, end2, m, end)
			}
		}
		if _, kind := stopOf(end); kind == "" && (end == nil || !strings.Contains(end.Error(), "unknown WAL format")) {
			t.Fatalf("untyped result %v", end)
		}
		r, err := NewReader(context.Background(), src, opt)
		if err != nil {
			t.Fatal(err)
		}
		records := uint64(0)
		for r.Next() {
			records++
			if r.Record().End <= r.Record().LSN || r.Record().Prev >= r.Record().LSN {
				t.Fatalf("record from %s to %s, before it %s", r.Record().LSN, r.Record().End, r.Record().Prev)
			}
		}
		if records < m.Records {
			t.Fatalf("%d records, but %d in the map", records, m.Records)
		}
		_ = WalkBack(context.Background(), src, opt, opt.Start+LSN(at), func(*Record) (bool, error) { return true, nil })
		if grown := allocated() - before; grown > 64<<20 {
			t.Fatalf("%d bytes allocated for a segment of %d", grown, len(seg))
		}
	})
}

// allocated returns the bytes allocated so far in the whole process.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// fixUp gives the pages their addresses and the records inside one page their
// checksums, so that changes get past the first checks.
func fixUp(seg []byte, base LSN) {
	for page := 0; page+DefaultPageSize <= len(seg); page += DefaultPageSize {
		binary.LittleEndian.PutUint64(seg[page+8:], uint64(base)+uint64(page))
		at := ShortHeaderSize
		if page == 0 {
			at = LongHeaderSize
		}
		if binary.LittleEndian.Uint16(seg[page+2:])&uint16(PageFirstIsContrecord) != 0 {
			at += int(min(binary.LittleEndian.Uint32(seg[page+16:]), DefaultPageSize)+7) &^ 7
		}
		for at+RecordHeaderSize <= DefaultPageSize {
			rec := seg[page+at : page+DefaultPageSize]
			total := int(binary.LittleEndian.Uint32(rec))
			if total < RecordHeaderSize || total > len(rec) {
				break
			}
			crc := crc32.Update(0, castagnoli, rec[RecordHeaderSize:total])
			binary.LittleEndian.PutUint32(rec[20:], crc32.Update(crc, castagnoli, rec[:20]))
			at += (total + 7) &^ 7
		}
	}
}

func FuzzPageHeader(f *testing.F) {
	for _, major := range testMajors {
		fx := loadFixture(f, major)
		for _, seg := range fx.sources[0] {
			f.Add(seg[:LongHeaderSize])
			f.Add(seg[DefaultPageSize : DefaultPageSize+ShortHeaderSize])
			break
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParsePageHeader(b)
		if err == nil && h.Validate() == nil && len(b) < h.Size() {
			t.Fatalf("a header of %d bytes from %d", h.Size(), len(b))
		}
	})
}

func FuzzFileName(f *testing.F) {
	for _, name := range []string{"000000010000000000000003", "000000010000000000000003.partial", "00000002.history", "000000010000000000000003.00000028.backup", "x"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		n, ok := ParseFileName(name)
		if ok != (n != FileName{}) && name != "" || ok && n.String() != name {
			t.Fatalf("%q parses as %+v, %v", name, n, ok)
		}
		for size := MinSegmentSize; size != 0 && size <= MaxSegmentSize; size *= 2 {
			if seg, fits := n.Number(size); fits && n.Kind == FileSegment && SegmentName(n.Timeline, seg, size) != name {
				t.Fatalf("%q is segment %d of size %d, which is named otherwise", name, seg, size)
			}
		}
	})
}

func FuzzLSN(f *testing.F) {
	f.Add("0/16B3748")
	f.Fuzz(func(t *testing.T, s string) {
		if l, err := ParseLSN(s); err == nil {
			if again, err := ParseLSN(l.String()); err != nil || again != l {
				t.Fatalf("%q is %s, which is %s", s, l, again)
			}
		}
	})
}
