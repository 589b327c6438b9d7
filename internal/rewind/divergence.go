package rewind

import (
	"context"
	"errors"
	"fmt"

	"tidemark/internal/exit"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// diverge compares both sides: histories first, and where these are equal the
// WAL itself.
func (j *job) diverge(ctx context.Context) (*Divergence, error) {
	end, err := j.targetEnd(ctx)
	if err != nil {
		return nil, err
	}
	sourceEnd, _, err := j.source.position(ctx, j.sc)
	if err != nil {
		return nil, err
	}
	d := &Divergence{
		Target: Side{j.targetName(), j.th.Timeline, j.th.Spans(), end, j.tc.State.String()},
		Source: Side{j.source.Name(), j.sh.Timeline, j.sh.Spans(), sourceEnd, j.sc.State.String()},
	}
	fork, err := timeline.Diverge(j.th, j.sh)
	if err != nil {
		return nil, exit.Wrap(err, exit.Refused, "seed the node anew", "target and source have nothing in common")
	}
	if fork.LSN == 0 {
		if fork.LSN, err = j.compareWAL(ctx, fork.Timeline, min(end, sourceEnd)); err != nil {
			return nil, err
		}
	}
	if fork.LSN != 0 && end > fork.LSN && sourceEnd <= fork.LSN && j.sh.Timeline != fork.Timeline && j.source.repo == nil {
		return nil, exit.New(exit.Refused, "wait until it has, or name the primary that it follows",
			"the source has not replayed beyond the fork at %s yet: it has nothing of timeline %d", fork.LSN, j.sh.Timeline)
	}
	d.Fork = &fork
	switch {
	case fork.LSN == 0 && end > sourceEnd:
		d.Fork, d.Reason = nil, fmt.Sprintf("both are on timeline %d and their WAL agrees; the target is ahead of the source", fork.Timeline)
	case fork.LSN == 0:
		d.Fork, d.Reason = nil, fmt.Sprintf("both are on timeline %d and their WAL agrees", fork.Timeline)
	case end <= fork.LSN:
		d.Reason = fmt.Sprintf("the target's WAL ends at %s, at or before the fork at %s on timeline %d", end, fork.LSN, fork.Timeline)
	default:
		d.Diverged = true
		d.Reason = fmt.Sprintf("they parted at %s on timeline %d, and the target wrote WAL up to %s", fork.LSN, fork.Timeline, end)
	}
	j.tellPartial(d)
	if !d.Diverged {
		return d, nil
	}
	j.wal.fork = j.tc.XLogSegSize.Number(fork.LSN)
	return d, j.findCheckpoint(ctx, d)
}

// targetEnd is where the target's WAL ends: behind the record of its last
// checkpoint, or at the minimum recovery point where that is later. For a
// crashed target it is where its WAL can no longer be read.
func (j *job) targetEnd(ctx context.Context) (wal.LSN, error) {
	start := j.tc.CheckPoint
	r, err := wal.NewReader(ctx, j.wal, j.walOptions(start))
	if err != nil {
		return 0, err
	}
	defer r.Close()
	rec, err := r.ReadAt(start)
	if err != nil {
		return 0, j.explainWAL(err, fmt.Sprintf("reading the target's last checkpoint at %s", start))
	}
	if !j.crashed {
		return max(rec.End, j.tc.MinRecoveryPoint), nil
	}
	for r.Next() {
	}
	var torn *wal.TornTail
	if err := r.Err(); err != nil && !errors.As(err, &torn) {
		return 0, j.explainWAL(err, "looking for the end of the crashed target's WAL")
	}
	return max(r.Position(), j.tc.MinRecoveryPoint), nil
}

// findCheckpoint walks back from the fork to the last checkpoint record that
// begins before it. Replay begins at its redo point, or at that of the
// source's last checkpoint where that is earlier: the source's own files may
// be no newer than that.
func (j *job) findCheckpoint(ctx context.Context, d *Divergence) error {
	fork := d.Fork.LSN
	j.wal.readingBack(j.wal.fork)
	err := wal.WalkBack(ctx, j.wal, j.walOptions(0), fork, func(r *wal.Record) (bool, error) {
		if r.LSN >= fork {
			return true, nil
		}
		detail, err := wal.Decode(r)
		if err != nil {
			return false, err
		}
		if c, ok := detail.(*wal.Checkpoint); ok {
			d.Checkpoint = &Checkpoint{LSN: r.LSN, Redo: c.Redo, Timeline: c.Timeline, nextXID: c.NextXID}
			return false, nil
		}
		return true, nil
	})
	if err != nil {
		doing := fmt.Sprintf("looking for the last common checkpoint before the fork at %s", fork)
		if errors.Is(err, wal.ErrNoSegment) {
			doing += j.alsoMissing(ctx, d.Target.End)
		}
		return j.explainWAL(err, doing)
	}
	if d.Checkpoint == nil {
		return exit.New(exit.Failed, "go without the target's WAL (--compare), or seed the node anew", "no checkpoint before the fork at %s is in the target's WAL", fork)
	}
	if r := j.source.repo; r != nil {
		d.Start = r.start(d.Checkpoint)
		return nil
	}
	d.Start = earlier(d.Checkpoint, j.sc)
	return nil
}

func earlier(c *Checkpoint, source *volume.Control) *Checkpoint {
	if source.CheckPointCopy.Redo >= c.Redo {
		return c
	}
	return &Checkpoint{LSN: source.CheckPoint, Redo: source.CheckPointCopy.Redo, Timeline: source.CheckPointCopy.ThisTimeLineID, nextXID: source.CheckPointCopy.NextXid}
}
