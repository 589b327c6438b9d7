package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"tidemark/internal/blockcopy"
	"tidemark/internal/postgres"
	"tidemark/pkg/timeline"
	"tidemark/pkg/wal"
)

// walStream receives the WAL of a backup into a temporary directory, where the
// keeper takes it from. What is archived is removed.
type walStream struct {
	dir      string // holds pg_wal, and nothing else
	lock     *os.File
	size     wal.SegmentSize
	timeline wal.TimelineID
	receiver *postgres.Receiver
	cancel   context.CancelFunc
	done     chan struct{}

	mu  sync.Mutex
	err error // why it ended
}

func startWAL(ctx context.Context, o postgres.ReceiveOptions, size wal.SegmentSize) (*walStream, error) {
	dir, lock, err := openSpool()
	if err != nil {
		return nil, err
	}
	o.Dir = filepath.Join(dir, "pg_wal")
	w := &walStream{dir: dir, lock: lock, size: size, timeline: o.Timeline, receiver: postgres.NewReceiver(o), done: make(chan struct{})}
	ctx, w.cancel = context.WithCancel(ctx)
	go func() {
		defer close(w.done)
		err := w.receiver.Run(ctx)
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.err = err; err == nil {
			w.err = errors.New("the server ended the stream of WAL")
		}
	}()
	return w, nil
}

// position is how far the WAL has come.
func (w *walStream) position() (wal.LSN, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.receiver.Position()
	if w.err != nil {
		return 0, w.err
	}
	if p.Timeline > w.timeline {
		return 0, switched(p.Timeline)
	}
	return p.Flushed, nil
}

// await waits until the WAL before lsn has come.
func (w *walStream) await(ctx context.Context, lsn wal.LSN) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-w.done:
			_, err := w.position()
			cancel(err)
		case <-ctx.Done():
		}
	}()
	return w.receiver.WaitFlushed(ctx, lsn)
}

// drop removes the segments before lsn.
func (w *walStream) drop(lsn wal.LSN) error {
	dir := filepath.Join(w.dir, "pg_wal")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		f, ok := wal.ParseFileName(e.Name())
		if !ok || f.Kind != wal.FileSegment {
			continue
		}
		if n, ok := f.Number(w.size); ok && w.size.End(n) <= lsn {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *walStream) close() error {
	w.cancel()
	<-w.done
	return errors.Join(os.RemoveAll(w.dir), w.lock.Close())
}

// streamSource is what can be read by name while the files come by themselves:
// the WAL in the spool, and the histories of timelines.
type streamSource struct {
	stream *streaming
	name   string
}

// Name implements blockcopy.Source.
func (s *streamSource) Name() string { return s.name }

// List implements blockcopy.Source.
func (s *streamSource) List(context.Context) ([]blockcopy.Entry, error) {
	return nil, errors.New("the files come as the server sends them")
}

// Fetch implements blockcopy.Source, for segments of pg_wal.
func (s *streamSource) Fetch(ctx context.Context, ranges []blockcopy.Range, deliver blockcopy.Deliver) error {
	return blockcopy.NewDirSource(s.stream.dir, false).Fetch(ctx, ranges, deliver)
}

// ReadFile implements blockcopy.Source, for histories in pg_wal.
func (s *streamSource) ReadFile(ctx context.Context, path string) ([]byte, error) {
	f, ok := wal.ParseFileName(strings.TrimPrefix(path, "pg_wal/"))
	if !ok || f.Kind != wal.FileHistory {
		return nil, fmt.Errorf("%s cannot be asked for", path)
	}
	data, err := s.stream.repl.TimelineHistory(ctx, f.Timeline)
	if err == nil {
		_, err = timeline.Parse(f.Timeline, data)
	}
	return data, err
}

// Close ends the sessions and removes the spool.
func (s *streamSource) Close() error {
	st := s.stream
	var errs []error
	if st.cancel != nil {
		st.cancel()
	}
	if st.walStream != nil {
		errs = append(errs, st.walStream.close())
	}
	for _, c := range []*postgres.ReplConn{st.owner, st.repl} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}
