package rewind

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"tidemark/pkg/wal"
)

// recordedScan is a reading of the first timeline of a real server's WAL in testdata.
func recordedScan(t *testing.T, major int) *lostScan {
	t.Helper()
	dir := filepath.Join("..", "..", "testdata", fmt.Sprint(major))
	data, err := os.ReadFile(filepath.Join(dir, "fixture.json"))
	if err != nil {
		t.Fatal(err)
	}
	var f struct {
		SegmentSize wal.SegmentSize `json:"segment_size"`
		Timelines   []struct{ Start, End wal.LSN }
	}
	if err := json.Unmarshal(data, &f); err != nil {
		t.Fatal(err)
	}
	src := wal.MemorySource{}
	names, _ := filepath.Glob(filepath.Join(dir, "wal", "00000001*.gz"))
	for _, path := range names {
		name, _ := wal.ParseFileName(strings.TrimSuffix(filepath.Base(path), ".gz"))
		n, ok := name.Number(f.SegmentSize)
		if !ok {
			continue
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(file)
		if err != nil {
			t.Fatal(err)
		}
		if src[n], err = io.ReadAll(z); err != nil {
			t.Fatal(err)
		}
		file.Close()
	}
	tl := f.Timelines[0]
	return &lostScan{src: src, fork: tl.Start + (tl.End-tl.Start)/3, size: 1 << 20, workers: 4, read: func(int64) {},
		opt: wal.Options{Start: tl.Start, End: tl.End, SegmentSize: f.SegmentSize, Major: major}}
}

// inLine is the serial reading of the scan's range.
func inLine(t *testing.T, s *lostScan) *lostWork {
	t.Helper()
	w, err := s.serial(func(fn func(*wal.Record) error) error {
		o := s.opt
		o.FindFirst = true
		r, err := wal.NewReader(t.Context(), s.src, o)
		if err != nil {
			return err
		}
		defer r.Close()
		for r.Next() {
			if err := fn(r.Record()); err != nil {
				return err
			}
		}
		return r.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestLostInPieces reads WAL from front to back, in one piece, and by several
// workers in pieces so small that transactions and records span them: the
// answer is always the same.
func TestLostInPieces(t *testing.T) {
	for _, major := range []int{13, 14, 15, 16, 17, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			s := recordedScan(t, major)
			size := s.size
			s.size = 1 << 40 // one piece
			want := inLine(t, s)
			if want.committed.len() == 0 || len(want.files) == 0 {
				t.Fatalf("%d lost transactions on %d files", want.committed.len(), len(want.files))
			}
			for _, s.size = range []wal.LSN{8 << 10, 64 << 10, size} {
				sameLost(t, fmt.Sprintf("from front to back, %d bytes at a time", s.size), want, inLine(t, s))
				for _, s.workers = range []int{2, 7} {
					got, err := s.parallel(t.Context())
					if err != nil || got == nil {
						t.Fatalf("pieces of %d bytes, %d workers: %v, %v", s.size, s.workers, got, err)
					}
					sameLost(t, fmt.Sprintf("pieces of %d bytes, %d workers", s.size, s.workers), want, got)
				}
			}
		})
	}
}

func sameLost(t *testing.T, what string, want, got *lostWork) {
	t.Helper()
	if !reflect.DeepEqual(want, got) {
		t.Errorf("%s: %d transactions on %d files, %d prepared, %d commits; wanted %d on %d, %d prepared, %d commits, or the same in other words",
			what, got.committed.len(), len(got.files), len(got.prepared), len(got.commits),
			want.committed.len(), len(want.files), len(want.prepared), len(want.commits))
	}
}

// TestLostPiecesFault reads WAL with a byte turned: no answer is given in
// pieces, so that reading from front to back says what is wrong and where.
func TestLostPiecesFault(t *testing.T) {
	s := recordedScan(t, 15)
	n := s.opt.SegmentSize.Number(s.opt.Start + (s.opt.End-s.opt.Start)/2)
	segment := s.src.(wal.MemorySource)[n]
	segment[len(segment)/2] ^= 1
	if got, err := s.parallel(t.Context()); got != nil || err != nil {
		t.Errorf("%v, %v", got, err)
	}
}

// TestLostSpansPieces has the changes of a subtransaction, of its parent and
// their commit in three pieces.
func TestLostSpansPieces(t *testing.T) {
	a, b := wal.RelFile{Tablespace: 1663, Database: 5, Relation: 1}, wal.RelFile{Tablespace: 1663, Database: 5, Relation: 2}
	s := lostScan{fork: 10}
	m := newMerger(s.newWork(), s.fork)
	var pieces [3]*collector
	for i := range pieces {
		pieces[i] = newCollector(s.fork)
	}
	pieces[0].of(7).at(a).inserted = 1
	pieces[0].of(8).at(b).deleted = 2
	pieces[0].of(9).at(a).updated = 9 // aborts
	pieces[1].of(7).at(a).inserted = 3
	pieces[2].of(8).at(b).deleted = 4
	pieces[2].ends = []ending{
		{how: aborted, xid: 9, details: noDetails},
		{how: committed, xid: 7, lsn: 20, work: pieces[2].take(7, []uint32{8}), details: newDetails([]uint32{8}, "", nil)},
	}
	for _, p := range pieces {
		m.merge(p)
	}
	want := []rowCounts{{file: a, inserted: 4}, {file: b, deleted: 6}}
	if m.out.committed.len() != 1 || !reflect.DeepEqual(m.out.committed.chunks[0][0].work.files, want) || len(m.open) != 0 {
		t.Errorf("%+v, open: %v", m.out.committed.chunks, m.open)
	}
}
