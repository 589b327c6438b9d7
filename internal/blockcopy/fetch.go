package blockcopy

import (
	"cmp"
	"context"
	"slices"

	"golang.org/x/sync/errgroup"
)

// Limits of one unit of work. A worker asks its source for at most that much
// at once; the journal notes progress in the same units.
const (
	DefaultTaskBytes = 16 << 20
	planTaskBytes    = 4 << 20 // of a run's plan: small enough to give all workers something to do
	taskRanges       = 256
	taskFiles        = 64       // a task holds its files open
	taskAlign        = 32 << 10 // a file is cut here only, so that no block of any legal size is read in halves
	DefaultJobs      = 4
)

// FetchOptions tune Fetch.
type FetchOptions struct {
	Jobs      int   // workers, DefaultJobs where 0
	TaskBytes int64 // bytes per request to the source, DefaultTaskBytes where 0
	// TaskDone, where set, is called after all of a task's ranges were
	// delivered, by the goroutine that delivered them.
	TaskDone func(ctx context.Context, task Task) error
}

// Task is one unit of work: ranges that one worker asks its source for in one
// call. Their order is the plan's.
type Task struct {
	Index  int
	Ranges []Range
}

// Bytes is the sum of the ranges' lengths.
func (t Task) Bytes() int64 {
	var n int64
	for _, r := range t.Ranges {
		n += r.Length
	}
	return n
}

// Fetch reads ranges from src with several workers and hands the pieces to
// deliver, which is called by several goroutines at once (see Deliver for
// what a piece is). Memory is bounded by the source's piece size times the
// number of jobs. The first error ends it.
func Fetch(ctx context.Context, src Source, ranges []Range, o FetchOptions, deliver Deliver) error {
	return EachTask(ctx, SplitTasks(ranges, o.TaskBytes), o.Jobs, func(ctx context.Context, t Task) error {
		if err := src.Fetch(ctx, t.Ranges, deliver); err != nil || o.TaskDone == nil {
			return err
		}
		return o.TaskDone(ctx, t)
	})
}

// EachTask runs do for every task with several workers, in order as far as these
// allow. The first error ends it.
func EachTask(ctx context.Context, tasks []Task, jobs int, do func(context.Context, Task) error) error {
	g, ctx := errgroup.WithContext(ctx)
	queue := make(chan Task)
	g.Go(func() error {
		defer close(queue)
		for _, t := range tasks {
			select {
			case queue <- t:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	for range min(cmp.Or(jobs, DefaultJobs), len(tasks)) {
		g.Go(func() error {
			for t := range queue {
				if err := do(ctx, t); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// SplitTasks cuts ranges into tasks of at most taskBytes, in order. The same
// input always gives the same tasks: the journal counts on it.
func SplitTasks(ranges []Range, taskBytes int64) []Task {
	taskBytes = max(cmp.Or(taskBytes, DefaultTaskBytes), taskAlign)
	var tasks []Task
	var cur []Range
	var size int64
	files := 0
	flush := func() {
		if len(cur) > 0 {
			tasks = append(tasks, Task{Index: len(tasks), Ranges: cur})
			cur, size, files = nil, 0, 0
		}
	}
	for _, r := range ranges {
		for r.Length > 0 {
			n := r.Length
			if n > taskBytes-size {
				n = (r.Offset+taskBytes-size)/taskAlign*taskAlign - r.Offset
			}
			another := len(cur) == 0 || cur[len(cur)-1].Path != r.Path
			if n <= 0 || another && files == taskFiles {
				flush()
				continue
			}
			if another {
				files++
			}
			cur = append(cur, Range{r.Path, r.Offset, n})
			size += n
			r.Offset += n
			r.Length -= n
			if size >= taskBytes || len(cur) >= taskRanges {
				flush()
			}
		}
	}
	flush()
	return tasks
}

// MergeRanges sorts ranges by path and offset and joins those that touch or
// overlap, or lie no more than gap bytes apart.
func MergeRanges(ranges []Range, gap int64) []Range {
	sorted := slices.SortedFunc(slices.Values(ranges), func(a, b Range) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Offset, b.Offset))
	})
	var out []Range
	for _, r := range sorted {
		if n := len(out); n > 0 && out[n-1].Path == r.Path && r.Offset <= out[n-1].End()+gap {
			out[n-1].Length = max(out[n-1].End(), r.End()) - out[n-1].Offset
			continue
		}
		out = append(out, r)
	}
	return out
}
