package replication

import (
	"context"
	"errors"
	"fmt"

	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// guard reads the received WAL from the redo point to the end and refuses what
// replay could not make consistent:
//
//   - full_page_writes switched off: a block copied in the middle of a write
//     would not be repaired;
//   - wal_level dropped to minimal: changes are missing;
//   - a database copied file by file (CREATE DATABASE ... STRATEGY FILE_COPY, each
//     one before 15, ALTER DATABASE SET TABLESPACE): replay copies the files
//     as the standby has them at that moment. That is right as long as they hold
//     nothing newer: as long as the source database was not touched between
//     that record and the moment when its files were copied;
//   - CREATE TABLESPACE: replay would make its directory under the source's path.
//
// Each of them goes away when the seed starts again from a later checkpoint, or
// is refused there.
func (s *seeder) guard(ctx context.Context, history *timeline.History, control *volume.Control, end wal.LSN) error {
	opt := wal.Options{Start: s.meta.Redo, End: end, SegmentSize: s.meta.Size, PageSize: control.XLogBlockSize, BlockSize: control.BlockSize,
		SystemID: control.SystemIdentifier, Major: control.Major()}
	src := postgres.WALDir{Dir: s.Dir + "/pg_wal", Size: s.meta.Size, History: history}
	r, err := wal.NewReader(ctx, src, opt)
	if err != nil {
		return err
	}
	defer r.Close()
	w := walCheck{templates: s.templateBound(end), isTemplate: s.isTemplate}
	told := s.meta.Redo
	for r.Next() {
		rec := r.Record()
		if err := w.record(rec); err != nil {
			return err
		}
		if rec.LSN-told >= 16<<20 {
			s.Progress.Add(int64(rec.LSN - told))
			told = rec.LSN
		}
	}
	return complete(r, end)
}

// complete makes sure that the whole range was read.
func complete(r *wal.Reader, end wal.LSN) error {
	stop := r.End()
	if stop == nil || r.Position() >= end {
		return nil
	}
	// The insert position of an idle server lies behind a page's header that
	// was not written yet.
	var log *wal.EndOfLog
	if errors.As(stop, &log) && end-r.Position() <= wal.LongHeaderSize {
		return nil
	}
	return exit.Wrap(stop, exit.Partial, "look at the source's disk and at the network; to copy everything anew remove the directory",
		"the received WAL cannot be read up to %s", end)
}

// dbSpace is a database's directory: the database and the tablespace.
type dbSpace struct{ database, tablespace uint32 }

// walCheck is what guard remembers while it reads.
type walCheck struct {
	templates  wal.LSN // the template databases were copied before that
	isTemplate func(dbSpace) bool
	copied     map[dbSpace]wal.LSN // source databases of file copies, and the first such record
}

func (w *walCheck) record(r *wal.Record) error {
	if len(w.copied) > 0 {
		for i := range r.Blocks {
			f := r.Blocks[i].File
			if err := w.touch(dbSpace{f.Database, f.Tablespace}, r.LSN); err != nil {
				return err
			}
		}
	}
	if !interesting(r) {
		return nil
	}
	detail, err := wal.Decode(r)
	if err != nil {
		return err
	}
	switch d := detail.(type) {
	case *wal.FullPageWrites:
		if !d.On {
			return unsafeSetting(r.LSN, "full_page_writes was switched off")
		}
	case *wal.Checkpoint:
		if !d.FullPageWrites {
			return unsafeSetting(r.LSN, "full_page_writes is off")
		}
	case *wal.ParameterChange:
		if d.WALLevel == wal.WALLevelMinimal {
			return unsafeSetting(r.LSN, "wal_level was lowered to minimal")
		}
	case *wal.DatabaseCreate:
		if err := w.touch(dbSpace{d.Database, d.Tablespace}, r.LSN); err != nil {
			return err
		}
		if d.FileCopy {
			w.fileCopy(dbSpace{d.SourceDatabase, d.SourceTablespace}, r.LSN)
		}
	case *wal.DatabaseDrop:
		for _, space := range d.Tablespaces {
			if err := w.touch(dbSpace{d.Database, space}, r.LSN); err != nil {
				return err
			}
		}
	case *wal.TablespaceCreate:
		return &startAgain{fmt.Sprintf("a tablespace was created in %s while the files were copied", d.Path)}
	case *wal.RelationCreate:
		return w.touchRel(d.File, r.LSN)
	case *wal.RelationTruncate:
		return w.touchRel(d.File, r.LSN)
	case *wal.RelationMapUpdate:
		return w.touch(dbSpace{d.Database, d.Tablespace}, r.LSN)
	case *wal.Commit:
		return w.touchAll(d.Dropped, r.LSN)
	case *wal.Abort:
		return w.touchAll(d.Dropped, r.LSN)
	}
	return nil
}

// interesting tells whether a record is of a resource manager whose records
// matter here; most are not, and are not decoded.
func interesting(r *wal.Record) bool {
	switch r.RMID {
	case wal.RmXLOG, wal.RmTransaction, wal.RmStorage, wal.RmDatabase, wal.RmTablespace, wal.RmRelMap:
		return true
	}
	return false
}

// unsafeSetting makes the copy worthless. A new one is refused for as long as
// the setting is so.
func unsafeSetting(at wal.LSN, what string) error {
	return &startAgain{fmt.Sprintf("%s at %s, while the files were copied", what, at)}
}

// fileCopy notes that a database was copied file by file.
func (w *walCheck) fileCopy(source dbSpace, at wal.LSN) {
	if w.isTemplate(source) && at >= w.templates {
		return // its files were copied before: they hold nothing newer than the record
	}
	if w.copied == nil {
		w.copied = map[dbSpace]wal.LSN{}
	}
	if _, ok := w.copied[source]; !ok {
		w.copied[source] = at
	}
}

func (w *walCheck) touchAll(files []wal.RelFile, at wal.LSN) error {
	for _, f := range files {
		if err := w.touchRel(f, at); err != nil {
			return err
		}
	}
	return nil
}

func (w *walCheck) touchRel(f wal.RelFile, at wal.LSN) error {
	return w.touch(dbSpace{f.Database, f.Tablespace}, at)
}

// touch notes a change of a database at a position.
func (w *walCheck) touch(db dbSpace, at wal.LSN) error {
	since, ok := w.copied[db]
	if !ok || at <= since || (w.isTemplate(db) && at >= w.templates) {
		return nil
	}
	return &startAgain{fmt.Sprintf("a database was created at %s from the files of database %d, which was changed before its files were copied here", since, db.database)}
}

// templateBound is a position before which the template databases were copied:
// known where this run copied them, the end otherwise.
func (s *seeder) templateBound(end wal.LSN) wal.LSN {
	if lsn := wal.LSN(s.templatesAt.Load()); lsn != 0 {
		return lsn
	}
	return end
}

// isTemplate tells whether a database was among those that are copied first.
func (s *seeder) isTemplate(db dbSpace) bool {
	const defaultTablespace = 1663
	for _, dir := range s.meta.Templates {
		oid, _ := databaseOf(dir)
		if oid != fmt.Sprint(db.database) {
			continue
		}
		space, ok := tablespaceOf(dir)
		if (!ok && db.tablespace == defaultTablespace) || (ok && space == fmt.Sprint(db.tablespace)) {
			return true
		}
	}
	return false
}
