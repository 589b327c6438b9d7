package replication

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// patience is how long a receiver that cannot get through tries again.
const patience = 2 * time.Minute

type streamOptions struct {
	receive  postgres.ReceiveOptions
	progress progress.Reporter
	log      *slog.Logger
	failed   func(error) // called once, when it gives up
}

// stream keeps a receiver running beside the copying of files: it connects
// again after a break, which costs nothing as long as the slot holds the WAL.
type stream struct {
	o        streamOptions
	receiver *postgres.Receiver
	ready    chan struct{} // closed once WAL comes in
	done     chan struct{}
	cancel   context.CancelFunc
	once     sync.Once
}

func startStream(ctx context.Context, o streamOptions) *stream {
	ctx, cancel := context.WithCancel(ctx)
	st := &stream{o: o, receiver: postgres.NewReceiver(o.receive), ready: make(chan struct{}), done: make(chan struct{}), cancel: cancel}
	go st.watchReady(ctx)
	go func() {
		defer close(st.done)
		if err := st.run(ctx); err != nil && ctx.Err() == nil {
			o.failed(err)
		}
	}()
	return st
}

// watchReady opens the way for the files once the first WAL is durable (or the
// stream stands at the server's end, which says the same).
func (st *stream) watchReady(ctx context.Context) {
	if st.receiver.WaitFlushed(ctx, 1) == nil {
		st.once.Do(func() { close(st.ready) })
	}
}

func (st *stream) run(ctx context.Context) error {
	// The block copy makes pg_wal, behind the tombstone.
	for {
		if _, err := os.Stat(st.o.receive.Dir); err == nil {
			break
		}
		if !pause(ctx, 10*time.Millisecond) {
			return ctx.Err()
		}
	}
	var broken time.Time
	last := wal.LSN(0)
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := st.receiver.Run(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if pos := st.receiver.Position().Flushed; pos > last {
			last, broken, wait = pos, time.Time{}, 50*time.Millisecond
		}
		if broken.IsZero() {
			broken = time.Now()
		}
		if !transient(err) || time.Since(broken) > patience {
			return err
		}
		st.o.log.Info("the stream of WAL broke, connecting again", "error", err)
		if !pause(ctx, wait) {
			return ctx.Err()
		}
	}
}

// transient tells whether trying again may help: a broken connection, a server
// that restarts, a slot that a killed receiver still holds.
func transient(err error) bool {
	switch {
	case errors.Is(err, postgres.ErrWALRemoved), errors.Is(err, postgres.ErrPassword), errors.Is(err, postgres.ErrNoHBA),
		errors.Is(err, postgres.ErrPrivilege), errors.Is(err, postgres.ErrNoSlot):
		return false
	case exit.CodeOf(err) == exit.Refused, exit.CodeOf(err) == exit.Partial: // another cluster; a full disk
		return false
	}
	return true
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// wait waits until WAL before lsn is durable here.
func (st *stream) wait(ctx context.Context, lsn wal.LSN) error {
	return st.receiver.WaitFlushed(ctx, lsn)
}

func (st *stream) position() postgres.Position { return st.receiver.Position() }

// stop ends the receiver and waits until it has.
func (st *stream) stop() {
	st.cancel()
	<-st.done
}

// watchedSource looks at what passes through it: the newest page, and the
// moment when the template databases were copied.
type watchedSource struct {
	blockcopy.Source
	ready <-chan struct{}

	templates []string
	mu        sync.Mutex
	newest    wal.LSN       // of all pages that were copied
	left      int64         // bytes of the template databases that have not come yet
	copied    chan struct{} // closed once left is 0
}

func newWatchedSource(src blockcopy.Source, plan *blockcopy.Plan, templates []string) *watchedSource {
	w := &watchedSource{Source: src, templates: templates, copied: make(chan struct{})}
	for _, a := range plan.Actions {
		if a.Kind == blockcopy.Copy && under(a.Path, templates) {
			w.left += a.Size
		}
	}
	return w
}

// Fetch waits for the stream of WAL before the first file is read.
func (w *watchedSource) Fetch(ctx context.Context, ranges []blockcopy.Range, deliver blockcopy.Deliver) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-w.ready:
	}
	err := w.Source.Fetch(ctx, ranges, func(piece blockcopy.Range, data []byte, gone bool) error {
		w.look(piece.Path, data)
		return deliver(piece, data, gone)
	})
	if err == nil {
		w.count(ranges)
	}
	return err
}

// count notes that ranges were read.
func (w *watchedSource) count(ranges []blockcopy.Range) {
	var n int64
	for _, r := range ranges {
		if under(r.Path, w.templates) {
			n += r.Length
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.left > 0 && n > 0 {
		if w.left -= n; w.left <= 0 {
			close(w.copied)
		}
	}
}

// look remembers the newest page.
func (w *watchedSource) look(path string, data []byte) {
	if volume.Classify(path) != volume.ClassRelMain {
		return
	}
	newest := newestPage(data)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.newest = max(w.newest, newest)
}

// newestPage returns the greatest page LSN in a run of blocks. Pages whose
// header makes no sense do not count.
func newestPage(data []byte) (newest wal.LSN) {
	const size = wal.DefaultBlockSize
	for ; len(data) >= size; data = data[size:] {
		page := data[:size]
		if lsn := volume.PageLSN(page); lsn > newest && volume.ParsePageHeader(page).Validate(size) == nil {
			newest = lsn
		}
	}
	return newest
}

func (w *watchedSource) newestCopied() wal.LSN {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.newest
}
