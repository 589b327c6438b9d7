package rewind

import (
	"context"
	"errors"
	"time"

	"tidemark/pkg/wal"
)

// LostTransaction is a transaction that the target committed after the fork.
type LostTransaction struct {
	XID  uint32    `json:"xid"`
	LSN  wal.LSN   `json:"lsn"`           // of the commit record; of the prepare record for one that is prepared only
	Time time.Time `json:"commit_time"`   // as the target's clock had it; when it was prepared for one that is prepared only
	GID  string    `json:"gid,omitempty"` // of a prepared transaction, where the WAL tells it
	*LostDeeds
	Subxacts int `json:"subtransactions,omitempty"`
}

// LostDeeds is what a transaction did. Transactions that did the same share
// it: of hundreds of thousands of small ones few differ.
type LostDeeds struct {
	Changes   []RelationChange `json:"changes,omitempty"`   // rows that it changed, tables of users first
	Created   []string         `json:"created,omitempty"`   // tables, sequences and materialized views that it made and that are there
	Truncated []string         `json:"truncated,omitempty"` // tables that it emptied by TRUNCATE
	Rewritten []string         `json:"rewritten,omitempty"` // tables to which it gave a new file: VACUUM FULL, CLUSTER, ALTER TABLE, REFRESH
	Removed   []string         `json:"removed,omitempty"`   // tables, sequences and materialized views that it dropped
	Relations []string         `json:"relations,omitempty"` // main forks it changed, indexes too: tablespace/database/file number
	Dropped   []string         `json:"dropped,omitempty"`   // files it removed: tablespace/database/file number
}

// RelationChange is what a transaction did to the rows of a relation.
type RelationChange struct {
	Relation string `json:"relation"` // database.schema.name, or "file " and its numbers where no catalog knows it
	File     string `json:"file"`     // tablespace/database/file number
	Kind     string `json:"kind"`     // table, materialized view, sequence, toast, catalog, large objects, index or unknown
	Inserted int64  `json:"inserted"` // rows
	Updated  int64  `json:"updated"`  // rows
	Deleted  int64  `json:"deleted"`  // rows
}

// lostWork is what the target's WAL says of transactions.
type lostWork struct {
	committed pile[ended]       // after the fork, in the order of their commits
	prepared  map[uint32]*ended // prepared, and neither committed nor aborted
	files     map[wal.RelFile]bool
	commits   xidSet  // every transaction and subtransaction that committed, before the fork too
	begun     wal.LSN // where reading began
}

// xids are the numbers of the transactions that committed after the fork, and
// of their subtransactions.
func (w *lostWork) xids() xidSet {
	out := xidSet{}
	for e := range w.committed.all() {
		if e.xid != 0 {
			out.add(e.xid)
		}
		for _, sub := range e.subs {
			out.add(sub)
		}
	}
	return out
}

// lostWork reads the target's WAL from the last common checkpoint's redo point
// on: what a transaction did before the fork is lost, too, when it committed
// behind it. Where one began before even that, WAL from further back is read.
func (j *job) lostWork(ctx context.Context, d *Divergence, end wal.LSN) (*lostWork, error) {
	fork := d.Fork.LSN
	w, err := j.readLost(ctx, min(d.Checkpoint.Redo, fork), fork, end)
	if errors.Is(err, wal.ErrNoSegment) {
		j.warn("the target's WAL before the fork is not at hand: what the listed transactions did before %s is not counted", fork)
		return j.readLost(ctx, fork, fork, end)
	}
	if err != nil {
		return nil, err
	}
	oldest, err := j.oldest(ctx, w, d.Checkpoint.LSN)
	if err != nil || oldest == 0 {
		return w, err
	}
	redo, err := j.redoBefore(ctx, d.Checkpoint.LSN, oldest)
	if err == nil && redo < w.begun {
		var more *lostWork
		if more, err = j.readLost(ctx, redo, fork, end); err == nil {
			return more, nil
		}
	}
	if err != nil && !errors.Is(err, wal.ErrNoSegment) {
		return nil, err
	}
	if err != nil {
		j.warn("transaction %d began before %s, and the WAL before that is not at hand: what it did there is not counted", oldest, w.begun)
	}
	return w, nil
}

// oldest is the oldest lost transaction that may have begun before the redo
// point of the checkpoint at lsn, 0 for none.
func (j *job) oldest(ctx context.Context, w *lostWork, lsn wal.LSN) (uint32, error) {
	r, err := wal.NewReader(ctx, j.wal, j.walOptions(lsn))
	if err != nil {
		return 0, err
	}
	defer r.Close()
	rec, err := r.ReadAt(lsn)
	if err != nil {
		return 0, j.explainWAL(err, "reading the last common checkpoint")
	}
	detail, err := wal.Decode(rec)
	c, ok := detail.(*wal.Checkpoint)
	if err != nil || !ok {
		return 0, err
	}
	oldest := uint32(0)
	consider := func(xid uint32) {
		if xid != 0 && precedes(xid, uint32(c.NextXID)) && (oldest == 0 || precedes(xid, oldest)) {
			oldest = xid
		}
	}
	for e := range w.committed.all() {
		consider(e.xid)
	}
	for xid := range w.prepared {
		consider(xid)
	}
	return oldest, nil
}

// precedes compares transaction numbers, which wrap around.
func precedes(a, b uint32) bool { return int32(a-b) < 0 }

// redoBefore finds the redo point of the last checkpoint before the one at lsn
// at which the transaction had not begun.
func (j *job) redoBefore(ctx context.Context, lsn wal.LSN, xid uint32) (redo wal.LSN, err error) {
	err = wal.WalkBack(ctx, j.wal, j.walOptions(0), lsn, func(r *wal.Record) (bool, error) {
		detail, err := wal.Decode(r)
		if err != nil {
			return false, err
		}
		c, ok := detail.(*wal.Checkpoint)
		if !ok || precedes(xid, uint32(c.NextXID)) {
			return true, nil
		}
		redo = c.Redo
		return false, nil
	})
	return redo, err
}
