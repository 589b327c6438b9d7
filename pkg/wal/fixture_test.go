package wal

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

var testMajors = []int{13, 14, 15, 16, 17, 18}

// fixture is what a real server wrote (see testdata/generate), and the answers
// of PostgreSQL's own pg_waldump.
type fixture struct {
	Major       int         `json:"major"`
	SegmentSize SegmentSize `json:"segment_size"`
	SystemID    uint64      `json:"system_id,string"`
	CutOff      LSN         `json:"cut_off"`
	Timelines   []struct {
		Timeline TimelineID `json:"timeline"`
		Start    LSN        `json:"start"`
		End      LSN        `json:"end"`
	} `json:"timelines"`

	sources []MemorySource // by index of Timelines
	records [][]oracleRecord
}

// oracleRecord is one line of records.<timeline>.tsv.gz.
type oracleRecord struct {
	LSN, Prev     LSN
	XID           uint32
	RMGR          string
	RecLen, Total uint32
	Refs, Desc    string
}

var fixtures = struct {
	sync.Mutex
	m map[int]*fixture
}{m: map[int]*fixture{}}

func loadFixture(t testing.TB, major int) *fixture {
	t.Helper()
	fixtures.Lock()
	defer fixtures.Unlock()
	if f := fixtures.m[major]; f != nil {
		return f
	}
	dir := filepath.Join("..", "..", "testdata", strconv.Itoa(major))
	b, err := os.ReadFile(filepath.Join(dir, "fixture.json"))
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{}
	if err := json.Unmarshal(b, f); err != nil {
		t.Fatal(err)
	}
	for _, tl := range f.Timelines {
		f.sources = append(f.sources, f.loadSegments(t, dir, tl.Timeline))
		text := gunzip(t, filepath.Join(dir, fmt.Sprintf("records.%d.tsv.gz", tl.Timeline)))
		f.records = append(f.records, parseOracle(t, text))
	}
	fixtures.m[major] = f
	return f
}

func (f *fixture) loadSegments(t testing.TB, dir string, tli TimelineID) MemorySource {
	t.Helper()
	src := MemorySource{}
	names, _ := filepath.Glob(filepath.Join(dir, "wal", "*.gz"))
	for _, path := range names {
		name, ok := ParseFileName(strings.TrimSuffix(filepath.Base(path), ".gz"))
		n, fits := name.Number(f.SegmentSize)
		if !ok || !fits {
			t.Fatalf("%s: not a segment's name", path)
		}
		if name.Timeline == tli {
			src[n] = gunzip(t, path)
		}
	}
	return src
}

func gunzip(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err == nil {
		b, err = io.ReadAll(z)
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return b
}

func parseOracle(t testing.TB, text []byte) (list []oracleRecord) {
	t.Helper()
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		c := strings.Split(lines.Text(), "\t")
		if len(c) != 8 {
			t.Fatalf("line %q has %d columns", lines.Text(), len(c))
		}
		r := oracleRecord{RMGR: c[3], Refs: c[6], Desc: c[7]}
		for i, p := range []*LSN{&r.LSN, &r.Prev} {
			v, err := ParseLSN(c[i])
			if err != nil {
				t.Fatal(err)
			}
			*p = v
		}
		for i, p := range map[int]*uint32{2: &r.XID, 4: &r.RecLen, 5: &r.Total} {
			v, err := strconv.ParseUint(c[i], 10, 32)
			if err != nil {
				t.Fatal(err)
			}
			*p = uint32(v)
		}
		list = append(list, r)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return list
}

func (f *fixture) options(i int) Options {
	return Options{Start: f.Timelines[i].Start, FindFirst: true, SegmentSize: f.SegmentSize}
}

// eachTimeline runs test as a subtest for every timeline of every major.
func eachTimeline(t *testing.T, test func(t *testing.T, f *fixture, i int)) {
	for _, major := range testMajors {
		f := loadFixture(t, major)
		for i := range f.Timelines {
			t.Run(fmt.Sprintf("%d/timeline%d", major, f.Timelines[i].Timeline), func(t *testing.T) { test(t, f, i) })
		}
	}
}

func newTestReader(t testing.TB, src Source, opt Options) *Reader {
	t.Helper()
	r, err := NewReader(context.Background(), src, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// asOracle puts a record in the oracle's words.
func asOracle(r *Record) oracleRecord {
	o := oracleRecord{LSN: r.LSN, Prev: r.Prev, XID: r.XID, RMGR: r.RMID.String(), RecLen: r.TotalLen, Total: r.TotalLen}
	var refs []string
	for i := range r.Blocks {
		b := &r.Blocks[i]
		s := fmt.Sprintf("%d:%s:%d", b.ID, b.File, b.Block)
		if b.HasImage {
			o.RecLen -= uint32(len(b.Image.Data))
			if b.Image.Apply {
				s += ":image"
			} else {
				s += ":check"
			}
		}
		refs = append(refs, s)
	}
	o.Refs = strings.Join(refs, ",")
	return o
}

// Every record of every fixture is what pg_waldump says it is.
func TestRecordsEqualOracle(t *testing.T) {
	eachTimeline(t, func(t *testing.T, f *fixture, i int) {
		r := newTestReader(t, f.sources[i], f.options(i))
		want := f.records[i]
		n := 0
		for ; r.Next(); n++ {
			if n == len(want) {
				t.Fatalf("record at %s is one more than the oracle's %d", r.Record().LSN, n)
			}
			got := asOracle(r.Record())
			got.Desc = want[n].Desc
			if got != want[n] {
				t.Fatalf("record %d:\n got %+v\nwant %+v", n, got, want[n])
			}
		}
		if n != len(want) {
			t.Errorf("%d records, want %d: %v", n, len(want), r.End())
		}
		var end *EndOfLog
		if !errors.As(r.End(), &end) || end.End != f.Timelines[i].End || !errors.Is(end, ErrNoRecord) || r.Err() != nil {
			t.Errorf("end is %v, want a clean one at %s", r.End(), f.Timelines[i].End)
		}
		if r.SystemID() != f.SystemID || r.Format().Major != f.Major {
			t.Errorf("system %d of PostgreSQL %d, want %d of %d", r.SystemID(), r.Format().Major, f.SystemID, f.Major)
		}
	})
}

// The fixtures hold every form of page image that their servers could write.
func TestFixturesHoldAllImages(t *testing.T) {
	for _, major := range testMajors {
		f := loadFixture(t, major)
		got := map[string]bool{}
		r := newTestReader(t, f.sources[0], f.options(0))
		for r.Next() {
			for _, b := range r.Record().Blocks {
				if b.HasImage {
					got[fmt.Sprintf("%s hole=%v", b.Image.Compression, b.Image.HoleLength > 0)] = true
					if !b.Image.Apply {
						got["check"] = true
					}
				}
				if b.SameRel {
					got["same relation"] = true
				}
			}
			if rec := r.Record(); rec.Origin != 0 {
				got["origin"] = true
			} else if rec.ToplevelXID != 0 {
				got["top-level xid"] = true
			}
		}
		want := []string{"none hole=true", "none hole=false", "pglz hole=true", "check", "same relation", "origin"}
		if major >= 15 {
			want = append(want, "top-level xid")
		}
		if major == 15 { // built with both libraries
			want = append(want, "lz4 hole=true", "zstd hole=true")
		}
		for _, w := range want {
			if !got[w] {
				t.Errorf("PostgreSQL %d: no record with %q; there are %v", major, w, got)
			}
		}
	}
}

func TestWalkBack(t *testing.T) {
	eachTimeline(t, func(t *testing.T, f *fixture, i int) {
		want := f.records[i]
		n := len(want)
		err := WalkBack(context.Background(), f.sources[i], Options{SegmentSize: f.SegmentSize}, want[n-1].LSN, func(r *Record) (bool, error) {
			n--
			if r.LSN != want[n].LSN || r.TotalLen != want[n].Total {
				return false, fmt.Errorf("record %d is at %s, want %s", n, r.LSN, want[n].LSN)
			}
			return n > 0, nil
		})
		if err != nil || n != 0 {
			t.Fatalf("stopped before record %d: %v", n, err)
		}
		// The record before the first one is not there.
		if want[0].Prev < f.Timelines[i].Start {
			err = WalkBack(context.Background(), f.sources[i], Options{SegmentSize: f.SegmentSize}, want[0].LSN, func(*Record) (bool, error) { return true, nil })
			if !errors.Is(err, ErrNoSegment) {
				t.Errorf("walk beyond the first segment: %v", err)
			}
		}
	})
}

// From any position the first record behind it is found by page headers alone.
func TestFirstRecord(t *testing.T) {
	f := loadFixture(t, 15)
	opt := Options{SegmentSize: f.SegmentSize}
	want := f.records[0]
	next := 0
	for lsn := f.Timelines[0].Start; lsn < want[len(want)-1].LSN; lsn += 8191 {
		for want[next].LSN < lsn {
			next++
		}
		got, err := FirstRecord(context.Background(), f.sources[0], opt, lsn)
		if err != nil || got != want[next].LSN {
			t.Fatalf("first record from %s: %s, %v; want %s", lsn, got, err, want[next].LSN)
		}
	}
}

// A page boundary names the record behind the page's header.
func TestReadAtBoundary(t *testing.T) {
	eachTimeline(t, func(t *testing.T, f *fixture, i int) {
		r := newTestReader(t, f.sources[i], Options{SegmentSize: f.SegmentSize})
		tried := 0
		for _, want := range f.records[i] {
			if r.boundary(want.LSN) == want.LSN {
				continue
			}
			tried++
			rec, err := r.ReadAt(r.boundary(want.LSN))
			if err != nil || rec.LSN != want.LSN {
				t.Fatalf("read at the page before %s: %v", want.LSN, err)
			}
		}
		if i == 0 && tried == 0 {
			t.Error("no record begins a page")
		}
	})
}

func TestReaderStopsAtEnd(t *testing.T) {
	f := loadFixture(t, 17)
	for _, n := range []int{0, 1, 500, 1000} {
		opt := f.options(0)
		opt.End = f.records[0][n].LSN
		r := newTestReader(t, f.sources[0], opt)
		got := 0
		for r.Next() {
			got++
		}
		if got != n || r.Err() != nil || r.End() != nil {
			t.Errorf("%d records before %s, want %d: %v", got, opt.End, n, r.End())
		}
		if n > 0 && r.boundary(opt.End) != r.Position() {
			t.Errorf("stopped at %s, want %s", r.Position(), opt.End)
		}
	}
}

func TestReaderDoesNotAllocate(t *testing.T) {
	f := loadFixture(t, 15)
	opt := f.options(0)
	opt.End = 0x0B00000 // before the message of 2.5 MB, which makes the buffer grow
	r := newTestReader(t, f.sources[0], opt)
	for r.Next() {
	}
	start := f.records[0][0].LSN
	records := 0
	allocs := testing.AllocsPerRun(3, func() {
		records = 0
		r.reset(start)
		for r.Next() {
			records++
		}
	})
	if records < 5000 || allocs > 25 { // the segments are opened anew
		t.Errorf("%v allocations for %d records", allocs, records)
	}
}

func (r *Reader) reset(start LSN) {
	r.seek(start)
	r.timeline, r.stopped, r.why, r.begun = 0, false, nil, true
}
