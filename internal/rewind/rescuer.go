package rewind

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"

	"tidemark/internal/catalog"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/pkg/wal"
)

// rescuer is one rescue.
type rescuer struct {
	job   *job
	work  *lostWork
	names *names
	lost  xidSet // transactions and subtransactions
	rows  map[wal.RelFile]*fileRows
	made  map[wal.RelFile]bool // files that lost transactions made
	out   string
	res   *RescueResult

	unreadable map[wal.RelFile]int64 // deleted rows that are gone from the pages
}

func (r *rescuer) notSaved(relation string, rows int64, format string, args ...any) {
	n := NotSaved{Relation: relation, Rows: rows, Reason: fmt.Sprintf(format, args...)}
	if !slices.Contains(r.res.NotSaved, n) {
		r.res.NotSaved = append(r.res.NotSaved, n)
	}
}

// template1 is the database in which the server can always be asked for others.
const template1 = 1

// databases are those that the lost transactions wrote to.
func (r *rescuer) databases() []uint32 {
	set := map[uint32]bool{}
	for e := range r.work.committed.all() {
		for i := range e.work.files {
			if f := e.work.files[i].file; f.Database != 0 {
				set[f.Database] = true
			}
		}
	}
	delete(set, template1)
	out := []uint32{template1}
	for db := range set {
		out = append(out, db)
	}
	slices.Sort(out)
	return out
}

// checkSpace refuses where what is to be copied does not fit. The rows take
// about as much again as the blocks that they lie in; rows that were compressed
// take more.
func (r *rescuer) checkSpace(end wal.LSN) error {
	need := r.catalogBytes() + r.walBytes(end) + r.rowBytes()
	look := freeSpace
	if r.job.free != nil {
		look = r.job.free
	}
	free, err := look(r.out)
	if err != nil {
		return err
	}
	if need > free {
		return exit.New(exit.Failed, "name a directory on a larger file system with --out",
			"about %d MB are needed in %s, and %d MB are free", need>>20+1, r.out, free>>20)
	}
	return nil
}

// catalogBytes is how much the scratch server needs of the target, whatever
// rows there are.
func (r *rescuer) catalogBytes() (need int64) {
	for _, dir := range sharedDirs {
		entries, _ := os.ReadDir(filepath.Join(r.job.Target, dir)) // what cannot be read fails when it is copied
		for _, e := range entries {
			if fi, err := e.Info(); err == nil && fi.Mode().IsRegular() {
				need += fi.Size()
			}
		}
	}
	if r.names.target == nil {
		return need
	}
	s := &scratch{job: r.job}
	for _, db := range r.databases() {
		for _, f := range r.names.target.SystemFiles(db) {
			if rel := r.names.of(f); rel == nil || rel.OID != catalog.LargeObjects {
				need += int64(s.length(f)) * int64(r.job.tc.BlockSize)
			}
		}
	}
	return need
}

// walBytes is how much WAL is copied, and one segment that the server begins.
func (r *rescuer) walBytes(end wal.LSN) int64 {
	size := r.job.tc.XLogSegSize
	return int64(size.NumberBefore(end)-size.Number(r.job.tc.CheckPointCopy.Redo)+2) * int64(size)
}

// rowBytes is how much the blocks with rows take, and the rows.
func (r *rescuer) rowBytes() (need int64) {
	s := &scratch{job: r.job}
	blockSize := int64(r.job.tc.BlockSize)
	for f, rows := range r.rows {
		n := int64(0)
		for range blocksOf(rows) {
			n++
		}
		if r.made[f] {
			n = int64(s.length(f))
		}
		need += 2 * n * blockSize
		if rel := r.names.of(f); rel != nil && rel.Toast != 0 {
			if toast := r.names.now(f.Database, rel.Toast); toast != nil {
				need += int64(s.length(toast.File)) * blockSize
			}
		}
	}
	return need
}

// run makes the scratch cluster, has its server tell the rows, and removes it.
func (r *rescuer) run(ctx context.Context, end wal.LSN) (err error) {
	r.job.Progress.Phase("copying what is needed of the target", 0, progress.Items)
	s, err := r.job.newScratch(r.out, r.names, r.databases())
	if s != nil {
		defer func() { err = errors.Join(s.explain(err), s.remove()) }()
	}
	if err != nil {
		return err
	}
	for f, rows := range r.rows {
		if err := s.copyBlocks(f, blocksOf(rows)); err != nil {
			return err
		}
	}
	if err := s.prepareRecovery(ctx, end); err != nil {
		return err
	}
	if err := s.recover(ctx); err != nil {
		return err
	}
	r.unreadable = map[wal.RelFile]int64{}
	if err := r.session(ctx, s, r.readWritten); err != nil {
		return err
	}
	deleted := false
	for f, rows := range r.rows {
		if r.unreadable[f], err = s.uncover(ctx, f, rows, r.lost); err != nil {
			return err
		}
		deleted = deleted || len(rows.gone) > 0 || r.unreadable[f] > 0
	}
	if deleted {
		err = r.session(ctx, s, r.readDeleted)
	}
	r.res.CopiedBytes = s.copied
	return err
}

// session has the server run while do reads all databases.
func (r *rescuer) session(ctx context.Context, s *scratch, do func(context.Context, *tableReader, *fileRows) error) (err error) {
	if err := s.Start(ctx); err != nil {
		return exit.Wrap(err, exit.Failed, exit.HintOf(err), "starting a server on copies of what is needed of the target")
	}
	defer func() { err = errors.Join(err, s.Stop(context.WithoutCancel(ctx), postgres.StopFast)) }()
	return r.readAll(ctx, s, do)
}

// readAll reads the rows, database by database.
func (r *rescuer) readAll(ctx context.Context, s *scratch, do func(context.Context, *tableReader, *fileRows) error) error {
	names, err := r.databaseNames(ctx, s)
	if err != nil {
		return err
	}
	r.job.Progress.Phase("saving rows", int64(len(r.rows)), progress.Items)
	for _, oid := range r.databases() {
		name, ok := names[oid]
		if !ok {
			r.notSaved(fmt.Sprintf("database %d", oid), 0, "it was dropped: what was written to it is gone")
			continue
		}
		if err := r.readDatabase(ctx, s, oid, name, do); err != nil {
			return exit.Wrap(err, exit.CodeOf(err), exit.HintOf(err), "reading the rows of database %s", name)
		}
	}
	return nil
}

func (r *rescuer) databaseNames(ctx context.Context, s *scratch) (map[uint32]string, error) {
	conn, err := r.connect(ctx, s, "template1")
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, "SELECT oid::int8, datname::text FROM pg_database")
	if err != nil {
		return nil, postgres.Explain(err)
	}
	out := map[uint32]string{}
	for rows.Next() {
		var oid int64
		var name string
		if err := rows.Scan(&oid, &name); err != nil {
			return nil, err
		}
		out[uint32(oid)] = name
	}
	return out, postgres.Explain(rows.Err())
}

// rescuePath is where the rows of a table go, below the directory.
func rescuePath(database, schema, table, change string) string {
	return filepath.Join(safeName(database), safeName(schema)+"."+safeName(table)+"."+change+".copy")
}

const longestName = 100

// safeName spells a name with letters, digits, "_" and "-"; other bytes become
// "%" and two digits. Of one that is too long for a file the rest becomes a hash.
func safeName(name string) string {
	var b []byte
	for _, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-':
			b = append(b, c)
		default:
			b = fmt.Appendf(b, "%%%02X", c)
		}
	}
	if len(b) > longestName {
		return fmt.Sprintf("%s-%08x", b[:80], crc32.ChecksumIEEE([]byte(name)))
	}
	return string(b)
}
