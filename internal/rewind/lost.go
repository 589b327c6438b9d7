package rewind

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"tidemark/pkg/wal"
)

// LostTransaction is a transaction that the target committed after the fork.
type LostTransaction struct {
	XID       uint32    `json:"xid"`
	LSN       wal.LSN   `json:"lsn"`                 // of the commit record
	Time      time.Time `json:"commit_time"`         // as the target's clock had it
	GID       string    `json:"gid,omitempty"`       // of a prepared transaction, where the WAL tells it
	Relations []string  `json:"relations,omitempty"` // main forks it changed after the fork: tablespace/database/file number
	Dropped   []string  `json:"dropped,omitempty"`   // relations whose files it removed
	Subxacts  int       `json:"subtransactions,omitempty"`
}

// lost lists what the target's WAL holds between the fork and its end:
// commits, and the relation files that were changed at all.
func (j *job) lost(ctx context.Context, fork, end wal.LSN) ([]LostTransaction, []string, error) {
	o := j.walOptions(fork)
	o.FindFirst = true
	o.End = end
	r, err := wal.NewReader(ctx, j.wal, o)
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	c := collector{open: map[uint32]relations{}, all: relations{}}
	for r.Next() {
		if err := c.record(r.Record()); err != nil {
			return nil, nil, err
		}
	}
	var torn *wal.TornTail
	if err := r.Err(); err != nil && !(j.crashed && errors.As(err, &torn)) {
		return nil, nil, j.wal.explain(err, "listing the target's transactions after the fork")
	}
	return c.lost, c.all.names(), nil
}

type relations map[wal.RelFile]bool

func (r relations) names() []string {
	var out []string
	for f := range r {
		out = append(out, f.String())
	}
	slices.Sort(out)
	return out
}

// collector keeps, per open transaction, the relations it changed.
type collector struct {
	open map[uint32]relations
	all  relations
	lost []LostTransaction
}

func (c *collector) record(r *wal.Record) error {
	for i := range r.Blocks {
		if f := r.Blocks[i].File; f.Fork == wal.ForkMain && !c.all[f] {
			c.all[f] = true
		}
		c.touch(r, r.Blocks[i].File)
	}
	if r.RMID != wal.RmTransaction {
		return nil
	}
	detail, err := wal.Decode(r)
	if err != nil {
		return fmt.Errorf("the record at %s: %w", r.LSN, err)
	}
	switch d := detail.(type) {
	case *wal.Commit:
		c.commit(r.LSN, d)
	case *wal.Abort:
		delete(c.open, d.XID)
		for _, sub := range d.Subtransactions {
			delete(c.open, sub)
		}
	}
	return nil
}

func (c *collector) touch(r *wal.Record, f wal.RelFile) {
	if r.XID == 0 || f.Fork != wal.ForkMain {
		return
	}
	set := c.open[r.XID]
	if set == nil {
		set = relations{}
		c.open[r.XID] = set
	}
	set[f] = true
}

// commit takes a commit in. One without a transaction id removed files only.
func (c *collector) commit(lsn wal.LSN, d *wal.Commit) {
	touched := relations{}
	maps.Copy(touched, c.open[d.XID])
	delete(c.open, d.XID)
	for _, sub := range d.Subtransactions {
		maps.Copy(touched, c.open[sub])
		delete(c.open, sub)
	}
	dropped := relations{}
	for _, f := range d.Dropped {
		dropped[f] = true
	}
	if d.XID == 0 && len(dropped) == 0 {
		return
	}
	c.lost = append(c.lost, LostTransaction{XID: d.XID, LSN: lsn, Time: d.Time.UTC(), GID: d.GID,
		Relations: touched.names(), Dropped: dropped.names(), Subxacts: len(d.Subtransactions)})
}
