package repo

import (
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// steadyBytes is how much of an object is handed to the disk at a time.
const steadyBytes = 4 << 20

// steadyWriter has the disk take an object as it is written, a little at a
// time. Left to the sync at the end, a whole pack would go to the disk at once,
// and a server with its WAL on the same disk would wait behind it with every
// commit. One piece is on its way while the next one is written: no more than
// two wait.
type steadyWriter struct {
	f  *os.File
	at int64 // bytes written
	on int64 // of which the disk was asked to take so many
}

// Write implements io.Writer.
func (w *steadyWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	if err == nil {
		err = w.wrote(n)
	}
	return n, err
}

// wrote counts the next n bytes, which are in the page cache.
func (w *steadyWriter) wrote(n int) error {
	if w.at += int64(n); w.at-w.on < steadyBytes {
		return nil
	}
	return w.hand()
}

// hand begins the next piece and waits for the one before. It promises nothing
// of what it returns without an error: the sync at the end does. But an error
// of the disk's counts, for the kernel tells it once, and not the sync again.
func (w *steadyWriter) hand() error {
	begun := w.on
	if err := w.flush(begun, w.at, unix.SYNC_FILE_RANGE_WRITE); err != nil {
		return err
	}
	w.on = w.at
	return w.flush(max(begun-steadyBytes, 0), begun, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
}

func (w *steadyWriter) flush(from, to int64, how int) error {
	if from == to {
		return nil
	}
	switch err := unix.SyncFileRange(int(w.f.Fd()), from, to-from, how); err {
	case nil, unix.ENOSYS, unix.EINVAL, unix.ESPIPE, unix.EOPNOTSUPP, unix.EINTR: // not on every file system
		return nil
	default:
		return &fs.PathError{Op: "sync_file_range", Path: w.f.Name(), Err: err}
	}
}
