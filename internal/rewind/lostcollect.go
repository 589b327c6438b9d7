package rewind

import "tidemark/pkg/wal"

// collector keeps what the transactions did in a piece of the WAL. Millions of
// records pass through it: it allocates nothing per record, and looks nothing
// up that the record before asked for.
type collector struct {
	fork   wal.LSN
	open   map[uint32]*txn // not ended yet, by the number of the transaction or subtransaction
	ends   []ending        // in the order of the WAL
	files  map[wal.RelFile]bool
	pool   txnPool
	change wal.HeapChange

	xid     uint32 // of the last record that had one
	last    *txn   // what it did; nil where that ended
	recent  [64]wal.RelFile
	unused  []*txn
	nothing *txn
}

// ending is a commit, an abort or a prepare.
type ending struct {
	how      how
	twoPhase bool // of a transaction that was prepared
	xid      uint32
	lsn      wal.LSN
	time     moment
	work     *txn // in this piece; nil for an abort
	*details
}

type how uint8

const (
	committed how = iota
	aborted
	prepared
)

func newCollector(fork wal.LSN) *collector {
	c := &collector{fork: fork, open: map[uint32]*txn{}, files: map[wal.RelFile]bool{}}
	c.reset()
	return c
}

// reset forgets what was found, so that another piece can be read.
func (c *collector) reset() {
	for _, t := range c.open {
		c.recycle(t)
	}
	clear(c.open)
	clear(c.ends)
	clear(c.files)
	c.ends, c.pool = c.ends[:0], newTxnPool()
	c.xid, c.last, c.recent = 0, nil, [64]wal.RelFile{}
	c.nothing = c.pool.keep(&txn{})
}

// of returns what a transaction did so far.
func (c *collector) of(xid uint32) *txn {
	if xid == c.xid && c.last != nil {
		return c.last
	}
	t := c.open[xid]
	if t == nil {
		if n := len(c.unused); n > 0 {
			t, c.unused = c.unused[n-1], c.unused[:n-1]
		} else {
			t = &txn{}
		}
		c.open[xid] = t
	}
	c.xid, c.last = xid, t
	return t
}

// recycle makes t new, and keeps its space.
func (c *collector) recycle(t *txn) {
	*t = txn{files: t.files[:0]}
	c.unused = append(c.unused, t)
}

func (c *collector) record(r *wal.Record) error {
	c.touch(r)
	switch r.RMID {
	case wal.RmHeap, wal.RmHeap2:
		if r.XID == 0 {
			return nil
		}
		ok, err := wal.DecodeHeap(r, &c.change)
		if ok {
			c.rows(c.of(r.XID))
		}
		return err
	case wal.RmTransaction, wal.RmStorage:
		detail, err := wal.Decode(r)
		if err != nil {
			return decodeFault(r, err)
		}
		c.detail(r, detail)
	}
	return nil
}

// touch notes the main forks that a record changes.
func (c *collector) touch(r *wal.Record) {
	for i := range r.Blocks {
		f := r.Blocks[i].File
		if f.Fork != wal.ForkMain || i > 0 && f == r.Blocks[i-1].File {
			continue
		}
		if r.LSN >= c.fork {
			if slot := &c.recent[f.Relation%uint32(len(c.recent))]; *slot != f {
				*slot = f
				c.files[f] = true
			}
		}
		if r.XID != 0 {
			c.of(r.XID).at(f)
		}
	}
}

// rows counts the change just decoded.
func (c *collector) rows(t *txn) {
	n := int64(len(c.change.Offsets))
	switch c.change.Op {
	case wal.HeapInsert:
		t.at(c.change.File).inserted += n
	case wal.HeapRetract: // the insertion never took place
		t.at(c.change.File).inserted -= n
	case wal.HeapUpdate:
		t.at(c.change.File).updated += n
	case wal.HeapDelete:
		t.at(c.change.File).deleted += n
	case wal.HeapTruncate:
		t.truncated = append(t.truncated, c.change.Relations...)
	}
}

func (c *collector) detail(r *wal.Record, detail wal.Detail) {
	switch d := detail.(type) {
	case *wal.RelationCreate:
		if d.File.Fork == wal.ForkMain && r.XID != 0 {
			t := c.of(r.XID)
			t.created = append(t.created, d.File)
		}
	case *wal.Commit:
		c.ends = append(c.ends, ending{how: committed, twoPhase: d.Prepared, xid: d.XID, lsn: r.LSN, time: momentOf(d.Time),
			work: c.take(d.XID, d.Subtransactions), details: newDetails(d.Subtransactions, d.GID, d.Dropped)})
	case *wal.Abort:
		c.take(d.XID, d.Subtransactions)
		c.ends = append(c.ends, ending{how: aborted, xid: d.XID, details: newDetails(d.Subtransactions, "", nil)})
	case *wal.Prepare:
		c.ends = append(c.ends, ending{how: prepared, xid: d.XID, lsn: r.LSN, time: momentOf(d.Time),
			work: c.take(d.XID, d.Subtransactions), details: newDetails(d.Subtransactions, d.GID, d.CommitDrops)})
	}
}

// take takes what a transaction and its subtransactions did out of the open ones.
func (c *collector) take(xid uint32, subs []uint32) *txn {
	c.last = nil
	t := c.open[xid]
	delete(c.open, xid)
	for _, sub := range subs {
		o := c.open[sub]
		if o == nil {
			continue
		}
		delete(c.open, sub)
		if t == nil {
			t = o
			continue
		}
		t.add(o)
		c.recycle(o)
	}
	if t == nil {
		return c.nothing
	}
	kept := c.pool.keep(t)
	c.recycle(t)
	return kept
}
