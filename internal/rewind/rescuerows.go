package rewind

import (
	"context"

	"tidemark/internal/catalog"
	"tidemark/internal/progress"
	"tidemark/pkg/wal"
)

// tidKey is a wal.TID as one number.
type tidKey uint64

func keyOf(block uint32, offset uint16) tidKey { return tidKey(block)<<16 | tidKey(offset) }

func (k tidKey) block() uint32  { return uint32(k >> 16) }
func (k tidKey) offset() uint16 { return uint16(k) }
func (k tidKey) tid() wal.TID   { return wal.TID{Block: k.block(), Offset: k.offset()} }

// inserted stands where a version made by a lost transaction replaces none from
// before the fork. Offsets count from 1, so no version has this key.
const inserted tidKey = 0

// fileRows are the versions of rows in one file that the lost transactions
// made, and those from before the fork that they deleted.
//
//	lost transactions          made             gone
//	insert a                   a: inserted
//	update of old x to b       b: x
//	then update of b to c      c: x
//	then delete of c                            x
//	update of y to d, new key  d: inserted      y
type fileRows struct {
	made   map[tidKey]tidKey     // by version: the version from before the fork that it replaces, or inserted
	gone   map[tidKey]struct{}   // versions from before the fork without a successor of the same key
	images map[uint32][]imageRef // of the file's blocks, in the order of the WAL
	// filled says where in the WAL before the fork a place was last filled: an
	// image from before that shows another row.
	filled map[tidKey]wal.LSN
}

// imageRef says where a page image is: a record, and which of its blocks.
type imageRef struct {
	lsn   wal.LSN
	block int
}

func (r *fileRows) update(c *wal.HeapChange) {
	old, next := keyOf(c.Old.Block, c.Old.Offset), keyOf(c.Block, c.Offsets[0])
	origin, ours := r.made[old]
	delete(r.made, old)
	if !ours {
		origin = old
	}
	if c.KeyChanged && origin != inserted {
		r.gone[origin] = struct{}{}
		origin = inserted
	}
	r.made[next] = origin
}

func (r *fileRows) delete(k tidKey) {
	origin, ours := r.made[k]
	delete(r.made, k)
	switch {
	case !ours:
		r.gone[k] = struct{}{}
	case origin != inserted:
		r.gone[origin] = struct{}{}
	}
}

// rowTracker follows the rows of the lost transactions through the WAL.
type rowTracker struct {
	lost   xidSet
	fork   wal.LSN
	wanted func(wal.RelFile) bool
	files  map[wal.RelFile]*fileRows
	change wal.HeapChange
	// rewrote has, by file, the transactions that wrote a table anew into it:
	// of their insertions most are no news.
	rewrote map[wal.RelFile]map[uint32]bool
}

// trackRows reads the WAL once more, now that the lost transactions are known.
// What others did does not count: an aborted update leaves its row as it was.
func (j *job) trackRows(ctx context.Context, w *lostWork, n *names, fork, end wal.LSN) (map[wal.RelFile]*fileRows, error) {
	known := map[wal.RelFile]bool{}
	t := rowTracker{lost: w.xids(), fork: fork, files: map[wal.RelFile]*fileRows{}, wanted: func(f wal.RelFile) bool {
		want, ok := known[f]
		if !ok {
			want = mayBeSaved(n.of(f))
			known[f] = want
		}
		return want
	}}
	t.rewrote = map[wal.RelFile]map[uint32]bool{}
	for e := range w.committed.all() {
		for _, f := range n.rewrote(e) {
			t.rewrote[f] = map[uint32]bool{e.xid: true}
			for _, sub := range e.subs {
				t.rewrote[f][sub] = true
			}
		}
	}
	j.Progress.Phase("following rows through the target's WAL", 0, progress.Items)
	if err := j.eachRecord(ctx, w.begun, end, t.record); err != nil {
		return nil, err
	}
	for f, rows := range t.files {
		if len(rows.made)+len(rows.gone) == 0 {
			delete(t.files, f) // others changed it
		}
	}
	return t.files, nil
}

// mayBeSaved tells whether rows of the relation are saved. One that is not
// known is decided upon later, when the server can be asked.
func mayBeSaved(r *catalog.Relation) bool {
	if r == nil || r.OID == catalog.LargeObjects {
		return true
	}
	return !r.System() && (r.Kind == catalog.Table || r.Kind == catalog.MatView)
}

func (t *rowTracker) of(f wal.RelFile) *fileRows {
	rows := t.files[f]
	if rows == nil {
		rows = newFileRows()
		t.files[f] = rows
	}
	return rows
}

func newFileRows() *fileRows {
	return &fileRows{made: map[tidKey]tidKey{}, gone: map[tidKey]struct{}{}, images: map[uint32][]imageRef{},
		filled: map[tidKey]wal.LSN{}}
}

func (t *rowTracker) record(r *wal.Record) error {
	for i := range r.Blocks {
		if b := &r.Blocks[i]; b.HasImage && b.File.Fork == wal.ForkMain && t.wanted(b.File) {
			rows := t.of(b.File)
			rows.images[b.Block] = append(rows.images[b.Block], imageRef{r.LSN, i})
		}
	}
	if (r.RMID != wal.RmHeap && r.RMID != wal.RmHeap2) || !t.lost.has(r.XID) && r.LSN >= t.fork {
		return nil
	}
	c := &t.change
	ok, err := wal.DecodeHeap(r, c)
	if !ok || err != nil || c.Op == wal.HeapTruncate || !t.wanted(c.File) {
		return err
	}
	rows := t.of(c.File)
	if !t.lost.has(r.XID) {
		if c.Op == wal.HeapInsert || c.Op == wal.HeapUpdate {
			for _, off := range c.Offsets {
				rows.filled[keyOf(c.Block, off)] = r.LSN
			}
		}
		return nil
	}
	switch c.Op {
	case wal.HeapInsert:
		if t.rewrote[c.File][c.XID] {
			return nil
		}
		for _, off := range c.Offsets {
			rows.made[keyOf(c.Block, off)] = inserted
		}
	case wal.HeapUpdate:
		rows.update(c)
	case wal.HeapDelete:
		rows.delete(keyOf(c.Block, c.Offsets[0]))
	case wal.HeapRetract:
		delete(rows.made, keyOf(c.Block, c.Offsets[0]))
	}
	return nil
}
