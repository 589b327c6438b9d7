package backup

import (
	"context"
	"fmt"

	"tidemark/internal/exit"
	"tidemark/internal/walguard"
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
// replay does not repeat as it was (internal/walguard).
func guard(ctx context.Context, src wal.Source, opt wal.Options, stop wal.LSN) error {
	opt.End = stop
	g := walguard.Guard{Flushed: opt.Start}
	r, err := g.Read(ctx, src, wal.ScanOptions{Options: opt, Workers: 1})
	switch {
	case err != nil:
		return err
	case r.Finding != nil:
		return unsafe(r.Finding)
	case !r.Reached(stop):
		return exit.New(exit.Failed, "run the command again", "the WAL of the backup ends at %s, before the stop position %s: %v", r.End, stop, r.Stop)
	}
	return nil
}

// unsafe says what was found. A setting stays as it is; anything else may be
// over when the next copy is made.
func unsafe(f *walguard.Finding) error {
	switch f.Kind {
	case walguard.FullPageWrites:
		return fullPageWritesOff("at " + f.LSN.String() + ", while the copy was made")
	case walguard.WALLevel:
		return exit.New(exit.Refused, "set wal_level = replica, restart the server, and take the backup again",
			"wal_level became minimal at %s, while the copy was made", f.LSN)
	case walguard.Tablespace:
		return &unsafeError{f.LSN, fmt.Sprintf("tablespace %d was created while the copy was made", f.Tablespace.Tablespace)}
	case walguard.FileCopy:
		return &unsafeError{f.LSN, fmt.Sprintf("database %d was made by copying the files of database %d at %s, and those changed while the copy was made",
			f.Made.Database, f.Made.SourceDatabase, f.MadeAt)}
	}
	return fmt.Errorf("the record at %s: %w", f.LSN, f.Err)
}
