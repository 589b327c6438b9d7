package recovery

import (
	"context"
	"errors"
	"time"

	"tidemark/pkg/wal"
)

// Stop is the record at which replay stops.
type Stop struct {
	LSN    wal.LSN   `json:"lsn"`           // where the record begins
	End    wal.LSN   `json:"end"`           // where replay ends: in front of the record or behind it
	Before bool      `json:"before"`        // replay ends in front of it
	Time   time.Time `json:"time,omitzero"` // when the transaction ended, or the restore point was made
	XID    uint32    `json:"xid,omitempty"` // of the transaction that the record ends
}

// errNotThere is returned when the archived WAL holds no record at which the
// server would stop for the target.
var errNotThere = errors.New("the target is not in the archived WAL")

// locator looks for a target in one unbroken run of segments.
type locator struct {
	archive *archive
	target  Target
	major   int
}

func (l *locator) options(from wal.LSN) wal.Options {
	return wal.Options{Start: from, FindFirst: true, SegmentSize: l.archive.size,
		SystemID: l.archive.cluster.SystemID(), Major: l.major}
}

// scan reads records from a position to the end of the segment last, until
// visit returns true. The archive's last segment may end early.
func (l *locator) scan(ctx context.Context, from wal.LSN, last wal.SegmentNumber, visit func(*wal.Record) (bool, error)) (bool, error) {
	opt := l.options(from)
	opt.End = l.archive.size.End(last)
	r, err := wal.NewReader(ctx, l.archive, opt)
	if err != nil {
		return false, err
	}
	defer r.Close()
	for r.Next() {
		if done, err := visit(r.Record()); done || err != nil {
			return done, err
		}
	}
	var torn *wal.TornTail
	if err := r.Err(); err != nil && !errors.As(err, &torn) && !errors.Is(err, wal.ErrNoSegment) {
		return false, err
	}
	return false, nil
}

// find returns where the server stops when it replays from a position on.
func (l *locator) find(ctx context.Context, from wal.LSN, last wal.SegmentNumber) (Stop, error) {
	if l.target.Kind == AtTime {
		var err error
		if from, err = l.narrow(ctx, from, last); err != nil {
			return Stop{}, err
		}
	}
	if l.target.Kind == AtLSN && l.target.LSN > from {
		from = l.target.LSN
	}
	if from >= l.archive.size.End(last) {
		return Stop{}, errNotThere
	}
	var stop Stop
	found, err := l.scan(ctx, from, last, func(r *wal.Record) (done bool, err error) {
		stop, done, err = l.stopsAt(r)
		return done, err
	})
	if err == nil && !found {
		err = errNotThere
	}
	return stop, err
}

// stopsAt applies the server's rule for stopping to a record.
func (l *locator) stopsAt(r *wal.Record) (Stop, bool, error) {
	stop := Stop{LSN: r.LSN, End: r.End}
	if l.target.Kind == AtLSN {
		if stop.Before = l.target.Exclusive; stop.Before {
			stop.End = endBefore(r.LSN)
		}
		return stop, r.LSN >= l.target.LSN, nil
	}
	if r.RMID != wal.RmTransaction && r.RMID != wal.RmXLOG {
		return Stop{}, false, nil
	}
	detail, err := wal.Decode(r)
	if err != nil {
		return Stop{}, false, err
	}
	switch d := detail.(type) {
	case *wal.Commit:
		stop.Time, stop.XID = d.Time, d.XID
	case *wal.Abort:
		stop.Time, stop.XID = d.Time, d.XID
	case *wal.RestorePoint:
		stop.Time = d.Time
		return stop, l.target.Kind == AtName && d.Name == l.target.Name, nil
	default:
		return Stop{}, false, nil
	}
	hit := false
	switch l.target.Kind {
	case AtXID:
		hit, stop.Before = stop.XID == l.target.XID, l.target.Exclusive
	case AtTime:
		hit, stop.Before = l.past(stop.Time), true
	}
	if stop.Before {
		stop.End = endBefore(r.LSN)
	}
	return stop, hit, nil
}

// endBefore returns where a server says that it is when it stops before a
// record: at the end of the one before, which for the first record of a page is
// the page's begin.
func endBefore(lsn wal.LSN) wal.LSN {
	if at := lsn % wal.DefaultPageSize; at == wal.ShortHeaderSize || at == wal.LongHeaderSize {
		return lsn - at
	}
	return lsn
}

// past tells whether a transaction that ended at t is behind the target.
func (l *locator) past(t time.Time) bool {
	if l.target.Exclusive {
		return !t.Before(l.target.Time)
	}
	return t.After(l.target.Time)
}

// narrow brings the start of the search for a time near to it: the segments
// are in the order of time, so their first commits can be searched by halves.
func (l *locator) narrow(ctx context.Context, from wal.LSN, last wal.SegmentNumber) (wal.LSN, error) {
	size := l.archive.size
	low, high := size.Number(from), last // the answer's segment is in [low, high]
	for low < high {
		mid := low + (high-low+1)/2
		at, ok, err := l.firstEnd(ctx, size.Start(mid), last)
		if err != nil {
			return 0, err
		}
		if ok && !l.past(at) {
			low = mid
		} else {
			high = mid - 1
		}
	}
	return max(from, size.Start(low)), nil
}

// firstEnd returns when the first transaction behind a position ended.
func (l *locator) firstEnd(ctx context.Context, from wal.LSN, last wal.SegmentNumber) (at time.Time, ok bool, err error) {
	ok, err = l.scan(ctx, from, last, func(r *wal.Record) (bool, error) {
		at, ok, err = transactionEnd(r)
		return ok, err
	})
	return at, ok, err
}

// transactionEnd returns the time in a commit or abort record.
func transactionEnd(r *wal.Record) (time.Time, bool, error) {
	if r.RMID != wal.RmTransaction {
		return time.Time{}, false, nil
	}
	detail, err := wal.Decode(r)
	if err != nil {
		return time.Time{}, false, err
	}
	switch d := detail.(type) {
	case *wal.Commit:
		return d.Time, true, nil
	case *wal.Abort:
		return d.Time, true, nil
	}
	return time.Time{}, false, nil
}

// lastEnd returns when the last transaction before a position ended, looking
// back no further than the segment first.
func (l *locator) lastEnd(ctx context.Context, first wal.SegmentNumber, before wal.LSN) (at time.Time, ok bool, err error) {
	for n := l.archive.size.NumberBefore(before); n >= first; n-- {
		_, err := l.scan(ctx, l.archive.size.Start(n), n, func(r *wal.Record) (bool, error) {
			if r.LSN >= before {
				return true, nil
			}
			t, is, err := transactionEnd(r)
			if is {
				at, ok = t, true
			}
			return false, err
		})
		if err != nil || ok || n == 0 {
			return at, ok, err
		}
	}
	return at, ok, nil
}
