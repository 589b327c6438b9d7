package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/postgres"
	"tidemark/internal/repo"
	"tidemark/pkg/timeline"
	"tidemark/pkg/wal"
)

// From version 17 on a server with summarize_wal = on keeps summaries of its
// WAL: files that say which blocks a range changed, from one checkpoint's redo
// point to another's or to the end of a timeline. Where they cover the time
// since the previous backup they are asked, over SQL, instead of reading the WAL:
// that is quicker, and the WAL need not be there any more.
//
// What they say is taken as what the WAL says (walmap.go), with these rules:
//
//   - they have to cover the range on every timeline of the line of descent,
//     without a gap, and one has to begin where the previous backup does: a
//     server that had parted from that one before has its checkpoints elsewhere;
//   - a relation's limit block is the least length that it had: what lies from
//     there on is read, and in full where it was made anew;
//   - a limit of relation 0 is a whole database: made, by copying files or not, or dropped;
//   - what the previous backup's own WAL changed counts as changed as well,
//     should this server have parted from that one while it was copied.
//
// FSM and VM forks are read in full, whatever they say.

// Proofs say why blocks of a backup need not have been read.
const (
	ProofWAL       = "wal"
	ProofSummaries = "wal summaries"
)

// summaryWait is how long the server's summarizer may be behind the checkpoint.
const summaryWait = 10 * time.Second

// walSummary is one of the server's summary files.
type walSummary struct {
	Timeline   wal.TimelineID
	Start, End wal.LSN
}

// summarized returns what the server's summaries say since base began.
func (j *job) summarized(ctx context.Context, base *repo.Summary) (*wal.Map, error) {
	if j.server.major < 17 {
		return nil, unprovenf("version %d has no WAL summaries", j.server.major)
	}
	history, err := j.historyOf(ctx, j.start.Timeline)
	if err != nil {
		return nil, unprovenf("%v", err)
	}
	if !history.Contains(base.Stop.Timeline, base.Stop.LSN) {
		return nil, unprovenf("backup %s ends at %s, which timeline %s does not come from", base.ID, base.Stop, j.start.Timeline)
	}
	list, err := j.server.coverage(ctx, history, base.Start.LSN, j.start.Redo)
	if err != nil {
		return nil, err
	}
	own, err := j.ownWAL(ctx, base)
	if err != nil {
		return nil, err
	}
	m, err := j.server.summaries(ctx, list)
	if err != nil {
		return nil, err
	}
	m.Include(own)
	return m, nil
}

// ownWAL reads the WAL that base itself needs, which is in the repository. Where
// the server still has the segment of base's checkpoint, it has to be the same.
func (j *job) ownWAL(ctx context.Context, base *repo.Summary) (*wal.Map, error) {
	src, err := j.walSince(ctx, base)
	if err != nil {
		return nil, err
	}
	opt := j.walOptions()
	opt.Start, opt.End = base.Start.LSN, base.Stop.LSN
	if err := sameCheckpoint(ctx, src, opt, base); err != nil {
		return nil, err
	}
	there := live(j.src, base.Start.Timeline, opt.SegmentSize)
	seg, err := there.OpenSegment(ctx, opt.SegmentSize.Number(base.Checkpoint))
	if err == nil {
		seg.Close()
		err = sameCheckpoint(ctx, there, opt, base)
	}
	if err != nil && !errors.Is(err, wal.ErrNoSegment) {
		return nil, err
	}
	m, end, err := wal.ScanMap(ctx, src, wal.ScanOptions{Options: opt, Workers: j.Jobs})
	if err == nil && end != nil {
		err = unprovenf("the WAL of backup %s is not whole: %v", base.ID, end)
	}
	return m, err
}

// coverage returns the summaries that cover a range, once the summarizer has
// come so far.
func (s *server) coverage(ctx context.Context, h *timeline.History, from, to wal.LSN) ([]walSummary, error) {
	var on bool
	if err := s.conn.QueryRow(ctx, "SELECT current_setting('summarize_wal')::bool").Scan(&on); err != nil {
		return nil, unprovenf("%v", postgres.Explain(err))
	}
	for deadline := time.Now().Add(summaryWait); ; {
		all, err := s.allSummaries(ctx)
		if err != nil {
			return nil, err
		}
		list, behind, lacks := covering(all, h, from, to)
		if lacks == nil {
			return list, nil
		}
		if !on || !behind || time.Now().After(deadline) {
			return nil, lacks
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// allSummaries lists what the server has.
func (s *server) allSummaries(ctx context.Context) ([]walSummary, error) {
	rows, err := s.conn.Query(ctx, "SELECT tli, start_lsn::text, end_lsn::text FROM pg_available_wal_summaries()")
	if err != nil {
		return nil, unprovenf("the WAL summaries cannot be listed: %v", postgres.Explain(err))
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (w walSummary, err error) {
		var tli int64
		var start, end string
		if err := row.Scan(&tli, &start, &end); err != nil {
			return w, err
		}
		w.Timeline = wal.TimelineID(tli)
		var e1, e2 error
		w.Start, e1 = wal.ParseLSN(start)
		w.End, e2 = wal.ParseLSN(end)
		return w, errors.Join(e1, e2)
	})
	if err != nil {
		return nil, unprovenf("the WAL summaries cannot be listed: %v", postgres.Explain(err))
	}
	return list, nil
}

// covering picks the summaries that cover a range along a line of descent. With
// an error, behind says that what is missing may still come: there is nothing
// behind it.
func covering(all []walSummary, h *timeline.History, from, to wal.LSN) (out []walSummary, behind bool, err error) {
	comes := func(tli wal.TimelineID, at wal.LSN) bool {
		return !slices.ContainsFunc(all, func(w walSummary) bool { return w.Timeline > tli || w.Timeline == tli && w.End > at })
	}
	first := h.TimelineAt(from)
	if from < to && !slices.ContainsFunc(all, func(w walSummary) bool { return w.Timeline == first && w.Start == from }) {
		return nil, comes(first, from), unprovenf("no WAL summary of the server begins at %s", from)
	}
	for _, span := range h.Spans() {
		at, end := max(from, span.Begin), to
		if span.End != 0 {
			end = min(to, span.End)
		}
		for at < end {
			i := slices.IndexFunc(all, func(w walSummary) bool { return w.Timeline == span.Timeline && w.Start <= at && w.End > at })
			if i < 0 {
				return nil, comes(span.Timeline, at), unprovenf("the server has no WAL summary of timeline %s from %s on", span.Timeline, at)
			}
			out, at = append(out, all[i]), all[i].End
		}
	}
	return out, false, nil
}

// summaries asks for the content of summaries.
func (s *server) summaries(ctx context.Context, list []walSummary) (*wal.Map, error) {
	m := wal.NewMap()
	if len(list) == 0 {
		return m, nil
	}
	var timelines []int64
	var starts, ends []string
	for _, w := range list {
		timelines, starts, ends = append(timelines, int64(w.Timeline)), append(starts, w.Start.String()), append(ends, w.End.String())
	}
	rows, err := s.conn.Query(ctx, `SELECT c.relfilenode::bigint, c.reltablespace::bigint, c.reldatabase::bigint, c.relblocknumber, c.is_limit_block
		FROM unnest($1::bigint[], $2::text[], $3::text[]) AS w(tli, start, stop), pg_wal_summary_contents(w.tli, w.start::pg_lsn, w.stop::pg_lsn) AS c
		WHERE c.relforknumber = 0`, timelines, starts, ends)
	if err != nil {
		return nil, unprovenf("the WAL summaries cannot be read: %v", postgres.Explain(err))
	}
	var rel, space, db, block int64
	var limit bool
	_, err = pgx.ForEachRow(rows, []any{&rel, &space, &db, &block, &limit}, func() error {
		f := wal.RelFile{Tablespace: uint32(space), Database: uint32(db), Relation: uint32(rel)}
		switch {
		case block < 0 || block > int64(wal.NoLimit):
			return fmt.Errorf("block %d of %s", block, f)
		case rel == 0:
			m.Databases = append(m.Databases, wal.DatabaseEvent{Create: &wal.DatabaseCreate{Tablespace: f.Tablespace, Database: f.Database}})
		case limit:
			m.AddLimit(f, uint32(block))
		default:
			m.AddBlock(f, uint32(block))
		}
		return nil
	})
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, unprovenf("the WAL summaries cannot be read: %v", postgres.Explain(err))
	}
	return m, nil
}
