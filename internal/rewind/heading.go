package rewind

import (
	"context"
	"fmt"
	"strings"

	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// replayed is how far a live standby is. Its pg_control tells only of what it
// has written pages for: one that went over to the new primary's timeline may
// still show the old one, from before the fork.
func (s *source) replayed(ctx context.Context, c *volume.Control) (wal.LSN, timeline.ID, error) {
	at, tli, begin, err := s.onTimeline(ctx, c)
	if err != nil {
		return 0, 0, err
	}
	if at = max(at, c.MinRecoveryPoint); tli != c.MinRecoveryPointTLI && at <= begin {
		tli = c.MinRecoveryPointTLI // it has the history, and nothing of it yet
	}
	return at, tli, nil
}

// heading is the timeline that a source is on or, as a standby that knows of
// it, will go over to. tli is what is known otherwise.
func (s *source) heading(ctx context.Context, c *volume.Control, tli timeline.ID) timeline.ID {
	if !s.live() || c.State != volume.StateInArchiveRecovery {
		return tli
	}
	if _, now, _, err := s.onTimeline(ctx, c); err == nil {
		tli = max(tli, now)
	}
	return tli
}

// onTimeline asks a live standby for its replay position, and finds the
// timeline of it and where that begins: the newest that descends from
// pg_control's and whose history file is there; once replay is past its
// begin there must be WAL of it, too: otherwise the standby stayed behind.
func (s *source) onTimeline(ctx context.Context, c *volume.Control) (at wal.LSN, tli timeline.ID, begin wal.LSN, err error) {
	var names, replayed string
	const ask = `SELECT coalesce(pg_last_wal_replay_lsn()::text, '0/0'), coalesce(string_agg(name, ' ' ORDER BY name DESC), '') FROM pg_ls_dir('pg_wal', true, false) AS d(name)`
	if err := s.server.Query(ctx, ask, nil, &replayed, &names); err != nil {
		return 0, 0, 0, err
	}
	if at, err = wal.ParseLSN(replayed); err != nil {
		return 0, 0, 0, err
	}
	for _, name := range strings.Fields(names) {
		f, ok := wal.ParseFileName(name)
		if !ok || f.Kind != wal.FileHistory || f.Timeline <= c.MinRecoveryPointTLI {
			continue
		}
		h, err := readHistory(f.Timeline, "the source", s.read(ctx))
		if err != nil || !h.Contains(c.MinRecoveryPointTLI, c.MinRecoveryPoint) {
			continue
		}
		span, _ := h.SpanOf(f.Timeline)
		if at <= span.Begin || strings.Contains(" "+names, fmt.Sprintf(" %08X0", uint32(f.Timeline))) {
			return at, f.Timeline, span.Begin, nil
		}
	}
	return at, c.MinRecoveryPointTLI, 0, nil
}
