package rewind

import (
	"slices"
	"testing"

	"tidemark/pkg/wal"
)

// A row's fate is told by all that the lost transactions did to it.
func TestFileRows(t *testing.T) {
	one := func(op wal.HeapOp, at uint16) *wal.HeapChange { return &wal.HeapChange{Op: op, Offsets: []uint16{at}} }
	update := func(from, to uint16, key bool) *wal.HeapChange {
		return &wal.HeapChange{Op: wal.HeapUpdate, Old: wal.TID{Offset: from}, Offsets: []uint16{to}, KeyChanged: key}
	}
	for name, c := range map[string]struct {
		changes []*wal.HeapChange
		made    map[tidKey]tidKey
		gone    []tidKey
	}{
		"inserted":                {[]*wal.HeapChange{one(wal.HeapInsert, 5)}, map[tidKey]tidKey{5: inserted}, nil},
		"inserted, deleted":       {[]*wal.HeapChange{one(wal.HeapInsert, 5), one(wal.HeapDelete, 5)}, nil, nil},
		"inserted, updated":       {[]*wal.HeapChange{one(wal.HeapInsert, 5), update(5, 6, true)}, map[tidKey]tidKey{6: inserted}, nil},
		"retracted":               {[]*wal.HeapChange{one(wal.HeapInsert, 5), one(wal.HeapRetract, 5)}, nil, nil},
		"deleted":                 {[]*wal.HeapChange{one(wal.HeapDelete, 1)}, nil, []tidKey{1}},
		"updated twice":           {[]*wal.HeapChange{update(1, 5, false), update(5, 6, false)}, map[tidKey]tidKey{6: 1}, nil},
		"updated, deleted":        {[]*wal.HeapChange{update(1, 5, false), one(wal.HeapDelete, 5)}, nil, []tidKey{1}},
		"new key":                 {[]*wal.HeapChange{update(1, 5, true)}, map[tidKey]tidKey{5: inserted}, []tidKey{1}},
		"updated, then a new key": {[]*wal.HeapChange{update(1, 5, false), update(5, 6, true)}, map[tidKey]tidKey{6: inserted}, []tidKey{1}},
		"deleted, place reused":   {[]*wal.HeapChange{one(wal.HeapDelete, 1), one(wal.HeapInsert, 1)}, map[tidKey]tidKey{1: inserted}, []tidKey{1}},
	} {
		r := newFileRows()
		for _, ch := range c.changes {
			switch ch.Op {
			case wal.HeapInsert:
				r.made[keyOf(0, ch.Offsets[0])] = inserted
			case wal.HeapUpdate:
				r.update(ch)
			case wal.HeapDelete:
				r.delete(keyOf(0, ch.Offsets[0]))
			case wal.HeapRetract:
				delete(r.made, keyOf(0, ch.Offsets[0]))
			}
		}
		var gone []tidKey
		for k := range r.gone {
			gone = append(gone, k)
		}
		same := len(r.made) == len(c.made)
		for k, v := range c.made {
			got, ok := r.made[k]
			same = same && ok && got == v
		}
		if !same || !slices.Equal(gone, c.gone) {
			t.Errorf("%s: made %v, gone %v", name, r.made, gone)
		}
	}
}
