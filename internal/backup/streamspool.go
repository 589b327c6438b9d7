package backup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tidemark/internal/exit"
)

// The WAL of a running backup is kept in a temporary directory, which its
// process holds a lock on. What a killed one left is removed by the next.
const (
	spoolPrefix = "tidemark-wal-"
	spoolTries  = 5
)

// openSpool makes a directory that holds an empty pg_wal, and locks it.
func openSpool() (dir string, lock *os.File, err error) {
	clearSpools()
	for range spoolTries {
		if dir, lock, err = makeSpool(); err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EWOULDBLOCK) {
			break
		} // another process took it for a dead one's
	}
	if err != nil {
		return "", nil, exit.Wrap(err, exit.Failed, "TMPDIR names another directory for temporary files", "there is no place for the WAL of the backup")
	}
	return dir, lock, nil
}

func makeSpool() (dir string, lock *os.File, err error) {
	if dir, err = os.MkdirTemp("", spoolPrefix); err != nil {
		return "", nil, err
	}
	if lock, err = os.Open(dir); err != nil {
		return "", nil, err
	}
	if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		err = os.Mkdir(filepath.Join(dir, "pg_wal"), 0o700) // fails where the directory is gone
	}
	if err != nil {
		lock.Close()
		return "", nil, err
	}
	return dir, lock, nil
}

// clearSpools removes what killed processes left, as far as that can be done.
func clearSpools() {
	left, err := filepath.Glob(filepath.Join(os.TempDir(), spoolPrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range left {
		f, err := os.Open(dir)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.RemoveAll(dir) // another account's stays
		}
		f.Close()
	}
}
