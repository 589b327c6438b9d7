package rewind

import (
	"context"
	"fmt"
	"strings"

	"tidemark/internal/postgres"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// heading is the timeline that a source is on, which its pg_control may not
// tell yet: a standby that went over to the new primary's timeline says so only
// once it has written a page. It has the timeline's history file then, and once
// it is past the switch WAL of that timeline. With tli for an answer there is
// none, or it stayed on its own.
func (s *source) heading(ctx context.Context, c *volume.Control, tli timeline.ID) timeline.ID {
	if !s.live() || c.State != volume.StateInArchiveRecovery {
		return tli
	}
	conn, err := postgres.Connect(ctx, s.conn)
	if err != nil {
		return tli
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var names, replayed string
	const ask = `SELECT coalesce(pg_last_wal_replay_lsn()::text, '0/0'), coalesce(string_agg(name, ' ' ORDER BY name DESC), '') FROM pg_ls_dir('pg_wal', true, false) AS d(name)`
	if err := postgres.Query(ctx, conn, ask, nil, &replayed, &names); err != nil {
		return tli
	}
	at, err := wal.ParseLSN(replayed)
	if err != nil {
		return tli
	}
	for _, name := range strings.Fields(names) {
		f, ok := wal.ParseFileName(name)
		if !ok || f.Kind != wal.FileHistory || f.Timeline <= tli {
			continue
		}
		h, err := readHistory(f.Timeline, "the source", s.read(ctx))
		if err != nil {
			continue
		}
		old, descends := h.SpanOf(tli)
		span, _ := h.SpanOf(f.Timeline)
		if !descends || old.End != 0 && c.MinRecoveryPointTLI == tli && c.MinRecoveryPoint > old.End {
			continue
		}
		if at <= span.Begin || strings.Contains(" "+names, fmt.Sprintf(" %08X0", uint32(f.Timeline))) {
			return f.Timeline
		}
	}
	return tli
}
