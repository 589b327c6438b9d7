package wal

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// naive is a page map written down as plainly as possible, from whole records.
type naive struct {
	blocks map[RelFile]map[uint32]bool
	limit  map[RelFile]uint32
	gone   map[RelFile]LSN
	refs   uint64
}

func naiveMap(t *testing.T, r *Reader) *naive {
	n := &naive{blocks: map[RelFile]map[uint32]bool{}, limit: map[RelFile]uint32{}, gone: map[RelFile]LSN{}}
	cut := func(f RelFile, limit uint32) {
		if old, ok := n.limit[f]; !ok || limit < old {
			n.limit[f] = limit
		}
		for b := range n.blocks[f] {
			if b >= limit {
				delete(n.blocks[f], b)
			}
		}
	}
	drop := func(at LSN, files []RelFile) {
		for _, f := range files {
			cut(f, 0)
			n.gone[f] = at
			for f.Fork = 1; f.Fork <= MaxFork; f.Fork++ {
				delete(n.blocks, f)
				delete(n.limit, f)
			}
		}
	}
	for r.Next() {
		for _, b := range r.Record().Blocks {
			if n.blocks[b.File] == nil {
				n.blocks[b.File] = map[uint32]bool{}
			}
			n.blocks[b.File][b.Block] = true
			n.refs++
		}
		d, err := Decode(r.Record())
		if err != nil {
			t.Fatal(err)
		}
		switch d := d.(type) {
		case *Commit:
			drop(r.Record().LSN, d.Dropped)
		case *Abort:
			drop(r.Record().LSN, d.Dropped)
		case *RelationCreate:
			cut(d.File, 0)
		case *RelationTruncate:
			for fork, flag := range map[Fork]uint32{ForkMain: TruncateHeap, ForkVM: TruncateVM, ForkFSM: TruncateFSM} {
				f := d.File
				f.Fork = fork
				if d.Flags&flag != 0 {
					limit := uint32(0)
					if fork == ForkMain {
						limit = d.Blocks
					}
					cut(f, limit)
				}
			}
		case *DatabaseDrop:
			for f := range n.blocks {
				if f.Database == d.Database {
					delete(n.blocks, f)
				}
			}
			for f := range n.limit {
				if f.Database == d.Database {
					delete(n.limit, f)
				}
			}
		}
	}
	return n
}

// dump writes a map down in full, to compare two of them.
func dump(m *Map) string {
	var b strings.Builder
	fmt.Fprintln(&b, m.Records, m.Bytes, m.Refs, m.Images, m.Start, m.Last, m.End)
	for _, e := range m.Databases {
		fmt.Fprintln(&b, "database", e.LSN, e.Create, e.Drop)
	}
	for _, e := range m.Tablespaces {
		fmt.Fprintln(&b, "tablespace", e.LSN, e.Create, e.Drop)
	}
	for _, e := range m.Settings {
		fmt.Fprintln(&b, "setting", e.LSN, e.FullPageWrites, e.Parameters)
	}
	fmt.Fprintln(&b, m.RelationMaps, m.Unknown)
	for c := range m.Files() {
		fmt.Fprintln(&b, c.File, c.Limit, c.Truncated, c.Created, c.Dropped, c.Blocks.Len(), slices.Collect(c.Blocks.All()))
	}
	return b.String()
}

func scanPieces(t *testing.T, src Source, opt Options, workers int, size LSN) (*Map, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s, err := newScan(ctx, src, ScanOptions{Options: opt, Workers: workers}, size)
	if err != nil {
		t.Fatal(err)
	}
	defer s.serial.Close()
	s.run(cancel)
	return s.m, s.why
}

func TestMapEqualsNaive(t *testing.T) {
	eachTimeline(t, func(t *testing.T, f *fixture, i int) {
		want := naiveMap(t, newTestReader(t, f.sources[i], f.options(i)))
		m, end, err := ScanMap(context.Background(), f.sources[i], ScanOptions{Options: f.options(i)})
		if err != nil || m.End != f.Timelines[i].End || end == nil {
			t.Fatalf("map to %s, %v, %v", m.End, end, err)
		}
		if len(m.Unknown) != 0 || m.Refs != want.refs || m.Records != uint64(len(f.records[i])) {
			t.Errorf("unknown %v, %d references, want %d", m.Unknown, m.Refs, want.refs)
		}
		for file, blocks := range want.blocks {
			c := m.Lookup(file)
			if c == nil || c.Blocks.Len() != len(blocks) {
				t.Fatalf("%s: %+v, want %d blocks", file, c, len(blocks))
			}
			for b := range blocks {
				if !c.Blocks.Contains(b) {
					t.Fatalf("%s: block %d is missing", file, b)
				}
			}
			if limit, ok := want.limit[file]; ok && limit != c.Limit || !ok && c.Limit != NoLimit {
				t.Errorf("%s: limit %d, want %d", file, c.Limit, limit)
			}
			if c.Dropped != want.gone[file] {
				t.Errorf("%s: dropped at %s, want %s", file, c.Dropped, want.gone[file])
			}
		}
		for c := range m.Files() {
			if c.Blocks.Len() > 0 && want.blocks[c.File] == nil {
				t.Errorf("%s: not changed", c.File)
			}
		}
	})
}

// Any number of workers and any cut into pieces give the same map and end.
func TestMapIsTheSameInParallel(t *testing.T) {
	eachTimeline(t, func(t *testing.T, f *fixture, i int) {
		one, why := scanPieces(t, f.sources[i], f.options(i), 1, 1<<40)
		want := dump(one)
		for _, size := range []LSN{8192, 64 << 10, 1 << 20, 3 << 20} {
			if size == 8192 && i == 0 && f.Major != 15 {
				continue // slow, and once is enough
			}
			for _, workers := range []int{1, 2, 5} {
				m, end := scanPieces(t, f.sources[i], f.options(i), workers, size)
				if got := dump(m); got != want {
					t.Errorf("%d workers on pieces of %d bytes: another map\n%s\nwant\n%s", workers, size, firstDiff(got, want), firstDiff(want, got))
				}
				if fmt.Sprint(end) != fmt.Sprint(why) {
					t.Errorf("%d workers on pieces of %d bytes: end %v, want %v", workers, size, end, why)
				}
			}
		}
	})
}

// firstDiff returns the first line of a that is not b's.
func firstDiff(a, b string) string {
	la, lb := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i, l := range la {
		if i >= len(lb) || l != lb[i] {
			return l
		}
	}
	return ""
}

// A damaged log gives the same map and the same end in parallel, too.
func TestDamageIsTheSameInParallel(t *testing.T) {
	f := loadFixture(t, 16)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 40 {
		src := f.sources[0].clone()
		n := SegmentNumber(rng.IntN(len(src))) + f.SegmentSize.Number(f.Timelines[0].Start)
		switch rng.IntN(4) {
		case 0:
			delete(src, n)
		case 1:
			src[n] = src[n][:rng.IntN(len(src[n]))]
		case 2:
			clear(src[n][rng.IntN(len(src[n])):])
		default:
			src[n][rng.IntN(len(src[n]))] ^= 1 << rng.IntN(8)
		}
		one, why := scanPieces(t, src, f.options(0), 1, 1<<40)
		m, end := scanPieces(t, src, f.options(0), 3, 128<<10)
		if a, b := dump(m), dump(one); a != b || fmt.Sprint(end) != fmt.Sprint(why) {
			t.Fatalf("in parallel %v\n%s\nfront to back %v\n%s", end, firstDiff(a, b), why, firstDiff(b, a))
		}
	}
}

func (m MemorySource) clone() MemorySource {
	c := MemorySource{}
	for n, b := range m {
		c[n] = slices.Clone(b)
	}
	return c
}

// Scanning allocates for the map, not for the records.
func TestScanDoesNotAllocatePerRecord(t *testing.T) {
	f := loadFixture(t, 15)
	opt := f.options(0)
	opt.End = 0x0A00000
	var records uint64
	allocs := testing.AllocsPerRun(3, func() {
		m, _ := scanPieces(t, f.sources[0], opt, 1, 1<<40)
		records = m.Records
	})
	if records < 6000 || allocs > float64(records)/5 {
		t.Errorf("%v allocations for %d records", allocs, records)
	}
}

func TestBlockSet(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range 200 {
		var a, b BlockSet
		want := map[uint32]bool{}
		span := uint32(1) << (4 + round%16)
		for range rng.IntN(300) {
			v := rng.Uint32N(span)
			want[v] = true
			if rng.IntN(2) == 0 {
				a.add(v)
			} else {
				b.add(v)
			}
		}
		a.union(&b)
		limit := rng.Uint32N(span + 1)
		a.truncate(limit)
		for v := range want {
			if v >= limit {
				delete(want, v)
			}
		}
		got := slices.Collect(a.All())
		if len(got) != len(want) || a.Len() != len(want) || !slices.IsSorted(got) {
			t.Fatalf("limit %d: %d members, Len %d, want %d", limit, len(got), a.Len(), len(want))
		}
		total := uint32(0)
		for first, n := range a.Ranges() {
			total += n
			if first > 0 && a.Contains(first-1) || a.Contains(first+n) {
				t.Fatalf("range %d+%d is not maximal", first, n)
			}
			for v := first; v < first+n; v++ {
				if !want[v] {
					t.Fatalf("%d is no member", v)
				}
			}
		}
		if int(total) != len(want) {
			t.Fatalf("ranges cover %d, want %d", total, len(want))
		}
	}
}

func TestBlockSetStopsEarly(t *testing.T) {
	var s BlockSet
	for _, b := range []uint32{1, 2, 9, 5000} {
		s.add(b)
	}
	for range s.All() {
		break
	}
	for first, n := range s.Ranges() {
		if first != 1 || n != 2 {
			t.Errorf("first range is %d+%d", first, n)
		}
		break
	}
}
