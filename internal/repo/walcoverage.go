package repo

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"

	"tidemark/pkg/wal"
)

// SegmentRun is a run of consecutive segments, both ends included.
type SegmentRun struct {
	First, Last wal.SegmentNumber
}

// WALCoverage is what the archive holds of one timeline.
type WALCoverage struct {
	Timeline wal.TimelineID
	Runs     []SegmentRun        // ascending; between two runs is a gap
	Partials []wal.SegmentNumber // segments of which a .partial file is there
	History  bool                // the .history file is there
	Segments int
	Stored   int64 // bytes of all objects
}

// Has reports whether segment n is there in full.
func (w *WALCoverage) Has(n wal.SegmentNumber) bool {
	_, ok := slices.BinarySearchFunc(w.Runs, n, func(r SegmentRun, n wal.SegmentNumber) int {
		switch {
		case r.Last < n:
			return -1
		case r.First > n:
			return 1
		}
		return 0
	})
	return ok
}

// WALCoverage lists the archive per timeline, ascending. size is the cluster's
// segment size; 0 asks the archive itself.
func (c *Cluster) WALCoverage(ctx context.Context, size wal.SegmentSize) ([]*WALCoverage, error) {
	if size == 0 {
		var err error
		if size, err = c.SegmentSize(ctx); err != nil {
			return nil, err
		}
	}
	byTimeline := map[wal.TimelineID]*WALCoverage{}
	numbers := map[wal.TimelineID][]wal.SegmentNumber{}
	err := c.listWAL(ctx, func(f wal.FileName, stored int64) error {
		w := byTimeline[f.Timeline]
		if w == nil {
			w = &WALCoverage{Timeline: f.Timeline}
			byTimeline[f.Timeline] = w
		}
		w.Stored += stored
		switch f.Kind {
		case wal.FileHistory:
			w.History = true
		case wal.FilePartial:
			if n, ok := f.Number(size); ok {
				w.Partials = append(w.Partials, n)
			}
		case wal.FileSegment:
			if n, ok := f.Number(size); ok {
				numbers[f.Timeline] = append(numbers[f.Timeline], n)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := make([]*WALCoverage, 0, len(byTimeline))
	for tli, w := range byTimeline {
		w.Segments = len(numbers[tli])
		w.Runs = segmentRuns(numbers[tli])
		slices.Sort(w.Partials)
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b *WALCoverage) int { return int(int64(a.Timeline) - int64(b.Timeline)) })
	return out, nil
}

func segmentRuns(numbers []wal.SegmentNumber) []SegmentRun {
	slices.Sort(numbers)
	var runs []SegmentRun
	for _, n := range numbers {
		if k := len(runs); k > 0 && runs[k-1].Last+1 == n {
			runs[k-1].Last = n
			continue
		}
		runs = append(runs, SegmentRun{n, n})
	}
	return runs
}

func (c *Cluster) listWAL(ctx context.Context, each func(f wal.FileName, stored int64) error) error {
	return c.driver.List(ctx, c.prefix+"wal/", func(i ObjectInfo) error {
		f, ok := wal.ParseFileName(strings.TrimSuffix(path.Base(i.Name), ".zst"))
		if !ok || c.walObject(f).Name != i.Name {
			return nil
		}
		return each(f, i.Size)
	})
}

// SegmentSize returns the cluster's WAL segment size as the archive knows it,
// 0 when it holds no segment.
func (c *Cluster) SegmentSize(ctx context.Context) (wal.SegmentSize, error) {
	c.segSize.Lock()
	defer c.segSize.Unlock()
	if c.segSize.size != 0 {
		return wal.SegmentSize(c.segSize.size), nil
	}
	var found wal.FileName
	stop := errors.New("found")
	err := c.listWAL(ctx, func(f wal.FileName, _ int64) error {
		if f.Kind == wal.FileSegment {
			found = f
			return stop
		}
		return nil
	})
	if err != nil && !errors.Is(err, stop) {
		return 0, err
	}
	if found.Kind == 0 {
		return 0, nil
	}
	idx, err := c.readIndex(ctx, c.walObject(found))
	if err != nil {
		return 0, err
	}
	c.segSize.size = uint32(idx.raw)
	return wal.SegmentSize(idx.raw), nil
}
