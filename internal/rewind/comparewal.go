package rewind

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/pkg/timeline"
	"tidemark/pkg/wal"
)

// tailBytes is how much WAL before the end is compared: when two logs agree
// there, they agree before.
const tailBytes = 64 << 10

// compareWAL finds out whether two logs of the same timeline are one up to
// limit. A standby that was opened without a promotion leaves no history file;
// only the WAL itself tells. It returns the first record that differs, or 0.
func (j *job) compareWAL(ctx context.Context, tli timeline.ID, limit wal.LSN) (wal.LSN, error) {
	size := j.tc.XLogSegSize
	last := size.NumberBefore(limit)
	from := max(size.Start(last), limit-min(limit, tailBytes))
	diff, err := j.differ(ctx, from, limit)
	if errors.Is(err, wal.ErrNoSegment) {
		return 0, exit.Wrap(err, exit.Failed, "copy the segment from the WAL archive into pg_wal of the side that lacks it",
			"both sides are on timeline %d and their WAL up to %s cannot be compared", tli, limit)
	}
	if err != nil || diff == 0 {
		return 0, err
	}
	begin, _ := j.th.SpanOf(tli)
	first := size.Number(begin.Begin)
	// Segments below lo agree (or are not there to tell); hi differs.
	lo, hi := first, last
	for lo < hi {
		mid := lo + (hi-lo)/2
		d, err := j.differ(ctx, size.Start(mid), min(size.End(mid), limit))
		switch {
		case errors.Is(err, wal.ErrNoSegment):
			lo = mid + 1
		case err != nil:
			return 0, err
		case d != 0:
			hi = mid
		default:
			lo = mid + 1
		}
	}
	diff, err = j.differ(ctx, size.Start(hi), min(size.End(hi), limit))
	if err != nil {
		return 0, err
	}
	return j.recordAt(ctx, hi, diff)
}

// differ returns the first position in a part of one segment at which the two
// sides' WAL differs, 0 where it does not.
func (j *job) differ(ctx context.Context, from, to wal.LSN) (wal.LSN, error) {
	size := j.tc.XLogSegSize
	n := size.Number(from)
	seg, err := j.wal.OpenSegment(ctx, n)
	if err != nil {
		return 0, err
	}
	defer seg.Close()
	names := candidates(j.sh, size, n)
	if len(names) == 0 {
		return 0, wal.ErrNoSegment
	}
	found := wal.LSN(0)
	r := blockcopy.Range{Path: "pg_wal/" + names[0], Offset: int64(size.Offset(from)), Length: int64(to - from)}
	err = j.source.Fetch(ctx, []blockcopy.Range{r}, func(piece blockcopy.Range, data []byte, gone bool) error {
		if gone || int64(len(data)) < piece.Length {
			return fmt.Errorf("%s at the source: %w", names[0], wal.ErrNoSegment)
		}
		mine := make([]byte, len(data))
		if _, err := seg.ReadAt(mine, piece.Offset); err != nil && err != io.EOF {
			return err
		}
		if found == 0 && !bytes.Equal(mine, data) {
			i := 0
			for mine[i] == data[i] {
				i++
			}
			found = size.Start(n) + wal.LSN(piece.Offset) + wal.LSN(i)
		}
		return nil
	})
	return found, err
}

// recordAt returns the start of the record that holds the byte at pos, which
// lies in segment n.
func (j *job) recordAt(ctx context.Context, n wal.SegmentNumber, pos wal.LSN) (wal.LSN, error) {
	size := j.tc.XLogSegSize
	start := size.Start(n)
	if n > 0 {
		if seg, err := j.wal.OpenSegment(ctx, n-1); err == nil {
			start = size.Start(n - 1) // the record may begin there
			seg.Close()
		}
	}
	o := j.walOptions(start)
	o.FindFirst = true
	r, err := wal.NewReader(ctx, j.wal, o)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	for r.Next() {
		if rec := r.Record(); rec.End > pos {
			return rec.LSN, nil
		}
	}
	return 0, j.explainWAL(errors.Join(r.Err(), r.End()), fmt.Sprintf("looking for the record at %s", pos))
}
