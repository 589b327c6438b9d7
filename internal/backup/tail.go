package backup

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/repo"
	"tidemark/pkg/wal"
)

// A backup from a standby ends in a segment that the primary may never finish:
// it rests, or it is gone. What the standby has replayed of that segment goes
// into the backup itself, as the file of its pg_wal that it is, zero behind the
// stop position. It does not go into the archive: a full name would promise
// more than there is, and a .partial would be in the way of the one that the
// server archives when it is promoted.
//
//	archive   ... 000000010000000000000006 000000010000000000000007
//	backup    pg_wal/000000010000000000000008    up to the stop position
//
// A server that is restored asks the archive first, so that the segment counts
// from there once somebody has completed it.

// errPromoted is returned when a standby became a primary while it was copied.
var errPromoted = errors.New("the server was promoted while it was copied")

// replayedStop is the stop position of a standby: at least its minimum
// recovery point, and everything that it shows to those who query it.
func (s *server) replayedStop(ctx context.Context, minimum, start wal.LSN) (wal.LSN, error) {
	at, err := s.replayed(ctx)
	return max(at, minimum, start), err
}

// tail is the part of a standby's last segment that lies before the stop
// position, in the length of a segment.
type tail struct {
	*serverFile
	name string // of the segment
	used int64  // bytes before the stop position
}

// openTail opens the segment that holds the end of the range. A promotion in
// this moment may give it another name; what lies before the stop position
// stays as it is.
func (k *walKeeper) openTail(ctx context.Context, stop wal.LSN) (*tail, error) {
	n := k.size.NumberBefore(stop)
	t := &tail{name: wal.SegmentName(k.timeline, n, k.size), used: int64(stop - k.size.Start(n))}
	var err error
	for _, name := range []string{t.name, t.name + ".partial", wal.SegmentName(k.timeline+1, n, k.size)} {
		t.serverFile, err = openServerFile(ctx, k.src, "pg_wal/"+name, int64(k.size))
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return nil, exit.Wrap(err, exit.Failed, "run the command again", "the standby's last segment cannot be read")
	}
	return t, nil
}

// ReadAt implements io.ReaderAt.
func (t *tail) ReadAt(p []byte, off int64) (int, error) {
	n, err := t.serverFile.ReadAt(p, off)
	if keep := max(t.used-off, 0); int64(n) > keep {
		clear(p[keep:n])
	}
	return n, err
}

// over puts the segment in front of a source.
func (t *tail) over(src wal.Source, size wal.SegmentSize) wal.Source {
	if t == nil {
		return src
	}
	return wal.SourceFunc(func(ctx context.Context, n wal.SegmentNumber) (wal.Segment, error) {
		if f, ok := wal.ParseFileName(t.name); ok {
			if own, ok := f.Number(size); ok && own == n {
				return t, nil
			}
		}
		return src.OpenSegment(ctx, n)
	})
}

// store puts the segment among the files of a backup, behind all others.
func (t *tail) store(w *repo.BackupWriter, sum *repo.Summary, blockSize int64) error {
	f, err := w.File(blockcopy.Entry{Path: repo.TailPath(t.name), Type: blockcopy.File, Size: t.size, Mode: 0o600})
	if err != nil {
		return err
	}
	buf := make([]byte, serverWindow)
	for off := int64(0); off < t.used; off += int64(len(buf)) {
		part := buf[:min(int64(len(buf)), t.size-off)]
		if n, err := t.ReadAt(part, off); n < len(part) {
			return fmt.Errorf("reading %s: %w", t.path, err)
		}
		if err := f.Write(off/blockSize, part); err != nil {
			return err
		}
	}
	if err := f.Close(t.size, false); err != nil {
		return err
	}
	sum.HoldTail(t.name, t.size)
	sum.TailHash, err = hashUpTo(t, t.used)
	return err
}

// hashUpTo is the hash of a segment's first bytes.
func hashUpTo(r io.ReaderAt, n int64) (repo.Hash, error) {
	h := sha256.New()
	_, err := io.CopyBuffer(h, io.NewSectionReader(r, 0, n), make([]byte, serverWindow))
	return repo.Hash(h.Sum(nil)[:repo.HashSize]), err
}

// goesOn proves that a segment goes on where the one that a backup holds itself
// ends: a server of another branch has another one.
func goesOn(seg io.ReaderAt, base *repo.Summary) error {
	at := wal.SegmentSize(base.WALSegmentSize).Start(base.TailNumber())
	h, err := hashUpTo(seg, int64(base.Stop.LSN-at))
	if err == nil && h != base.TailHash {
		err = unprovenf("the server's %s is not the one that backup %s ends in", base.Tail, base.ID)
	}
	return err
}

// again tells whether an attempt that ended with err is to be made once more,
// and prepares for that: what spoiled it is over, or the standby is a primary
// now. people are told why.
func (s *server) again(ctx context.Context, err error, try int, note func(format string, args ...any)) (bool, error) {
	var unsafe *unsafeError
	switch {
	case try == attempts:
		return false, nil
	case errors.As(err, &unsafe):
		note("%v: copying again", unsafe)
		return true, nil
	case errors.Is(err, errPromoted):
		note("%v: copying again, from what is a primary now", errPromoted)
		return true, s.probe(ctx)
	case errors.Is(err, errSwitched):
		note("%v: copying again", errSwitched)
		return true, nil
	}
	return false, nil
}

// continued checks the segment in which base ends when it is opened.
func continued(base *repo.Summary, size wal.SegmentSize, src wal.Source) wal.Source {
	if base.Tail == "" {
		return src
	}
	var once sync.Mutex
	checked := false
	return wal.SourceFunc(func(ctx context.Context, n wal.SegmentNumber) (wal.Segment, error) {
		seg, err := src.OpenSegment(ctx, n)
		if err != nil || n != size.NumberBefore(base.Stop.LSN) {
			return seg, err
		}
		once.Lock()
		defer once.Unlock()
		if !checked {
			if err := goesOn(seg, base); err != nil {
				return nil, errors.Join(err, seg.Close())
			}
			checked = true
		}
		return seg, nil
	})
}
