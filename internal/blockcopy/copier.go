package blockcopy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"tidemark/internal/exit"
	"tidemark/pkg/volume"
)

// maxOpenFiles bounds the target files that one worker holds open before it
// syncs and closes them.
const maxOpenFiles = 64

// copier writes what tasks fetch. Several workers share one.
type copier struct {
	r       *runner
	actions []Action
	first   map[string]int // path -> its first action that fetches
	note    func(text string) error
	onFact  func(taskFact)   // called beside note, where set
	before  func(Task) error // called before a task is fetched, where set
	bytes   atomic.Int64
}

func newCopier(r *runner, actions []Action, note func(string) error) *copier {
	c := &copier{r: r, actions: actions, first: map[string]int{}, note: note}
	for i, a := range actions {
		if _, ok := c.first[a.Path]; !ok && a.spans() != nil {
			c.first[a.Path] = i
		}
	}
	return c
}

// do keeps what one task destroys, fetches it, writes it, makes it durable and notes it, in this order.
func (c *copier) do(ctx context.Context, t Task) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if c.before != nil {
		if err := c.before(t); err != nil {
			return err
		}
	}
	w := &taskWriter{copier: c, fact: taskFact{task: t.Index, short: map[int]int64{}, gone: map[int]bool{}}}
	err := c.r.Source.Fetch(ctx, t.Ranges, w.deliver)
	if err := errors.Join(err, w.closeAll()); err != nil {
		return err
	}
	if c.onFact != nil {
		c.onFact(w.fact)
	}
	return c.note(w.fact.line())
}

// taskWriter writes the pieces of one task.
type taskWriter struct {
	*copier
	fact taskFact
	open map[string]volume.File
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
	f, err := w.file(piece.Path)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(data, piece.Offset); err != nil {
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

func (w *taskWriter) file(name string) (volume.File, error) {
	if f := w.open[name]; f != nil {
		return f, nil
	}
	if len(w.open) >= maxOpenFiles {
		if err := w.closeAll(); err != nil {
			return nil, err
		}
	}
	f, err := w.r.FS.OpenFile(w.r.path(name), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if w.open == nil {
		w.open = map[string]volume.File{}
	}
	w.open[name] = f
	return f, nil
}

// closeAll syncs and closes the open files. After it what they hold is durable.
func (w *taskWriter) closeAll() error {
	var errs []error
	for _, f := range w.open {
		if !w.r.NoSync {
			errs = append(errs, f.Sync())
		}
		errs = append(errs, f.Close())
	}
	clear(w.open)
	return errors.Join(errs...)
}
