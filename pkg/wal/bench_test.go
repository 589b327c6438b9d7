package wal

import (
	"context"
	"testing"
)

// BenchmarkReader and BenchmarkScanMap read the same 13 MB of a real server's
// log over and over. The comparison with pg_waldump on larger files is in bench/.
func BenchmarkReader(b *testing.B) {
	f := loadFixture(b, 15)
	r := newTestReader(b, f.sources[0], f.options(0))
	b.SetBytes(int64(f.Timelines[0].End - f.Timelines[0].Start))
	b.ReportAllocs()
	for b.Loop() {
		r.reset(f.records[0][0].LSN)
		for r.Next() {
		}
	}
}

func BenchmarkScanMap(b *testing.B) {
	f := loadFixture(b, 15)
	b.SetBytes(int64(f.Timelines[0].End - f.Timelines[0].Start))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := ScanMap(context.Background(), f.sources[0], ScanOptions{Options: f.options(0), Workers: 1}); err != nil {
			b.Fatal(err)
		}
	}
}

// Small records on whole pages: what a record costs.
func BenchmarkScanSmallRecords(b *testing.B) {
	w := newWriter(15, DefaultSegmentSize, DefaultPageSize, 16<<20)
	body := append(blockHeader(0, 0, 12, RelFile{1663, 5, 16384, ForkMain}, 1), mainData(3)[:2]...)
	body = append(body, make([]byte, 12+3)...)
	for w.at < 31<<20 {
		body[16]++ // another block
		w.add(RmHeap, 0, body)
	}
	src := MemorySource{1: make([]byte, 15<<20)}
	for at, page := range w.pages {
		if off := int(at - 16<<20); off < len(src[1]) {
			copy(src[1][off:], page)
		}
	}
	b.SetBytes(15 << 20)
	for b.Loop() {
		if _, _, err := ScanMap(context.Background(), src, ScanOptions{Options: Options{Start: 16 << 20, SegmentSize: DefaultSegmentSize}, Workers: 1}); err != nil {
			b.Fatal(err)
		}
	}
}
