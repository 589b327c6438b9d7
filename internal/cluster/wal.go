package cluster

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"tidemark/internal/postgres"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// walDir is the WAL of a data directory, along one line of descent.
func walDir(dataDir string, size wal.SegmentSize, history *timeline.History) wal.Source {
	return postgres.WALDir{Dir: filepath.Join(dataDir, "pg_wal"), Size: size, History: history}
}

// readHistory reads the history of a timeline from a data directory.
func readHistory(fsys volume.FS, dataDir string, id timeline.ID) (*timeline.History, error) {
	return postgres.ReadHistory(fsys, filepath.Join(dataDir, "pg_wal"), id)
}

func walOptions(c *volume.Control, start wal.LSN) wal.Options {
	return wal.Options{Start: start, SegmentSize: c.XLogSegSize, PageSize: c.XLogBlockSize, BlockSize: c.BlockSize, SystemID: c.SystemIdentifier, Major: c.Major()}
}

// checkpointRecord is a checkpoint record found in a data directory's WAL.
type checkpointRecord struct {
	Timeline timeline.ID
	LSN, End wal.LSN
	CRC      uint32
	Shutdown bool
}

// readCheckpoint reads the record at which pg_control points from the WAL of a
// data directory, which may be another node's than the pg_control. history is
// that of the data directory.
func readCheckpoint(ctx context.Context, control *volume.Control, dir string, history *timeline.History) (checkpointRecord, error) {
	tli := control.CheckPointCopy.ThisTimeLineID
	r, err := wal.NewReader(ctx, walDir(dir, control.XLogSegSize, history), walOptions(control, control.CheckPoint))
	if err != nil {
		return checkpointRecord{}, err
	}
	defer r.Close()
	rec, err := r.ReadAt(control.CheckPoint)
	if err != nil {
		return checkpointRecord{}, fmt.Errorf("reading the checkpoint record at %s from %s: %w", control.CheckPoint, dir, err)
	}
	detail, err := wal.Decode(rec)
	if err != nil {
		return checkpointRecord{}, err
	}
	cp, ok := detail.(*wal.Checkpoint)
	if !ok {
		return checkpointRecord{}, fmt.Errorf("the record at %s in %s is no checkpoint", control.CheckPoint, dir)
	}
	return checkpointRecord{Timeline: tli, LSN: rec.LSN, End: rec.End, CRC: rec.CRC, Shutdown: cp.Shutdown}, nil
}

// shutdownCheckpoint reads the last record of a cleanly stopped primary and
// makes sure that nothing follows it.
func shutdownCheckpoint(ctx context.Context, control *volume.Control, dir string) (checkpointRecord, error) {
	rec, err := readCheckpoint(ctx, control, dir, timeline.Root(control.CheckPointCopy.ThisTimeLineID))
	if err != nil {
		return rec, err
	}
	if !rec.Shutdown {
		return rec, fmt.Errorf("the last checkpoint of %s is not that of a shutdown", dir)
	}
	end, err := endOfWAL(ctx, walDir(dir, control.XLogSegSize, timeline.Root(rec.Timeline)), walOptions(control, rec.LSN), nil)
	if err != nil {
		return rec, err
	}
	if end != rec.End {
		return rec, fmt.Errorf("WAL goes on behind the shutdown checkpoint of %s, to %s", dir, end)
	}
	return rec, nil
}

// endOfWAL reads forward and returns where the last whole record ends. each,
// where given, sees every record.
func endOfWAL(ctx context.Context, src wal.Source, opt wal.Options, each func(*wal.Record) error) (wal.LSN, error) {
	r, err := wal.NewReader(ctx, src, opt)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	end := opt.Start
	for r.Next() {
		rec := r.Record()
		end = rec.End
		if each == nil {
			continue
		}
		if err := each(rec); err != nil {
			return end, err
		}
	}
	var torn *wal.TornTail
	if err := r.Err(); err != nil && !errors.As(err, &torn) {
		return end, err
	}
	return end, nil
}

// endOfNode returns where the WAL of a stopped node ends: the end of its
// shutdown checkpoint, or after a crash the end of the last whole record.
func endOfNode(ctx context.Context, fsys volume.FS, f *Facts) (Position, *timeline.History, error) {
	control := f.Control
	tli := control.Timeline()
	history, err := readHistory(fsys, f.DataDir, tli)
	if err != nil {
		return Position{}, nil, err
	}
	start := control.CheckPoint
	end, err := endOfWAL(ctx, walDir(f.DataDir, control.XLogSegSize, history), walOptions(control, start), nil)
	if err != nil {
		return Position{}, nil, err
	}
	return Position{tli, max(end, control.MinRecoveryPoint)}, history, nil
}

// lostWork reads what a stopped primary wrote behind the position to which
// others had come: that much their history will not contain. from is the
// beginning of a record, kept is where the new history takes over.
func lostWork(ctx context.Context, fsys volume.FS, f *Facts, from, kept wal.LSN) *Loss {
	history, err := readHistory(fsys, f.DataDir, f.Control.Timeline())
	if err != nil {
		return &Loss{Why: err.Error(), From: kept}
	}
	loss := &Loss{Known: true, From: kept, To: kept}
	opt := walOptions(f.Control, from)
	opt.FindFirst = true
	_, err = endOfWAL(ctx, walDir(f.DataDir, f.Control.XLogSegSize, history), opt, func(r *wal.Record) error {
		if r.End <= kept {
			return nil
		}
		loss.To = r.End
		detail, err := wal.Decode(r)
		if err != nil {
			return err
		}
		if commit, ok := detail.(*wal.Commit); ok {
			loss.Commits++
			if len(loss.Lost) < MaxLostShown {
				loss.Lost = append(loss.Lost, LostCommit{XID: commit.XID, LSN: r.LSN, Time: commit.Time.UTC().Truncate(time.Millisecond)})
			}
		}
		return nil
	})
	if err != nil {
		loss.Known, loss.Why = false, err.Error()
	}
	loss.Bytes = behind(kept, loss.To)
	return loss
}
