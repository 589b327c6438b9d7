package wal

import (
	"bytes"
	"context"
	"fmt"
	"io"
)

// Segment is an open WAL segment. Its bytes may be fewer than the segment size
// when the file is incomplete.
type Segment interface {
	io.ReaderAt
	io.Closer
}

// Source finds segments. It decides which file, of which timeline, stands for a
// segment number; this package does not look at directories. OpenSegment may
// be called from several goroutines at once. It returns an error that matches
// ErrNoSegment when there is none.
type Source interface {
	OpenSegment(ctx context.Context, n SegmentNumber) (Segment, error)
}

// SourceFunc makes a Source of a function.
type SourceFunc func(ctx context.Context, n SegmentNumber) (Segment, error)

// OpenSegment calls f.
func (f SourceFunc) OpenSegment(ctx context.Context, n SegmentNumber) (Segment, error) {
	return f(ctx, n)
}

// SegmentReader is a Source of the single segment n, read from r. Closing the
// segment does not close r.
func SegmentReader(n SegmentNumber, r io.ReaderAt) Source {
	return SourceFunc(func(_ context.Context, want SegmentNumber) (Segment, error) {
		if want != n {
			return nil, fmt.Errorf("segment %d: %w", want, ErrNoSegment)
		}
		return unclosed{r}, nil
	})
}

// MemorySource holds segments in memory.
type MemorySource map[SegmentNumber][]byte

// OpenSegment returns the segment's bytes.
func (m MemorySource) OpenSegment(_ context.Context, n SegmentNumber) (Segment, error) {
	b, ok := m[n]
	if !ok {
		return nil, fmt.Errorf("segment %d: %w", n, ErrNoSegment)
	}
	return unclosed{bytes.NewReader(b)}, nil
}

type unclosed struct{ io.ReaderAt }

func (unclosed) Close() error { return nil }
