package replication

import (
	"context"
	"fmt"

	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/walguard"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// guard reads the received WAL from the redo point to the end and refuses what
// replay does not repeat as it was (internal/walguard). What it finds goes away
// when the seed starts again from a later checkpoint, or is refused there.
func (s *seeder) guard(ctx context.Context, history *timeline.History, control *volume.Control, end wal.LSN) error {
	o := wal.ScanOptions{Progress: s.Progress.Add, Options: wal.Options{Start: s.meta.Redo, End: end, SegmentSize: s.meta.Size, PageSize: control.XLogBlockSize,
		BlockSize: control.BlockSize, SystemID: control.SystemIdentifier, Major: control.Major()}}
	src := postgres.WALDir{Dir: s.Dir + "/pg_wal", Size: s.meta.Size, History: history}
	templates := s.templateBound(end)
	g := walguard.Guard{Flushed: s.meta.Redo, Holds: func(t walguard.Touch) bool {
		// The template databases were copied before that: they hold nothing newer.
		return !s.isTemplate(t.File) || t.LSN < templates
	}}
	r, err := g.Read(ctx, src, o)
	switch {
	case err != nil:
		return err
	case r.Finding != nil:
		return unsafe(r.Finding)
	case !r.Reached(end):
		return exit.Wrap(r.Stop, exit.Partial, "look at the source's disk and at the network; to copy everything anew remove the directory",
			"the received WAL cannot be read up to %s", end)
	}
	return nil
}

// unsafe makes the copy worthless. A new one is refused for as long as a
// setting is so.
func unsafe(f *walguard.Finding) error {
	switch f.Kind {
	case walguard.FullPageWrites:
		return &startAgain{fmt.Sprintf("full_page_writes was switched off at %s, while the files were copied", f.LSN)}
	case walguard.WALLevel:
		return &startAgain{fmt.Sprintf("wal_level was lowered to minimal at %s, while the files were copied", f.LSN)}
	case walguard.Tablespace:
		return &startAgain{fmt.Sprintf("a tablespace was created in %s while the files were copied", f.Tablespace.Path)}
	case walguard.FileCopy:
		return &startAgain{fmt.Sprintf("a database was created at %s from the files of database %d, which was changed before its files were copied here", f.MadeAt, f.Made.SourceDatabase)}
	}
	return fmt.Errorf("the record at %s: %w", f.LSN, f.Err)
}

// templateBound is a position before which the template databases were copied:
// known where this run copied them, the end otherwise.
func (s *seeder) templateBound(end wal.LSN) wal.LSN {
	if lsn := wal.LSN(s.templatesAt.Load()); lsn != 0 {
		return lsn
	}
	return end
}

// isTemplate tells whether a file's database was among those that are copied first.
func (s *seeder) isTemplate(f wal.RelFile) bool {
	const defaultTablespace = 1663
	for _, dir := range s.meta.Templates {
		oid, _ := databaseOf(dir)
		if oid != fmt.Sprint(f.Database) {
			continue
		}
		space, ok := tablespaceOf(dir)
		if (!ok && f.Tablespace == defaultTablespace) || (ok && space == fmt.Sprint(f.Tablespace)) {
			return true
		}
	}
	return false
}
