package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"tidemark/pkg/wal"
)

// recycledSegments is how many of them the transactions of a run write at most.
const recycledSegments = 128

// recycled gives the server n segments of WAL to go on in, as one has that is
// in use: its checkpoints rename those that it does not need any more. This
// one keeps all of them, and would make each new one in the midst of a commit.
// unused removes, from the stopped server, those that were not needed.
func (b *bench) recycled(ctx context.Context, n int) (unused func() error, err error) {
	var paths []string
	unused = func() error { return removeUnused(paths) }
	last, err := b.server.Text(ctx, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
	if err != nil {
		return unused, err
	}
	size := wal.SegmentSize(16 << 20)
	f, ok := wal.ParseFileName(last)
	current, whole := f.Number(size)
	if !ok || !whole {
		return unused, fmt.Errorf("the server writes to %q", last)
	}
	for i := range wal.SegmentNumber(n) {
		path := filepath.Join(b.server.Data, "pg_wal", wal.SegmentName(f.Timeline, current+1+i, size))
		paths = append(paths, path)
		if err := b.makeSegment(path, int64(size)); err != nil {
			return unused, err
		}
	}
	return unused, nil
}

func removeUnused(paths []string) (errs error) {
	for _, path := range paths {
		if used, err := begins(path); err == nil && !used {
			errs = errors.Join(errs, os.Remove(path))
		}
	}
	return errs
}

// makeSegment writes an empty segment where there is none.
func (b *bench) makeSegment(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, size))
	return errors.Join(err, f.Sync(), f.Close(), b.place.Chown(path))
}

// begins reports whether a file begins with something else than zeros.
func begins(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var magic [2]byte
	_, err = f.Read(magic[:])
	return magic != [2]byte{}, err
}
