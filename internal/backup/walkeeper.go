package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/progress"
	"tidemark/internal/repo"
	"tidemark/pkg/timeline"
	"tidemark/pkg/wal"
)

// walKeeper sees to it that the WAL of a backup reaches the repository: the
// server's archiver brings it, or the keeper fetches it from the server's
// pg_wal. Either may come first; the archive takes the same content twice.
type walKeeper struct {
	cluster  *repo.Cluster
	src      blockcopy.Source
	server   *server
	log      *slog.Logger
	timeline wal.TimelineID
	size     wal.SegmentSize
	next     wal.SegmentNumber // the first that is not known to be durable
	// ours says that the server archives into this repository, so that the
	// keeper gives it a moment before it fetches by itself.
	ours     bool
	progress progress.Reporter
	behind   time.Time // since when segments wait for the archiver
}

// pushesTo reports whether an archive_command is dbbackup push to this
// repository, as far as can be told from its text.
func pushesTo(command, location string) bool {
	return strings.Contains(command, "dbbackup") && strings.Contains(command, " push") &&
		(!strings.Contains(command, "--repo") || strings.Contains(command, location))
}

const (
	keepInterval  = 200 * time.Millisecond
	archiverGrace = 5 * time.Second
)

// upTo makes the segments before limit durable and says how far it came. A
// segment that is neither archived nor complete on the server yet ends it
// without an error.
func (k *walKeeper) upTo(ctx context.Context, limit wal.SegmentNumber, fetch bool) error {
	for ; k.next < limit; k.next++ {
		name := wal.SegmentName(k.timeline, k.next, k.size)
		has, err := k.cluster.HasWAL(ctx, name)
		if err != nil {
			return err
		}
		if has {
			continue
		}
		if !fetch {
			return nil
		}
		if err := k.fetch(ctx, name); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
	}
	return nil
}

// fetch copies one WAL file from the server into the repository.
func (k *walKeeper) fetch(ctx context.Context, name string) error {
	f, err := openServerFile(ctx, k.src, "pg_wal/"+name, int64(k.size))
	if err != nil {
		return err
	}
	_, err = k.cluster.PushWAL(ctx, name, f, int64(k.size))
	return err
}

// serverFile reads a file of the server through a window, so that a segment of
// a gigabyte needs no gigabyte of memory.
type serverFile struct {
	ctx  context.Context
	src  blockcopy.Source
	path string
	size int64

	mu     sync.Mutex
	at     int64 // where the window begins
	window []byte
}

const serverWindow = 1 << 20

// openServerFile fails with fs.ErrNotExist where there is no such file.
func openServerFile(ctx context.Context, src blockcopy.Source, path string, size int64) (*serverFile, error) {
	f := &serverFile{ctx: ctx, src: src, path: path, size: size}
	return f, f.load(0)
}

// load moves the window to the block of serverWindow bytes that holds off.
func (f *serverFile) load(off int64) error {
	f.at, f.window = off/serverWindow*serverWindow, f.window[:0]
	r := blockcopy.Range{Path: f.path, Offset: f.at, Length: min(serverWindow, f.size-f.at)}
	return f.src.Fetch(f.ctx, []blockcopy.Range{r}, func(_ blockcopy.Range, b []byte, gone bool) error {
		if gone {
			return fmt.Errorf("%s: %w", f.path, fs.ErrNotExist)
		}
		f.window = append(f.window, b...)
		return nil
	})
}

// ReadAt implements io.ReaderAt.
func (f *serverFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for n < len(p) {
		at := off + int64(n)
		if at >= f.size {
			return n, io.EOF
		}
		if at < f.at || at >= f.at+int64(len(f.window)) {
			if err := f.load(at); err != nil {
				return n, err
			}
			if at >= f.at+int64(len(f.window)) {
				return n, io.ErrUnexpectedEOF
			}
		}
		n += copy(p[n:], f.window[at-f.at:])
	}
	return n, nil
}

// Close does nothing.
func (f *serverFile) Close() error { return nil }

// watch runs while files are copied: it keeps the archive up with the server,
// so that WAL does not pile up on the server's disk. It ends when copied is closed.
func (k *walKeeper) watch(ctx context.Context, copied <-chan struct{}, current func(context.Context) (wal.LSN, error)) error {
	return eachSecond(ctx, copied, current, func(lsn wal.LSN) error {
		moved, err := k.catchUp(ctx, lsn)
		if err == nil && moved && k.cluster.Repository().Unlocked() { // otherwise it is read on the server once more, at the end
			k.server.advance(ctx, k.size.Start(k.next))
		}
		return err
	})
}

// eachSecond asks for the server's position and calls do with it, until copied
// is closed.
func eachSecond(ctx context.Context, copied <-chan struct{}, current func(context.Context) (wal.LSN, error), do func(wal.LSN) error) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-copied:
			return nil
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		lsn, err := current(ctx)
		if err == nil {
			err = do(lsn)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// catchUp makes the segments before a position durable, as far as there are any
// that are not. The archiver gets a moment to bring them.
func (k *walKeeper) catchUp(ctx context.Context, lsn wal.LSN) (moved bool, err error) {
	limit := k.size.Number(lsn)
	if k.next >= limit {
		k.behind = time.Time{}
		return false, nil
	}
	if k.behind.IsZero() {
		k.behind = time.Now()
	}
	return true, k.upTo(ctx, limit, !k.ours || time.Since(k.behind) > archiverGrace)
}

// finish waits until every segment that holds WAL before stop is durable. Of a
// standby's last one, where nobody has completed it, it returns what is there:
// that is not durable yet.
func (k *walKeeper) finish(ctx context.Context, stop wal.LSN, timeout time.Duration) (*tail, error) {
	limit := k.size.NumberBefore(stop) + 1
	begin, said := time.Now(), wal.SegmentNumber(0)
	for {
		// Only segments that the server has finished are taken from it: an
		// archive keeps for ever what it got first.
		finished, err := k.server.current(ctx)
		if err != nil {
			return nil, err
		}
		if fetch := !k.ours || time.Since(begin) > min(archiverGrace, timeout/2); fetch {
			err = k.upTo(ctx, min(limit, k.size.Number(finished)), true)
		}
		if err == nil {
			err = k.upTo(ctx, limit, false)
		}
		if err != nil {
			return nil, err
		}
		if k.next >= limit {
			return nil, nil
		}
		if k.server.inRecovery && k.next == limit-1 && finished >= stop && k.size.Number(finished) == k.next {
			return k.openTail(ctx, stop)
		}
		switch waited := time.Since(begin); {
		case waited >= timeout:
			return nil, k.missing(ctx, timeout)
		case waited >= time.Second && said != k.next:
			said = k.next
			k.progress.Phase("waiting for "+k.awaited(), 0, progress.Items)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(keepInterval):
		}
	}
}

// awaited names the segment that is missing, and who has to bring it.
func (k *walKeeper) awaited() string {
	name := wal.SegmentName(k.timeline, k.next, k.size)
	switch {
	case k.server.inRecovery:
		return name + ", which the standby has not replayed"
	case k.ours:
		return name + ", which the server's archiver has to bring"
	}
	return name + ", which the server has not finished"
}

func (k *walKeeper) missing(ctx context.Context, timeout time.Duration) error {
	name := wal.SegmentName(k.timeline, k.next, k.size)
	hint := "see the server's log for archive_command; --timeout waits longer"
	if k.server.inRecovery {
		hint = "the standby has removed this segment, or has not replayed it: push it from another server's pg_wal or archive, and run the command again; --timeout waits longer"
	} else if why := k.server.archiverTrouble(ctx); why != "" {
		hint = "the server's archiver says: " + why + "\n" + hint
	}
	return exit.New(exit.Failed, hint, "the backup needs WAL that did not arrive within %s: %s is neither in the archive nor complete on the server",
		timeout, name)
}

// archiverTrouble tells what the server's archiver failed at last.
func (s *server) archiverTrouble(ctx context.Context) string {
	if s.streams {
		return ""
	}
	s.asking.Lock()
	defer s.asking.Unlock()
	var text string
	err := s.conn.QueryRow(ctx, `SELECT coalesce(format('archiving of %s failed at %s', last_failed_wal, last_failed_time), '') FROM pg_stat_archiver
		WHERE last_failed_time > coalesce(last_archived_time, '-infinity')`).Scan(&text)
	if err != nil {
		return ""
	}
	return text
}

// replayed is how far a standby has come: what is before is complete.
func (s *server) replayed(ctx context.Context) (wal.LSN, error) {
	return s.position(ctx, "SELECT coalesce(pg_last_wal_replay_lsn(), '0/0')::text")
}

// current is the position before which segments are complete.
func (s *server) current(ctx context.Context) (wal.LSN, error) {
	if s.streams {
		return s.wal.position()
	}
	if s.inRecovery {
		return s.replayed(ctx)
	}
	return s.position(ctx, "SELECT pg_current_wal_flush_lsn()::text")
}

func (s *server) position(ctx context.Context, sql string) (wal.LSN, error) {
	s.asking.Lock()
	defer s.asking.Unlock()
	var text string
	if err := s.conn.QueryRow(ctx, sql).Scan(&text); err != nil {
		return 0, fmt.Errorf("asking the server for its WAL position: %w", err)
	}
	return wal.ParseLSN(text)
}

// histories makes the history files of a timeline and its ancestors durable.
// It returns their names.
func (k *walKeeper) histories(ctx context.Context) ([]string, error) {
	var names []string
	for tli := k.timeline; tli > 1; {
		name := wal.HistoryName(tli)
		data, err := k.history(ctx, name)
		if err != nil {
			return nil, err
		}
		h, err := timeline.Parse(tli, data)
		if err != nil {
			return nil, err
		}
		names = append(names, name)
		if len(h.Entries) == 0 {
			break
		}
		tli = h.Entries[len(h.Entries)-1].Timeline
	}
	return names, nil
}

func (k *walKeeper) history(ctx context.Context, name string) ([]byte, error) {
	var buf bytes.Buffer
	_, err := k.cluster.FetchWAL(ctx, name, &buf)
	if err == nil || !errors.Is(err, repo.ErrNotArchived) && !errors.Is(err, repo.ErrNoKey) {
		return buf.Bytes(), err
	}
	data, err := k.src.ReadFile(ctx, "pg_wal/"+name)
	if err != nil {
		return nil, exit.Wrap(err, exit.Failed, "copy it from another server's pg_wal or archive, with dbbackup push",
			"the history of the timeline is neither in the archive nor on the server: %s", name)
	}
	_, err = k.cluster.PushWAL(ctx, name, bytes.NewReader(data), int64(len(data)))
	return data, err
}

// archived reads the repository's segments of a timeline for pkg/wal.
func archived(c *repo.Cluster, tli wal.TimelineID, size wal.SegmentSize) wal.Source {
	return wal.SourceFunc(func(ctx context.Context, n wal.SegmentNumber) (wal.Segment, error) {
		f, err := c.OpenWAL(ctx, wal.SegmentName(tli, n, size))
		if errors.Is(err, repo.ErrNotArchived) {
			err = fmt.Errorf("%w: %w", wal.ErrNoSegment, err)
		}
		if err != nil {
			return nil, err
		}
		return f, nil
	})
}

// live reads the server's own segments for pkg/wal.
func live(src blockcopy.Source, tli wal.TimelineID, size wal.SegmentSize) wal.Source {
	return wal.SourceFunc(func(ctx context.Context, n wal.SegmentNumber) (wal.Segment, error) {
		f, err := openServerFile(ctx, src, "pg_wal/"+wal.SegmentName(tli, n, size), int64(size))
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", wal.ErrNoSegment, err)
		}
		if err != nil {
			return nil, err
		}
		return f, nil
	})
}
