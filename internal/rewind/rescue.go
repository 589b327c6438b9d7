package rewind

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/catalog"
	"tidemark/internal/exit"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// RescueResult is what Rescue saved, and what it could not save. The file
// rescue.json holds it, too.
type RescueResult struct {
	Divergence
	Dir          string         `json:"directory"`           // with the files
	Script       string         `json:"loader,omitempty"`    // the script that loads them, for psql -f
	Transactions int            `json:"transactions"`        // committed on the target after the fork
	Tables       []RescuedTable `json:"tables"`              // with rows that were saved
	Sequences    []RescuedValue `json:"sequences,omitempty"` // that the lost transactions advanced
	NotSaved     []NotSaved     `json:"not_saved,omitempty"` // what was lost and could not be saved
	Rows         int64          `json:"rows"`                // that were saved
	Bytes        int64          `json:"bytes"`               // of the files with rows
	CopiedBytes  int64          `json:"bytes_copied"`        // of the target, to read the rows from; removed again
	Seconds      float64        `json:"elapsed_seconds"`
	Warnings     []string       `json:"warnings,omitempty"`
}

// RescuedTable is a table with rows that were saved.
type RescuedTable struct {
	Database string        `json:"database"` // where it lies
	Schema   string        `json:"schema"`   // where it lies
	Name     string        `json:"name"`
	Kind     string        `json:"kind"`          // table, materialized view or large objects
	Key      []string      `json:"key,omitempty"` // columns of its primary key, or of its replica identity: of deleted rows these are saved, without them the whole row
	Files    []RescuedFile `json:"files"`         // with its rows
}

// RescuedFile is a file of rows in COPY's text format.
type RescuedFile struct {
	Change  string          `json:"change"`  // inserted, updated, deleted, or written: inserted or updated, in a table that was rewritten since
	Path    string          `json:"path"`    // below the directory
	Staging string          `json:"staging"` // the table that the loader makes for it
	Columns []RescuedColumn `json:"columns"` // in the order of the file
	Rows    int64           `json:"rows"`    // how many
	Bytes   int64           `json:"bytes"`
}

// RescuedColumn is a column of a file with rows.
type RescuedColumn struct {
	Name string `json:"name"`
	Type string `json:"type"` // as SQL has it; text where the type itself was made by a lost transaction
}

// RescuedValue is the state of a sequence at the end of the target's WAL.
type RescuedValue struct {
	Database string `json:"database"` // where it lies
	Schema   string `json:"schema"`   // where it lies
	Name     string `json:"name"`
	Last     int64  `json:"last_value"` // as SELECT last_value has it
	Called   bool   `json:"is_called"`  // as SELECT is_called has it
}

// NotSaved is something that a rewind loses and that could not be saved.
type NotSaved struct {
	Relation string `json:"relation"`       // database.schema.name, or "file " and its numbers
	Reason   string `json:"reason"`         // one sentence for people
	Rows     int64  `json:"rows,omitempty"` // how many, where it is known
}

// Rescue saves the rows that a rewind of the target would discard into out,
// which it makes. The target is read only. An interrupted rescue is begun anew
// by the same call. The result is complete, except for what NotSaved lists.
func Rescue(ctx context.Context, o Options, out string) (*RescueResult, error) {
	start := time.Now()
	o.DryRun = true
	if out == "" {
		return nil, exit.New(exit.Usage, "name a directory with --out", "no directory for the rows given")
	}
	out, err := filepath.Abs(out)
	if err != nil {
		return nil, err
	}
	j, err := open(ctx, o)
	if err != nil {
		return nil, err
	}
	defer j.close()
	j.needsWAL = true
	d, err := j.divergenceToRescue(ctx)
	if err != nil {
		return nil, err
	}
	res := &RescueResult{Divergence: *d, Dir: out, Tables: []RescuedTable{}}
	if d.Diverged {
		return res, j.rescue(ctx, res, start)
	}
	res.Warnings, res.Seconds = j.warnings, time.Since(start).Seconds()
	return res, nil
}

// divergenceToRescue finds the fork. What an unfinished rewind has overwritten
// cannot be read: it is to be undone first.
func (j *job) divergenceToRescue(ctx context.Context) (*Divergence, error) {
	pending, err := blockcopy.Pending(volume.OS, j.Target)
	if err != nil {
		return nil, err
	}
	if pending != nil && pending.State == blockcopy.Partial {
		return nil, exit.New(exit.Refused, "take it back first: dbrewind undo -D "+j.Target, "the target holds an unfinished %s", pending.Plan.Operation)
	}
	if res, err := j.alreadyRewound(ctx); err != nil {
		return nil, err
	} else if res != nil {
		return nil, exit.New(exit.Refused, "take it back first, where that is still possible: dbrewind undo -D "+j.Target,
			"the target was rewound already: what it had written is no longer in its files")
	}
	for _, step := range []func() error{
		func() error { return j.readTarget(false) },
		func() error { return j.check(ctx) },
		func() error { return j.recoverTarget(ctx, false) },
		func() error { return j.readHistories(ctx) },
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return j.diverge(ctx)
}

// rescue saves the rows of a target that diverged.
func (j *job) rescue(ctx context.Context, res *RescueResult, start time.Time) error {
	end := res.Target.End
	w, err := j.lostWork(ctx, &res.Divergence, end)
	if err != nil {
		return err
	}
	res.Transactions = w.committed.len()
	n := j.openNames(ctx, w)
	r := &rescuer{job: j, work: w, names: n, lost: w.xids(), out: res.Dir, res: res, made: w.madeFiles()}
	if r.rows, err = j.trackRows(ctx, w, n, res.Fork.LSN, end); err != nil {
		return err
	}
	dir, err := openRescueDir(res.Dir)
	if err != nil {
		return err
	}
	if err := r.checkSpace(end); err != nil {
		return errors.Join(err, dir.clear())
	}
	if err := r.run(ctx, end); err != nil {
		return dir.failed(err)
	}
	r.listLosses()
	res.Warnings, res.Seconds = j.warnings, time.Since(start).Seconds()
	return dir.failed(res.write())
}

// write makes everything durable; with the summary written and the marker gone
// the rescue is complete.
func (res *RescueResult) write() error {
	if err := res.writeLoader(); err != nil {
		return err
	}
	files, dirs := []string{filepath.Join(res.Dir, rescueLoader)}, []string{res.Dir}
	for _, t := range res.Tables {
		for _, f := range t.Files {
			path := filepath.Join(res.Dir, f.Path)
			files = append(files, path)
			if dir := filepath.Dir(path); !slices.Contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
		}
	}
	if err := volume.SyncAll(context.Background(), volume.OS, files, dirs, 4); err != nil {
		return err
	}
	data, err := json.MarshalIndent(res, "", "  ")
	if err != nil {
		return err
	}
	if err := volume.WriteFile(volume.OS, filepath.Join(res.Dir, rescueSummary), append(data, '\n'), 0o600); err != nil {
		return err
	}
	return volume.RemoveDurable(volume.OS, filepath.Join(res.Dir, rescueMarker))
}

// madeFiles are the main forks that lost transactions made.
func (w *lostWork) madeFiles() map[wal.RelFile]bool {
	out := map[wal.RelFile]bool{}
	for e := range w.committed.all() {
		for _, f := range e.work.created {
			out[f] = true
		}
	}
	return out
}

// listLosses lists what cannot be saved by its nature.
func (r *rescuer) listLosses() {
	for e := range r.work.committed.all() {
		l := r.names.describe(e)
		for _, name := range l.Truncated {
			r.notSaved(name, 0, "transaction %d truncated it: its rows from before are gone", e.xid)
		}
		for _, name := range l.Removed {
			r.notSaved(name, 0, "transaction %d dropped it: its rows are gone", e.xid)
		}
		for _, name := range l.Rewritten {
			r.notSaved(name, 0, "transaction %d rewrote it: rows deleted before that are gone, and what was inserted and what updated before that is not told apart", e.xid)
		}
	}
	for _, e := range r.work.prepared {
		r.notSaved("transaction "+e.gid, 0, "transaction %d is prepared and not committed", e.xid)
	}
	if r.names.target == nil {
		return
	}
	for _, db := range r.names.target.Databases {
		r.names.target.Relations(db.OID, func(rel *catalog.Relation) {
			if rel.Unlogged && !rel.System() && rel.Kind == catalog.Table {
				r.notSaved(rel.String(), 0, "it is unlogged: the WAL does not tell what was written to it")
			}
		})
	}
	slices.SortStableFunc(r.res.NotSaved, func(a, b NotSaved) int { return strings.Compare(a.Relation, b.Relation) })
}
