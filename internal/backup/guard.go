package backup

import (
	"context"
	"errors"
	"fmt"

	"tidemark/internal/exit"
	"tidemark/pkg/wal"
)

// unsafeError says that the WAL of the range holds something that this copy
// does not survive. Another copy, begun after it, does.
type unsafeError struct {
	LSN    wal.LSN
	Reason string
}

func (e *unsafeError) Error() string { return fmt.Sprintf("%s (at %s)", e.Reason, e.LSN) }

// guard reads the WAL of a copy, from its start to its stop position, for what
// a fuzzy copy does not survive:
//
//   - full_page_writes off, wal_level minimal: blocks may not be repaired;
//   - a database made by copying its template's files: replay copies them
//     again, from the copy's template. That is the same unless the template
//     was changed after the record;
//   - a new tablespace: replay makes it at its absolute path, which a restore
//     to another place would not expect.
func guard(ctx context.Context, src wal.Source, opt wal.Options, stop wal.LSN) error {
	opt.End = stop
	r, err := wal.NewReader(ctx, src, opt)
	if err != nil {
		return err
	}
	defer r.Close()
	g := guardState{copied: map[uint32][]fileCopy{}}
	for r.Next() {
		if err := g.record(r.Record()); err != nil {
			return err
		}
	}
	if err := r.Err(); err != nil {
		return fmt.Errorf("reading the WAL of the backup: %w", err)
	}
	if end := r.Position(); end < stop {
		return exit.New(exit.Failed, "run the command again", "the WAL of the backup ends at %s, before the stop position %s: %v", end, stop, r.End())
	}
	return nil
}

// fileCopy is a database that was made by copying files.
type fileCopy struct {
	lsn      wal.LSN
	database uint32
}

type guardState struct {
	copied map[uint32][]fileCopy // by source database
}

func (g *guardState) record(r *wal.Record) error {
	if len(g.copied) > 0 {
		for i := range r.Blocks {
			if err := g.touched(r.Blocks[i].File.Database, r.LSN); err != nil {
				return err
			}
		}
	}
	switch r.RMID {
	case wal.RmXLOG, wal.RmDatabase, wal.RmTablespace:
	case wal.RmStorage, wal.RmTransaction, wal.RmRelMap:
		if len(g.copied) == 0 {
			return nil
		}
	default:
		return nil
	}
	d, err := wal.Decode(r)
	if err != nil {
		return err
	}
	return g.detail(d, r.LSN)
}

func (g *guardState) detail(d wal.Detail, lsn wal.LSN) error {
	switch d := d.(type) {
	case *wal.FullPageWrites:
		if !d.On {
			return fullPageWritesOff("at " + lsn.String() + ", while the copy was made")
		}
	case *wal.ParameterChange:
		if d.WALLevel == wal.WALLevelMinimal {
			return exit.New(exit.Refused, "set wal_level = replica, restart the server, and take the backup again",
				"wal_level became minimal at %s, while the copy was made", lsn)
		}
	case *wal.TablespaceCreate:
		return &unsafeError{lsn, fmt.Sprintf("tablespace %d was created while the copy was made", d.Tablespace)}
	case *wal.DatabaseCreate:
		if err := g.touched(d.Database, lsn); err != nil {
			return err
		}
		if d.FileCopy {
			g.copied[d.SourceDatabase] = append(g.copied[d.SourceDatabase], fileCopy{lsn, d.Database})
		}
	case *wal.DatabaseDrop:
		return g.touched(d.Database, lsn)
	case *wal.RelationCreate:
		return g.touched(d.File.Database, lsn)
	case *wal.RelationTruncate:
		return g.touched(d.File.Database, lsn)
	case *wal.RelationMapUpdate:
		return g.touched(d.Database, lsn)
	case *wal.Commit:
		return g.dropped(d.Dropped, lsn)
	case *wal.Abort:
		return g.dropped(d.Dropped, lsn)
	}
	return nil
}

func (g *guardState) dropped(files []wal.RelFile, lsn wal.LSN) error {
	var err error
	for _, f := range files {
		err = errors.Join(err, g.touched(f.Database, lsn))
	}
	return err
}

// touched says that the files of a database change at lsn.
func (g *guardState) touched(database uint32, lsn wal.LSN) error {
	if copies := g.copied[database]; len(copies) > 0 && database != 0 {
		return &unsafeError{lsn, fmt.Sprintf("database %d was made by copying the files of database %d at %s, and those changed while the copy was made",
			copies[0].database, database, copies[0].lsn)}
	}
	return nil
}
