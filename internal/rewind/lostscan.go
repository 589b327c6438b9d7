package rewind

import (
	"context"
	"errors"
	"fmt"

	"tidemark/pkg/wal"
)

// readLost reads the target's WAL from start to end and collects what the
// transactions did that committed after the fork.
func (j *job) readLost(ctx context.Context, start, fork, end wal.LSN) (*lostWork, error) {
	c := collector{fork: fork, open: map[uint32]*txn{},
		out: lostWork{prepared: map[uint32]*ended{}, files: map[wal.RelFile]bool{}, commits: map[uint32]bool{}, begun: start}}
	if err := j.eachRecord(ctx, start, end, c.record); err != nil {
		return nil, err
	}
	for xid, e := range c.out.prepared {
		if e.lsn < fork {
			delete(c.out.prepared, xid) // the source has it, too
		}
	}
	return &c.out, nil
}

// eachRecord calls fn for every record of the target's WAL between start and end.
func (j *job) eachRecord(ctx context.Context, start, end wal.LSN, fn func(*wal.Record) error) error {
	o := j.walOptions(start)
	o.FindFirst = true
	o.End = end
	r, err := wal.NewReader(ctx, j.wal, o)
	if err != nil {
		return err
	}
	defer r.Close()
	for r.Next() {
		if err := fn(r.Record()); err != nil {
			return err
		}
	}
	var torn *wal.TornTail
	if err := r.Err(); err != nil && !(j.crashed && errors.As(err, &torn)) {
		return j.explainWAL(err, "reading the target's transactions")
	}
	var stopped *wal.EndOfLog
	if errors.As(r.End(), &stopped) && errors.Is(stopped, wal.ErrNoSegment) && r.Position() < end {
		return j.explainWAL(stopped, "reading the target's transactions")
	}
	return nil
}

// collector keeps, per open transaction, what it did.
type collector struct {
	fork   wal.LSN
	open   map[uint32]*txn // by the number of the transaction or subtransaction
	change wal.HeapChange
	out    lostWork
}

// of returns what a transaction did so far.
func (c *collector) of(xid uint32) *txn {
	t := c.open[xid]
	if t == nil {
		t = &txn{}
		c.open[xid] = t
	}
	return t
}

func (c *collector) record(r *wal.Record) error {
	c.touch(r)
	switch r.RMID {
	case wal.RmHeap, wal.RmHeap2:
		ok, err := wal.DecodeHeap(r, &c.change)
		if ok && r.XID != 0 {
			c.rows(c.of(r.XID))
		}
		return err
	case wal.RmTransaction, wal.RmStorage:
		detail, err := wal.Decode(r)
		if err != nil {
			return fmt.Errorf("the record at %s: %w", r.LSN, err)
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
		if r.LSN >= c.fork && !c.out.files[f] {
			c.out.files[f] = true
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
		c.commit(r.LSN, d)
	case *wal.Abort:
		c.take(d.XID, d.Subtransactions)
		delete(c.out.prepared, d.XID)
	case *wal.Prepare:
		c.out.prepared[d.XID] = &ended{xid: d.XID, subs: d.Subtransactions, lsn: r.LSN, time: d.Time, gid: d.GID,
			dropped: d.CommitDrops, work: c.take(d.XID, d.Subtransactions)}
	}
}

// take takes what a transaction and its subtransactions did out of the open ones.
func (c *collector) take(xid uint32, subs []uint32) *txn {
	t := c.open[xid]
	if t == nil {
		t = &txn{}
	}
	delete(c.open, xid)
	for _, sub := range subs {
		t.add(c.open[sub])
		delete(c.open, sub)
	}
	return t
}

// commit takes a commit in. One without a transaction id removed files only.
func (c *collector) commit(lsn wal.LSN, d *wal.Commit) {
	e := &ended{xid: d.XID, subs: d.Subtransactions, lsn: lsn, time: d.Time, gid: d.GID, dropped: d.Dropped, work: c.take(d.XID, d.Subtransactions)}
	if p := c.out.prepared[d.XID]; d.Prepared && p != nil {
		e.work.add(p.work)
		if e.gid == "" {
			e.gid = p.gid
		}
		delete(c.out.prepared, d.XID)
	}
	for _, xid := range append([]uint32{d.XID}, d.Subtransactions...) {
		c.out.commits[xid] = true
	}
	if lsn >= c.fork && (d.XID != 0 || len(d.Dropped) > 0) {
		c.out.committed = append(c.out.committed, e)
	}
}
