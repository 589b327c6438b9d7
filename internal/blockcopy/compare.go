package blockcopy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// HashBlockSize is the block in which two copies are compared first; only
// where it differs its own blocks are. At the source hashing blocks of 8 KB
// costs a quarter more than blocks of 1 MB, and their digests are 0.2% of the
// data.
const HashBlockSize = 1 << 20

// Comparer finds out where a target's files differ from a source's, by hashes
// on both sides. What travels are digests: 16 bytes for a megabyte that is
// equal, 2 KB more for one that is not.
type Comparer struct {
	Source    Source // a Hasher
	Target    string // data directory
	BlockSize int64  // the unit of the answer, DefaultHashUnit where 0
	Jobs      int    // connections, DefaultJobs where 0
	// Progress, where set, is told of bytes compared.
	Progress func(n int64)
}

// DefaultHashUnit is the block of a cluster built as servers are.
const DefaultHashUnit = 8192

// ErrNoHashes is returned when a source cannot hash.
var ErrNoHashes = errors.New("this source cannot hash its blocks")

// Differences is what a comparison found.
type Differences struct {
	// Spans are the parts that differ, by path: whole blocks (the last one of
	// a range may be shorter), ascending, neighbours merged. A path without
	// any is equal. A file that the source no longer has differs everywhere.
	Spans    map[string][]Span
	Compared int64 // bytes on each side
	Digests  int64 // bytes of digests that travelled
}

// Bytes sums the spans.
func (d *Differences) Bytes() int64 {
	var n int64
	for _, spans := range d.Spans {
		n += Action{Kind: CopyBlocks, Spans: spans}.Bytes()
	}
	return n
}

// Compare compares ranges; the ranges of one path must ascend. Memory is
// bounded by the answer, plus a megabyte a job.
func (c *Comparer) Compare(ctx context.Context, ranges []Range) (*Differences, error) {
	hasher, ok := c.Source.(Hasher)
	if !ok {
		return nil, fmt.Errorf("%s: %w", c.Source.Name(), ErrNoHashes)
	}
	unit := cmp.Or(c.BlockSize, DefaultHashUnit)
	run := &comparison{source: hasher, target: NewDirSource(c.Target, false), out: &Differences{Spans: map[string][]Span{}}}
	found := map[int][]Range{} // by task: tasks end in any order
	var mu sync.Mutex
	tasks := SplitTasks(ranges, DefaultTaskBytes)
	err := EachTask(ctx, tasks, c.Jobs, func(ctx context.Context, t Task) error {
		differ, err := run.differ(ctx, t.Ranges, HashBlockSize)
		if err == nil && len(differ) > 0 && unit < HashBlockSize {
			differ, err = run.differ(ctx, differ, unit)
		}
		if err != nil {
			return err
		}
		mu.Lock()
		if len(differ) > 0 {
			found[t.Index] = differ
		}
		run.out.Compared += t.Bytes()
		mu.Unlock()
		if c.Progress != nil {
			c.Progress(t.Bytes())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range tasks {
		for _, r := range found[i] {
			run.out.Spans[r.Path] = appendSpan(run.out.Spans[r.Path], Span{r.Offset, r.Length})
		}
		delete(found, i)
	}
	run.out.Digests = run.digests
	return run.out, nil
}

func appendSpan(spans []Span, s Span) []Span {
	if n := len(spans); n > 0 && spans[n-1].Offset+spans[n-1].Length == s.Offset {
		spans[n-1].Length += s.Length
		return spans
	}
	return append(spans, s)
}

// comparison is one Compare at work.
type comparison struct {
	source Hasher
	target *DirSource
	out    *Differences

	mu      sync.Mutex
	digests int64
}

// differ hashes ranges on both sides at once and returns the blocks that are
// not equal, cut to their range, neighbours merged.
func (c *comparison) differ(ctx context.Context, ranges []Range, blockSize int64) ([]Range, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	mine := make([][]Digest, 0, len(ranges))
	local := make(chan error, 1)
	go func() {
		local <- c.target.Hash(ctx, ranges, blockSize, func(_ Range, d []Digest) error {
			mine = append(mine, append([]Digest(nil), d...))
			return nil
		})
	}()
	var theirs [][]Digest
	var n int64
	err := c.source.Hash(ctx, ranges, blockSize, func(_ Range, d []Digest) error {
		theirs = append(theirs, append([]Digest(nil), d...))
		n += int64(len(d)) * DigestSize
		return nil
	})
	if err != nil {
		cancel()
	}
	if err := errors.Join(err, ignoreCanceled(<-local, err)); err != nil {
		return nil, err
	}
	if len(theirs) != len(ranges) {
		return nil, fmt.Errorf("the source hashed %d ranges of %d", len(theirs), len(ranges))
	}
	c.mu.Lock()
	c.digests += n
	c.mu.Unlock()
	var out []Range
	for i, r := range ranges {
		out = appendDiffering(out, r, mine[i], theirs[i], blockSize)
	}
	return out, nil
}

// ignoreCanceled drops the error of a side that was only stopped because of
// the other's.
func ignoreCanceled(err, cause error) error {
	if cause != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// appendDiffering appends the blocks of r whose digests are not equal.
func appendDiffering(out []Range, r Range, mine, theirs []Digest, blockSize int64) []Range {
	first := len(out)
	for k := int64(0); k*blockSize < r.Length; k++ {
		if k < int64(len(mine)) && k < int64(len(theirs)) && mine[k] == theirs[k] {
			continue
		}
		off := r.Offset + k*blockSize
		length := min(blockSize, r.End()-off)
		if n := len(out); n > first && out[n-1].End() == off {
			out[n-1].Length += length
			continue
		}
		out = append(out, Range{r.Path, off, length})
	}
	return out
}

// EqualFiles tells which of the files are byte for byte the same in the target
// directory and at the source. Their sizes (equal on both sides, or the
// comparison makes no sense) come with the entries. A source that cannot hash
// finds none equal.
func EqualFiles(ctx context.Context, src Source, target string, files []Entry, jobs int) (map[string]bool, error) {
	if _, ok := src.(Hasher); !ok {
		return nil, nil
	}
	var ranges []Range
	for _, f := range files {
		ranges = append(ranges, Range{f.Path, 0, f.Size})
	}
	// A file is cut into megabytes at most: whether it is equal is all that is asked.
	c := &Comparer{Source: src, Target: target, BlockSize: HashBlockSize, Jobs: jobs}
	d, err := c.Compare(ctx, ranges)
	if err != nil {
		return nil, err
	}
	equal := map[string]bool{}
	for _, f := range files {
		fi, err := os.Stat(filepath.Join(target, filepath.FromSlash(f.Path)))
		equal[f.Path] = err == nil && fi.Size() == f.Size && len(d.Spans[f.Path]) == 0
	}
	return equal, nil
}
