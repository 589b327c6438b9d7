package replication

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// endPoint returns the position up to which WAL must be replayed before the
// copy is consistent, and the source's control file of that moment. All files
// are durable here before it is called.
func (s *seeder) endPoint(ctx context.Context) (wal.LSN, *volume.Control, error) {
	standby, end, err := s.insertPosition(ctx)
	if err != nil {
		return 0, nil, err
	}
	control, err := postgres.ReadControl(ctx, s.src)
	if err != nil {
		return 0, nil, err
	}
	if control.SystemIdentifier != s.meta.SystemID {
		return 0, nil, exit.New(exit.Refused, "connect to the server that the seed began from", "the source is a server of another cluster now: system identifier %d, not %d", control.SystemIdentifier, s.meta.SystemID)
	}
	if standby {
		// A standby moves it forward before it writes a page.
		if end, control, err = s.standbyEnd(ctx, control); err != nil {
			return 0, nil, err
		}
	}
	if newest := s.source.newestCopied(); newest > end {
		return 0, nil, &startAgain{fmt.Sprintf("a page of position %s was copied, but the source is only at %s: it is another server than before", newest, end)}
	}
	return max(end, s.meta.Redo), control, nil
}

// insertPosition asks a primary for its insert position and makes sure that
// WAL goes beyond it: on an idle server it may lie behind the header of a page
// that nobody would ever send.
func (s *seeder) insertPosition(ctx context.Context) (standby bool, end wal.LSN, err error) {
	conn, err := postgres.Connect(ctx, s.ConnInfo)
	if err != nil {
		return false, 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var text string
	err = postgres.Query(ctx, conn, "SELECT pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() THEN '0/0' ELSE pg_current_wal_insert_lsn()::text END", nil, &standby, &text)
	if err != nil || standby {
		return standby, 0, err
	}
	if end, err = wal.ParseLSN(text); err != nil {
		return false, 0, err
	}
	return false, end, postgres.Exec(ctx, conn, "SELECT pg_logical_emit_message(true, 'tidemark', 'seed')")
}

// standbyEnd waits until the standby's minimum recovery point covers every
// page that was copied, by earlier runs too.
func (s *seeder) standbyEnd(ctx context.Context, control *volume.Control) (wal.LSN, *volume.Control, error) {
	newest := s.source.newestCopied()
	if s.result.Resumed {
		here, err := s.newestHere()
		if err != nil {
			return 0, nil, err
		}
		newest = max(newest, here)
	}
	deadline := time.Now().Add(patience)
	for control.MinRecoveryPoint < newest {
		if time.Now().After(deadline) {
			return 0, nil, &startAgain{fmt.Sprintf("a page of position %s was copied, but the source has only replayed up to %s", newest, control.MinRecoveryPoint)}
		}
		if !pause(ctx, 200*time.Millisecond) {
			return 0, nil, ctx.Err()
		}
		var err error
		if control, err = postgres.ReadControl(ctx, s.src); err != nil {
			return 0, nil, err
		}
	}
	return control.MinRecoveryPoint, control, nil
}

// newestHere returns the greatest page LSN among the copied relation files.
func (s *seeder) newestHere() (newest wal.LSN, err error) {
	buf := make([]byte, 1<<20)
	err = volume.Walk(s.FS, s.Dir, func(e volume.WalkEntry) error {
		if !e.IsRegular() || volume.Classify(e.Path) != volume.ClassRelMain {
			return nil
		}
		f, err := s.FS.OpenFile(s.Dir+"/"+e.Path, 0, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close()
		for off := int64(0); ; off += int64(len(buf)) {
			n, _ := f.ReadAt(buf, off)
			newest = max(newest, newestPage(buf[:n]))
			if n < len(buf) {
				return nil
			}
		}
	})
	return newest, err
}

// watchSlot looks after the slot while files are copied: it tells when the
// source is about to give it up, and ends the copy once it has.
func (s *seeder) watchSlot(ctx context.Context, failed func(error)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		warned := false
		for pause(ctx, 5*time.Second) {
			st, err := s.slotNow(ctx)
			if err != nil || !st.exists {
				continue // the stream of WAL fails by itself
			}
			switch st.status {
			case "lost":
				failed(exit.Hint(errors.New("the source has given up the replication slot and removed WAL that the seed needs"),
					"raise max_slot_wal_keep_size at the source, or seed when less is written; the same command then begins anew"))
				return
			case "unreserved":
				if !warned {
					s.Progress.Note("slot %q holds back as much WAL as the source allows: the seed does not keep up", s.meta.Slot)
				}
				warned = true
			}
		}
	}()
	return func() { cancel(); <-done }
}

func (s *seeder) slotNow(ctx context.Context) (slotState, error) {
	conn, err := postgres.Connect(ctx, s.ConnInfo)
	if err != nil {
		return slotState{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return readSlot(ctx, conn, s.meta.Slot)
}

// noteTemplates remembers a position behind every change that the copied files
// of the template databases may hold: the source's position after the last of
// them was read. Without it the guard assumes the end of the copy.
func (s *seeder) noteTemplates(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-s.source.copied:
	}
	conn, err := postgres.Connect(ctx, s.ConnInfo)
	if err != nil {
		return
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var text string
	err = postgres.Query(ctx, conn, "SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END)::text", nil, &text)
	if err != nil {
		return
	}
	if lsn, err := wal.ParseLSN(text); err == nil {
		s.templatesAt.Store(uint64(lsn))
	}
}
