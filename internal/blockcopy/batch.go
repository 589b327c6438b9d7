package blockcopy

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"tidemark/pkg/volume"
)

// Limits of a batch: tasks in their order until they hold that many task
// sizes or that many files. Part of the journal's format, do not change: what
// an undo log covers follows from it.
const (
	batchTasks = 8
	batchFiles = 128
	// The first batches are small, so that there is soon something to fetch,
	// and then something to sync.
	firstBatchTasks = 2
)

// batch is a run of tasks that become durable together. The same tasks always
// give the same batches, whichever of them are done already.
type batch struct {
	index int
	tasks []Task       // all of them, for the undo
	was   *overwritten // what they overwrite, where it was just kept
	todo  []Task       // those that are not noted yet

	mu    sync.Mutex
	files map[string]*batchFile // open until they are synced
	done  []taskFact            // fetched and written, not noted yet
	left  int                   // tasks of todo that are not done
}

// batchFile is a file that a batch writes to.
type batchFile struct {
	volume.File
	written atomic.Bool // it differs from what it was
}

// splitBatches puts tasks into batches.
func splitBatches(tasks []Task, taskBytes int64, done map[int]bool) []*batch {
	var batches []*batch
	var b *batch
	var size, limit int64
	files := 0
	for _, t := range tasks {
		n := t.files()
		if b == nil || size >= limit || files+n > batchFiles {
			limit = int64(min(firstBatchTasks<<min(len(batches), batchTasks), batchTasks)) * taskBytes
			b = &batch{index: len(batches), files: map[string]*batchFile{}}
			batches = append(batches, b)
			size, files = 0, 0
		}
		size, files = size+t.Bytes(), files+n
		b.tasks = append(b.tasks, t)
		if !done[t.Index] {
			b.todo = append(b.todo, t)
			b.left++
		}
	}
	return batches
}

// files is how many files the task's ranges are of.
func (t Task) files() int {
	n, last := 0, ""
	for _, r := range t.Ranges {
		if r.Path != last {
			n, last = n+1, r.Path
		}
	}
	return n
}

func (b *batch) ranges() []Range {
	var all []Range
	for _, t := range b.tasks {
		all = append(all, t.Ranges...)
	}
	return all
}

// file opens a file of the batch, once for all that write to it: it is synced
// through the handle that it was written by, so that no error is missed.
func (b *batch) file(fsys volume.FS, name, path string) (*batchFile, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if f := b.files[name]; f != nil {
		return f, nil
	}
	f, err := fsys.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	b.files[name] = &batchFile{File: f}
	return b.files[name], nil
}

// finish takes a done task in; last says that it was the batch's last.
func (b *batch) finish(fact taskFact) (last bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done = append(b.done, fact)
	b.left--
	return b.left == 0
}

// settle makes what was written durable and closes it. It returns the tasks
// that can be noted now. A second call has nothing to do.
func (b *batch) settle(noSync bool, workers int) ([]taskFact, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var g errgroup.Group
	g.SetLimit(workers)
	for _, f := range b.files {
		g.Go(func() (err error) {
			if f.written.Load() && !noSync {
				err = volume.SyncData(f.File)
			}
			return errors.Join(err, f.Close())
		})
	}
	clear(b.files)
	done := b.done
	b.done = nil
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return done, nil
}

// stages are what a batch goes through. While one batch settles, the next one
// is fetched, and what those after that overwrite is kept.
type stages struct {
	keep   func(*batch) error                                    // before any byte of it is fetched; of several batches at once
	fetch  func(context.Context, *batch, Task) (taskFact, error) // by several workers
	settle func(*batch) error                                    // after its last task
}

// unsettled bounds how many fetched batches wait for the disk.
const unsettled = 2

// run takes all batches through the stages, in order as far as the workers
// allow. The first error ends it; what was fetched completely until then is
// settled even so.
func (s stages) run(ctx context.Context, batches []*batch, jobs int) error {
	g, ctx := errgroup.WithContext(ctx)
	kept, queue, fetched := make(chan *batch, 1), make(chan work), make(chan *batch, unsettled)
	g.Go(func() error { return s.keepAll(ctx, batches, kept) })
	g.Go(func() error {
		defer close(queue)
		for b := range kept {
			for _, t := range b.todo {
				if err := send(ctx, queue, work{b, t}); err != nil {
					return err
				}
			}
		}
		return nil
	})
	var workers sync.WaitGroup
	workers.Add(jobs)
	for range jobs {
		g.Go(func() error {
			defer workers.Done()
			return s.fetchAll(ctx, queue, fetched)
		})
	}
	g.Go(func() error { workers.Wait(); close(fetched); return nil })
	g.Go(func() error {
		for b := range fetched {
			if err := s.settle(b); err != nil {
				return err
			}
		}
		return nil
	})
	err := g.Wait()
	if err == nil {
		return nil
	}
	for _, b := range batches {
		err = errors.Join(err, s.settle(b))
	}
	return err
}

// keepers is how many batches are being kept at once: while one of them waits
// for the disk, the next one is read and compressed.
const keepers = 2

// keepAll keeps what the batches overwrite and hands them on in their order.
func (s stages) keepAll(ctx context.Context, batches []*batch, kept chan<- *batch) error {
	defer close(kept)
	var under []chan error // one for each batch that was begun
	begin := func() {
		if n := len(under); n < len(batches) {
			done := make(chan error, 1)
			under = append(under, done)
			go func() { done <- s.keep(batches[n]) }()
		}
	}
	for range keepers {
		begin()
	}
	for i, b := range batches {
		err := <-under[i]
		if err == nil {
			err = send(ctx, kept, b)
		}
		if err != nil {
			for _, done := range under[i+1:] {
				<-done
			}
			return err
		}
		begin()
	}
	return nil
}

// work is a task for a worker.
type work struct {
	b *batch
	t Task
}

// fetchAll is what one worker does.
func (s stages) fetchAll(ctx context.Context, queue <-chan work, fetched chan<- *batch) error {
	for w := range queue {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		fact, err := s.fetch(ctx, w.b, w.t)
		if err != nil {
			return err
		}
		if !w.b.finish(fact) {
			continue
		}
		if err := send(ctx, fetched, w.b); err != nil {
			return err
		}
	}
	return nil
}

func send[T any](ctx context.Context, to chan<- T, v T) error {
	select {
	case to <- v:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
