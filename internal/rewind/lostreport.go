package rewind

import (
	"cmp"
	"context"
	"slices"

	"tidemark/internal/catalog"
	"tidemark/internal/progress"
	"tidemark/pkg/wal"
)

// describeLost fills the report with the transactions that a rewind would lose.
func (j *job) describeLost(ctx context.Context, rep *Report) error {
	w, err := j.lostWork(ctx, &rep.Divergence, rep.Target.End)
	if err != nil {
		return err
	}
	j.Progress.Phase("naming what they changed", 0, progress.Items)
	n := j.openNames(ctx, w)
	rep.Lost = newLostTransactions(w, n)
	for _, e := range w.prepared {
		rep.Prepared = append(rep.Prepared, n.describe(e))
	}
	slices.SortFunc(rep.Prepared, func(a, b LostTransaction) int { return cmp.Compare(a.LSN, b.LSN) })
	rep.RelationFiles = fileNames(w.files)
	return nil
}

func fileNames(set map[wal.RelFile]bool) []string {
	var out []string
	for f := range set {
		out = append(out, f.String())
	}
	slices.Sort(out)
	return out
}

// describe puts a transaction in the report's words.
func (n *names) describe(e *ended) LostTransaction {
	return LostTransaction{XID: e.xid, LSN: e.lsn, Time: e.time.utc(), GID: e.gid, LostDeeds: n.deeds(e), Subxacts: len(e.subs)}
}

// deeds describes what a transaction did, once for all that did the same.
func (n *names) deeds(e *ended) *LostDeeds {
	if len(e.dropped) > 0 {
		return n.describeDeeds(e)
	}
	l := n.told[e.work]
	if l == nil {
		l = n.describeDeeds(e)
		if len(n.told) < pooledTxns {
			n.told[e.work] = l
		}
	}
	return l
}

// kept tells whether what a transaction did is described once for all.
func (n *names) kept(e *ended) bool { return len(e.dropped) == 0 && n.told[e.work] != nil }

func (n *names) describeDeeds(e *ended) *LostDeeds {
	l := &LostDeeds{}
	for i := range e.work.files {
		c := &e.work.files[i]
		l.Relations = append(l.Relations, c.file.String())
		if change, ok := n.change(c); ok {
			l.Changes = append(l.Changes, change)
		}
	}
	slices.Sort(l.Relations)
	slices.SortFunc(l.Changes, func(a, b RelationChange) int {
		return cmp.Or(cmp.Compare(rank(a.Kind), rank(b.Kind)), cmp.Compare(a.Relation, b.Relation), cmp.Compare(a.File, b.File))
	})
	for _, f := range e.dropped {
		l.Dropped = append(l.Dropped, f.String())
	}
	slices.Sort(l.Dropped)
	n.files(e, l)
	return l
}

// change describes the rows changed in a file. Indexes have no rows of their own.
func (n *names) change(c *rowCounts) (RelationChange, bool) {
	r := n.of(c.file)
	kind := kindOf(r)
	rows := c.inserted != 0 || c.updated != 0 || c.deleted != 0
	return RelationChange{Relation: title(r, c.file), File: c.file.String(), Kind: kind,
		Inserted: c.inserted, Updated: c.updated, Deleted: c.deleted}, rows || kind == "sequence"
}

// rank orders kinds: what users look for comes first.
func rank(kind string) int {
	return slices.Index([]string{"table", "materialized view", "unknown", "large objects", "sequence", "toast", "catalog", "index"}, kind)
}

// files tells what became of the relations whose files the transaction made or removed.
func (n *names) files(e *ended, l *LostDeeds) {
	for _, f := range e.work.created {
		r := n.of(f)
		if r == nil || !hasRows(r) || slices.Contains(e.dropped, f) {
			continue
		}
		if old := n.replaced(e, r); old == (wal.RelFile{}) {
			if n.now(f.Database, r.OID) != nil {
				l.Created = append(l.Created, r.String())
			}
		} else if e.work.touched(f) {
			l.Rewritten = append(l.Rewritten, r.String())
		} else {
			l.Truncated = append(l.Truncated, r.String())
		}
	}
	for _, f := range e.dropped {
		r := n.of(f)
		if r == nil || !hasRows(r) || slices.Contains(e.work.created, f) {
			continue
		}
		if now := n.now(f.Database, r.OID); now == nil {
			l.Removed = append(l.Removed, r.String())
		} else if !n.succeeded(e, r) {
			l.Truncated = append(l.Truncated, r.String()) // its next file went, too: nothing is known of it
		}
	}
	for _, list := range []*[]string{&l.Created, &l.Rewritten, &l.Truncated, &l.Removed} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
}

// touched tells whether a transaction wrote to a file.
func (t *txn) touched(f wal.RelFile) bool {
	return slices.ContainsFunc(t.files, func(c rowCounts) bool { return c.file == f })
}

// rewrote lists the files into which a transaction wrote a table anew.
func (n *names) rewrote(e *ended) []wal.RelFile {
	var out []wal.RelFile
	for _, f := range e.work.created {
		if r := n.of(f); r != nil && hasRows(r) && e.work.touched(f) && n.replaced(e, r) != (wal.RelFile{}) {
			out = append(out, f)
		}
	}
	return out
}

// replaced is the file that the transaction removed when it gave the relation
// a new one; the zero value where there is none.
func (n *names) replaced(e *ended, r *catalog.Relation) wal.RelFile {
	for _, f := range e.dropped {
		if old := n.of(f); old != nil && old.OID == r.OID && f.Database == r.File.Database {
			return f
		}
	}
	return wal.RelFile{}
}

// succeeded tells whether the transaction made a new file for the relation.
func (n *names) succeeded(e *ended, r *catalog.Relation) bool {
	return slices.ContainsFunc(e.work.created, func(f wal.RelFile) bool {
		next := n.of(f)
		return next != nil && next.OID == r.OID && f.Database == r.File.Database
	})
}

// hasRows tells whether the relation is one that users fill.
func hasRows(r *catalog.Relation) bool {
	return !r.System() && (r.Kind == catalog.Table || r.Kind == catalog.MatView || r.Kind == catalog.Sequence)
}
