package backup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/internal/exit"
	"tidemark/pkg/volume"
)

// What a killed create --tar leaves can be told from everything else: the
// manifest has its name for the time before everything is complete, and beside it
// there are only archives. It is removed by the next one. A process that is at
// work holds a lock on that manifest.

// clearTar removes what a killed backup left in a directory and reports whether
// there was anything. Where there is something else it leaves everything alone.
func clearTar(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	const manifest = volume.ManifestFileName + unfinished
	ours := false
	for _, e := range entries {
		if !e.Type().IsRegular() || e.Name() != manifest && !isArchive(strings.TrimSuffix(e.Name(), unfinished)) {
			return false, nil
		}
		ours = ours || e.Name() == manifest
	}
	if !ours {
		return false, nil
	}
	f, err := os.Open(filepath.Join(dir, manifest))
	if err != nil {
		return false, err
	}
	defer f.Close()
	if err := lockTar(f); err != nil {
		return false, err
	}
	for _, e := range entries {
		if e.Name() != manifest { // it goes last: what is interrupted here is recognised again
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return false, err
			}
		}
	}
	return true, errors.Join(os.Remove(f.Name()), volume.OS.SyncDir(dir))
}

// isArchive tells whether a name is that of one of the archives.
func isArchive(name string) bool {
	if name == baseTar {
		return true
	}
	oid, ok := strings.CutSuffix(name, ".tar")
	n, err := strconv.ParseUint(oid, 10, 32)
	return ok && err == nil && fmt.Sprint(n) == oid
}

// lockTar locks the manifest of a backup that is not complete. It may have
// been taken for a dead one's, and removed, before it was locked.
func lockTar(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
		return err
	}
	if err == nil {
		ours, err := f.Stat()
		if err != nil {
			return err
		}
		there, err := os.Stat(f.Name())
		if err == nil && os.SameFile(ours, there) {
			return nil
		}
	}
	return exit.New(exit.Refused, "wait for it, or give another directory", "another process writes a backup into %s", filepath.Dir(f.Name()))
}
