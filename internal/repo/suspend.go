package repo

import (
	"context"
	"errors"
	"strings"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
)

// suspendTime bounds how long an interrupted backup takes to make durable what
// is on its way.
const suspendTime = 30 * time.Second

// stoppedNote says that nobody works on a backup any more, for those who cannot
// see whether the process lives.
type stoppedNote struct {
	ID string    `json:"id"`
	At time.Time `json:"at"`
}

func (c *Cluster) stoppedName(id string) string { return c.prefix + "backups/" + id + "/stopped" }

// Suspend ends a backup that cannot be completed now and leaves what is durable
// for the next one to take up. It is harmless after Commit, and works when the
// backup's context was cancelled. No other method may be running.
func (w *BackupWriter) Suspend() error {
	if w.committed {
		return nil
	}
	if err := w.flushLeft(); err != nil {
		w.packs.abort()
	}
	w.packs.closing.Wait()
	w.giveUp()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), suspendTime)
	defer cancel()
	if w.parts.count == 0 { // nothing that anybody could use
		return unlessLocked(w.cluster.removeUnfinished(ctx, w.started.ID))
	}
	return putNote(ctx, w.cluster.driver, w.cluster.stoppedName(w.started.ID), &stoppedNote{w.started.ID, now()})
}

// flushLeft makes what was written durable and writes the last part.
func (w *BackupWriter) flushLeft() error {
	if err := w.packs.failed(); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := w.drain(); err != nil {
		return err
	}
	w.packs.closing.Wait() // a part that is being written
	w.mu.Lock()
	text := w.appendUnfinished(append(w.parts.pending, w.parts.text...))
	table := w.table
	w.parts.pending, w.parts.text = nil, nil
	if len(text) > 0 {
		w.parts.count++
	}
	n := w.parts.count
	w.mu.Unlock()
	if len(text) == 0 {
		return nil
	}
	return w.putPart(n, text, table)
}

// appendUnfinished appends the lines of the files that were being read, and of
// those behind them; mu is held, and everything is in a pack. What was not read
// of a file counts as zero, which is compared with nothing.
func (w *BackupWriter) appendUnfinished(text []byte) []byte {
	for _, f := range w.queue {
		if f.kept != nil || f.gone || f.entry.Type != blockcopy.File || !f.placed() {
			continue
		}
		if !f.closed {
			for _, p := range f.parts {
				f.size = max(f.size, (p.first+p.count)*int64(w.o.BlockSize))
			}
		}
		if file := f.entryOf(&Totals{}); f.stored {
			text = appendFile(text, file)
		}
	}
	return text
}

// giveUp ends the manifest's upload.
func (w *BackupWriter) giveUp() {
	w.mu.Lock()
	w.done = true
	w.mu.Unlock()
	w.cancel()
	if w.upload != nil {
		w.upload.abort()
		w.upload = nil
	}
	w.closeSpools()
}

// Abort gives the backup up and removes what there is of it. It is harmless
// after Commit, and works when the backup's context was cancelled. No other
// method may be running.
func (w *BackupWriter) Abort() error {
	if w.committed {
		return nil
	}
	w.cancel()
	w.packs.abort()
	w.giveUp()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), time.Minute)
	defer cancel()
	return unlessLocked(w.cluster.removeUnfinished(ctx, w.started.ID))
}

// unlessLocked forgives what the store's lock keeps: a later sweep removes it.
func unlessLocked(err error) error {
	if errors.Is(err, ErrLocked) {
		return nil
	}
	return err
}

// stillThere is the last look before the manifest is written: the backup was not
// taken for dead and removed, and every pack that it names is in the store.
// Nothing of the kind can happen by the rules of sweep.go; this is the second
// line of defence, for a store that lists late or a clock of another century.
func (w *BackupWriter) stillThere() error {
	has, err := w.cluster.has(w.ctx, w.cluster.startedName(w.started.ID))
	if err != nil {
		return err
	}
	if !has {
		return exit.New(exit.Failed, "run the command again", "backup %s was removed from the repository while it was made", w.started.ID)
	}
	there, err := w.cluster.listPacks(w.ctx, "")
	if err != nil {
		return err
	}
	for _, p := range w.table {
		if size, ok := there[p.Name]; !ok || size != p.Size {
			return exit.New(exit.Failed, "run the command again", "pack %s, which the backup references, went away while it was made", p.Name)
		}
	}
	return nil
}

// removeUnfinished removes the packs and the notes of a backup that has no
// manifest. Its announcement goes last: what is interrupted here is found again.
func (c *Cluster) removeUnfinished(ctx context.Context, id string) error {
	has, err := c.has(ctx, c.manifestHeader(id).Name)
	if err != nil || has { // complete after all
		return err
	}
	packs, err := c.listPacks(ctx, id)
	if err != nil {
		return err
	}
	var locked error
	for name := range packs {
		err := c.driver.Delete(ctx, c.packHeader(name, 0).Name)
		if locked = errors.Join(locked, err); unlessLocked(err) != nil {
			return err
		}
	}
	if locked != nil { // announced until all of it can go
		return locked
	}
	return c.removeNotes(ctx, id)
}

// removeNotes removes what announces and describes a backup besides its
// manifest.
func (c *Cluster) removeNotes(ctx context.Context, id string) error {
	var names []string
	manifest, started := c.manifestHeader(id).Name, c.startedName(id)
	kept, err := c.has(ctx, manifest) // then those who are about to remove it keep their notes to the end
	if err != nil {
		return err
	}
	err = c.driver.List(ctx, c.prefix+"backups/"+id+"/", func(i ObjectInfo) error {
		if i.Name != manifest && i.Name != started && !(kept && strings.HasPrefix(lastElement(i.Name), removingPrefix)) {
			names = append(names, i.Name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, n := range append(names, started) {
		if err := c.driver.Delete(ctx, n); err != nil {
			return err
		}
	}
	return nil
}
