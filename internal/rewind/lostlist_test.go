package rewind

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"tidemark/internal/catalog"
	"tidemark/pkg/wal"
)

// TestLostJSON compares what is written element by element with what
// encoding/json makes of the same transactions, shared descriptions and others.
func TestLostJSON(t *testing.T) {
	file := func(n uint32) wal.RelFile { return wal.RelFile{Tablespace: 1663, Database: 5, Relation: n} }
	known := map[wal.RelFile]*catalog.Relation{
		file(1): {Database: "db", Schema: "public", Name: `a "quoted" <name>`, Kind: catalog.Table, OID: 20001, File: file(1)}}
	n := &names{known: known, told: map[*txn]*LostDeeds{}, source: func(wal.RelFile) *catalog.Relation { return nil }}
	same := &txn{files: []rowCounts{{file: file(1), inserted: 2}, {file: file(2), updated: 1}}}
	w := &lostWork{}
	at := time.Date(2026, 11, 22, 5, 0, 0, 0, time.UTC)
	for i, e := range []ended{
		{work: same, details: noDetails},
		{work: same, details: newDetails([]uint32{1, 2}, "", nil)},
		{work: &txn{}, details: noDetails},
		{work: &txn{files: []rowCounts{{file: file(3), deleted: 4}}}, details: newDetails(nil, "a 'gid' & more", []wal.RelFile{file(4)})},
		{work: &txn{created: []wal.RelFile{file(1)}, truncated: []uint32{7}}, details: newDetails([]uint32{9}, "", nil)},
	} {
		e.xid, e.lsn, e.time = uint32(700+i), wal.LSN(0x3000000+i), momentOf(at.Add(time.Duration(i)*1234*time.Microsecond))
		w.committed.add(e)
	}
	l := newLostTransactions(w, n)
	list := slices.Collect(l.All())
	for _, prefix := range []string{"", "    "} {
		i := 0
		err := l.EachElement(prefix, func(got []byte) error {
			if want, err := readable(list[i], prefix); err != nil || string(want) != string(got) {
				t.Errorf("encoding/json:\n%s\nwritten:\n%s", want, got)
			}
			i++
			return nil
		})
		if err != nil || i != len(list) || i != l.Len() {
			t.Error(i, err)
		}
	}
	var back []LostTransaction
	text, err := json.Marshal(l)
	if err == nil {
		err = json.Unmarshal(text, &back)
	}
	if err != nil || len(back) != len(list) || back[3].GID != list[3].GID || !back[1].Time.Equal(list[1].Time) {
		t.Errorf("%v: %s", err, text)
	}
}

// TestPile keeps order and places.
func TestPile(t *testing.T) {
	var p pile[int]
	p.add(0)
	first := &p.chunks[0][0]
	for i := 1; i < 3*pileChunk+5; i++ {
		p.add(i)
	}
	i := 0
	for v := range p.all() {
		if *v != i {
			t.Fatalf("%d at %d", *v, i)
		}
		i++
	}
	if i != p.len() || i != 3*pileChunk+5 || *first != 0 {
		t.Error(i, p.len())
	}
}

// TestXIDSet holds numbers at both ends of their range.
func TestXIDSet(t *testing.T) {
	s, want := xidSet{}, []uint32{0, 3, 63, 64, 4095, 4096, 1 << 31, 1<<32 - 1}
	for _, x := range want {
		s.add(x)
	}
	if got := slices.Sorted(s.all()); !slices.Equal(got, want) {
		t.Error(got)
	}
	if !s.has(64) || s.has(65) || s.has(5000) {
		t.Error("has")
	}
}
