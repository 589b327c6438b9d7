package rewind

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"tidemark/internal/blockcopy"
	"tidemark/pkg/timeline"
	"tidemark/pkg/wal"
)

// targetWAL finds the target's segments along its history: the file of the
// newest timeline that reaches into a segment holds the older ones' part too.
// A segment that is not in the target's pg_wal is searched for in the places,
// and where it holds common WAL in the source's pg_wal.
type targetWAL struct {
	target  string
	history *timeline.History
	size    wal.SegmentSize
	search  *walSearch

	// Segments below fork hold common WAL: those that the target recycled
	// are read from the source. 0 as long as the fork is not known.
	fork   wal.SegmentNumber
	source *source
	common *timeline.History // the source's
	lends  sync.Mutex
	loaned map[wal.SegmentNumber]*os.File // fetched from the source, unlinked

	ahead prefetch
	mu    sync.Mutex
	found map[wal.SegmentNumber]string // where what was opened lies
}

func newTargetWAL(target string, h *timeline.History, size wal.SegmentSize, search *walSearch) *targetWAL {
	return &targetWAL{target: target, history: h, size: size, search: search,
		loaned: map[wal.SegmentNumber]*os.File{}, found: map[wal.SegmentNumber]string{}}
}

// close gives back what was fetched.
func (t *targetWAL) close() {
	for _, f := range t.loaned {
		f.Close()
	}
}

// candidates are the names under which segment n may lie, the best first.
func candidates(h *timeline.History, size wal.SegmentSize, n wal.SegmentNumber) []string {
	var names []string
	spans := h.Spans()
	for i := len(spans) - 1; i >= 0; i-- {
		s := spans[i]
		if s.Begin < size.End(n) && (s.End == 0 || s.End > size.Start(n)) {
			names = append(names, wal.SegmentName(s.Timeline, n, size))
		}
	}
	return names
}

// Where a segment lies, for people and in JSON.
const (
	inTarget = "the target's pg_wal"
	inSource = "the source's pg_wal"
)

// OpenSegment opens a segment in pg_wal, or one that was searched for.
func (t *targetWAL) OpenSegment(ctx context.Context, n wal.SegmentNumber) (wal.Segment, error) {
	names := candidates(t.history, t.size, n)
	for _, name := range names {
		f, err := os.Open(filepath.Join(t.target, "pg_wal", name))
		if err == nil {
			return t.note(n, inTarget, f), nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("segment %d is on no timeline of the target: %w", n, wal.ErrNoSegment)
	}
	t.fetchAhead(n)
	miss := &missingWAL{names: names[:1], looked: []string{inTarget}}
	var fault error
	for _, name := range names {
		if !t.unequivocal(n, name) {
			continue
		}
		f, l, err := t.search.open(ctx, name)
		if err != nil {
			return nil, err
		}
		if f != nil {
			return t.note(n, l.where, f), nil
		}
		if name == names[0] {
			miss.looked = append(miss.looked, l.asked...)
		}
		fault = errors.Join(fault, l.fault)
	}
	if n < t.fork {
		f, err := t.borrow(ctx, n)
		if err != nil {
			return nil, err
		}
		if f != nil {
			return t.note(n, inSource, loan{f}), nil
		}
		miss.looked = append(miss.looked, inSource)
	}
	if fault != nil {
		return nil, &archiveFault{names[0], fault}
	}
	return nil, miss
}

// note remembers where a segment was found.
func (t *targetWAL) note(n wal.SegmentNumber, where string, s wal.Segment) wal.Segment {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.found[n] = where
	return s
}

// unequivocal tells whether an archive can hold only the target's segment
// under a name.
func (t *targetWAL) unequivocal(n wal.SegmentNumber, name string) bool {
	return t.common == nil || unequivocal(t.common.Spans(), t.size, t.fork, n, name)
}

// loan is a borrowed segment: it stays open until the end.
type loan struct{ *os.File }

func (loan) Close() error { return nil }

// borrow fetches a segment of common WAL from the source into a file without a
// name; nil where the source lacks it, too.
func (t *targetWAL) borrow(ctx context.Context, n wal.SegmentNumber) (*os.File, error) {
	t.lends.Lock()
	defer t.lends.Unlock()
	if f := t.loaned[n]; f != nil {
		return f, nil
	}
	for _, name := range candidates(t.common, t.size, n) {
		f, err := t.download(ctx, "pg_wal/"+name)
		if err != nil || f != nil {
			t.loaned[n] = f
			return f, err
		}
	}
	return nil, nil
}

func (t *targetWAL) download(ctx context.Context, path string) (*os.File, error) {
	f, err := os.CreateTemp("", "dbrewind-wal-")
	if err != nil {
		return nil, err
	}
	missing := false
	err = errors.Join(os.Remove(f.Name()), t.source.Fetch(ctx, []blockcopy.Range{{Path: path, Length: int64(t.size)}},
		func(piece blockcopy.Range, data []byte, gone bool) error {
			missing = missing || gone || int64(len(data)) < piece.Length
			_, err := f.WriteAt(data, piece.Offset)
			return err
		}))
	if err != nil || missing {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
