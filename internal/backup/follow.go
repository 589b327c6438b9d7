package backup

import (
	"context"
	"errors"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/pkg/wal"
)

// A standby begins a backup at its last restart point, which it makes of a
// checkpoint that it has replayed. After a promotion elsewhere the standby
// follows to the new timeline at once, while the new primary's first checkpoint
// takes its time (as long as any: minutes). Until it is there, the last restart
// point lies on the old timeline, and what is replayed since on both.

// errSwitched is returned when a standby went over to another timeline while
// it was copied.
var errSwitched = errors.New("the standby went over to another timeline while it was copied")

func switched(to wal.TimelineID) error {
	return exit.Wrap(errSwitched, exit.Failed, "run the command again", "it is on timeline %s now", to)
}

// promoted is the error of an attempt that a promotion ended.
func promoted() error {
	return exit.Wrap(errPromoted, exit.Failed, "run the command again", "the copy was begun from a standby")
}

// settled makes the checkpoint that a backup begins at. A standby that is on
// another timeline than its last restart point gets so long to make one there.
func (s *server) settled(ctx context.Context, timeout time.Duration, p progress.Reporter) (point, error) {
	for begin, said := time.Now(), false; ; {
		start, err := s.begin(ctx)
		if err != nil || !s.inRecovery {
			return start, err
		}
		now, from, err := s.following(ctx)
		if err != nil || now <= start.Timeline {
			return start, err
		}
		if time.Since(begin) >= timeout {
			return point{}, exit.New(exit.Failed, "run CHECKPOINT on the primary of timeline "+now.String()+from+", then the command again; --timeout waits longer",
				"the standby is on timeline %s, its last restart point still on timeline %s: no checkpoint of the new primary has arrived within %s", now, start.Timeline, timeout)
		}
		if !said {
			said = true
			p.Note("the standby waits for the first checkpoint of the primary of timeline %s; CHECKPOINT there%s makes it at once", now, from)
		}
		select {
		case <-ctx.Done():
			return point{}, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// following returns the timeline that a standby has replayed, and in words where
// it receives it from. It is up to date behind a CHECKPOINT, which notes it.
func (s *server) following(ctx context.Context) (now wal.TimelineID, from string, err error) {
	var tli int64
	err = postgres.Query(ctx, s.conn, `SELECT min_recovery_end_timeline,
		coalesce((SELECT format(' (this standby receives from host=%s port=%s)', sender_host, sender_port) FROM pg_stat_wal_receiver WHERE sender_host IS NOT NULL), '')
		FROM pg_control_recovery()`, nil, &tli, &from)
	return wal.TimelineID(tli), from, err
}
