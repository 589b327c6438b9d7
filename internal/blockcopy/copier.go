package blockcopy

import (
	"cmp"
	"context"
	"fmt"
	"sync/atomic"

	"tidemark/internal/exit"
)

// copier is step 3b: it takes the batches of a plan through their stages (see
// batch.go) and writes what they fetch.
type copier struct {
	r       *runner
	actions []Action
	first   map[string]int                // path -> its first action that fetches
	keep    func(*batch) error            // before a batch is fetched, where set
	note    func(facts ...taskFact) error // after tasks are durable
	bytes   atomic.Int64                  // fetched
}

func newCopier(r *runner, actions []Action, note func(...taskFact) error) *copier {
	c := &copier{r: r, actions: actions, first: map[string]int{}, note: note}
	for i, a := range actions {
		if _, ok := c.first[a.Path]; !ok && a.spans() != nil {
			c.first[a.Path] = i
		}
	}
	return c
}

// run copies what is not done of the tasks.
func (c *copier) run(ctx context.Context, tasks []Task, taskBytes int64, done map[int]bool) error {
	batches := splitBatches(tasks, taskBytes, done)
	s := stages{keep: c.keepBatch, fetch: c.fetch, settle: c.settle}
	return s.run(ctx, batches, min(cmp.Or(c.r.Jobs, DefaultJobs), max(1, len(tasks)-len(done))))
}

func (c *copier) keepBatch(b *batch) error {
	if c.keep == nil || len(b.todo) == 0 {
		return nil
	}
	return c.keep(b)
}

// settle makes a batch durable, and then notes its tasks: a fact is written
// after what it tells of.
func (c *copier) settle(b *batch) error {
	done, err := b.settle(c.r.NoSync, DefaultJobs)
	if err != nil || len(done) == 0 {
		return err
	}
	return c.note(done...)
}

func (c *copier) fetch(ctx context.Context, b *batch, t Task) (taskFact, error) {
	w := taskWriter{copier: c, batch: b, fact: taskFact{task: t.Index, short: map[int]int64{}, gone: map[int]bool{}}}
	err := c.r.Source.Fetch(ctx, t.Ranges, w.deliver)
	return w.fact, err
}

// taskWriter writes the pieces of one task.
type taskWriter struct {
	*copier
	batch *batch
	fact  taskFact
}

func (w *taskWriter) deliver(piece Range, data []byte, gone bool) error {
	action, ok := w.first[piece.Path]
	if !ok {
		return fmt.Errorf("%s delivered %s, which was not asked for", w.r.Source.Name(), piece)
	}
	if (gone || int64(len(data)) < piece.Length) && w.actions[action].Required {
		return exit.New(exit.Failed, "plan anew: the source no longer has what the plan needs",
			"%s: the source's file is gone or shorter than %d bytes", piece.Path, piece.End())
	}
	if gone {
		w.fact.gone[action] = true
		return nil
	}
	if int64(len(data)) < piece.Length {
		w.fact.shorten(action, piece.Offset+int64(len(data)))
	}
	if len(data) == 0 {
		return nil
	}
	f, err := w.batch.file(w.r.FS, piece.Path, w.r.path(piece.Path))
	if err != nil {
		return err
	}
	if err := w.batch.was.write(f, piece.Path, data, piece.Offset); err != nil {
		return err
	}
	w.bytes.Add(int64(len(data)))
	w.r.Progress.Add(int64(len(data)))
	return nil
}

func (t *taskFact) shorten(action int, size int64) {
	if old, ok := t.short[action]; !ok || size < old {
		t.short[action] = size
	}
}
