package rewind

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"tidemark/internal/exit"
	"tidemark/pkg/volume"
)

// The names in the directory of a rescue.
const (
	rescueSummary = "rescue.json"
	rescueLoader  = "load.sql"
	rescueMarker  = "rescue.incomplete" // until everything is there; says where the scratch server's socket is
)

// rescueDir is the directory that a rescue writes to. It holds the marker from
// the first file to the last: what a rescue that was killed left is removed by
// the next one. One that fails keeps what it has, marked, but for a full disk:
// there everything goes again, so that nobody else runs out of space by it.
type rescueDir struct {
	path string
	made bool // by this rescue; one that was there, as a mount point may be, stays
}

// openRescueDir makes the directory, or empties the one of an interrupted rescue.
func openRescueDir(path string) (*rescueDir, error) {
	d := &rescueDir{path: path}
	marker := filepath.Join(path, rescueMarker)
	if socket, err := os.ReadFile(marker); err == nil {
		if filepath.Dir(string(socket)) == filepath.Clean(os.TempDir()) && strings.HasPrefix(filepath.Base(string(socket)), scratchSocket) {
			err = os.RemoveAll(string(socket)) // of a server that died with the rescue
		}
		if err := errors.Join(err, d.clear()); err != nil {
			return nil, err
		}
	}
	entries, err := os.ReadDir(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.made = true
		if err := os.MkdirAll(path, 0o700); err != nil {
			return nil, d.failed(err)
		}
	case err != nil:
		return nil, err
	case len(entries) > 0:
		return nil, exit.New(exit.Refused, "name a directory that does not exist or is empty", "%s is not empty", path)
	}
	return d, d.failed(volume.WriteFile(volume.OS, marker, nil, 0o600))
}

// clear removes what the directory holds, its marker last, and the directory
// where this rescue made it.
func (d *rescueDir) clear() error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return ignoreMissing(err)
	}
	for _, e := range entries {
		if e.Name() != rescueMarker {
			err = errors.Join(err, os.RemoveAll(filepath.Join(d.path, e.Name())))
		}
	}
	if err != nil {
		return err
	}
	if err := ignoreMissing(os.Remove(filepath.Join(d.path, rescueMarker))); err != nil || !d.made {
		return err
	}
	return os.Remove(d.path)
}

// failed says what is left behind an error. Nil stays nil.
func (d *rescueDir) failed(err error) error {
	if err == nil || !diskFull(err) {
		return err
	}
	return exit.Wrap(errors.Join(err, d.clear()), exit.Failed, "make room there, or name a directory on another file system with --out, and run the same command again",
		"the disk filled up; nothing of the target changed, and what had been written to %s is removed", d.path)
}

// diskFull tells whether an error says that a file system, or what a user may
// use of it, is full: our own writes, or those of the scratch server.
func diskFull(err error) bool {
	const diskFullState = "53100"
	var said *pgconn.PgError
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.As(err, &said) && said.Code == diskFullState
}

// explain adds the reason to an error behind which the scratch server may have
// run out of space: it says so in its log at most, and not in that where the
// log lies on the same file system.
func (s *scratch) explain(err error) error {
	const little = 1 << 20
	if err == nil || diskFull(err) {
		return err
	}
	log, _ := os.ReadFile(filepath.Join(s.dir, scratchLog))
	free, freeErr := freeSpace(s.dir)
	if bytes.Contains(log, []byte("No space left on device")) || freeErr == nil && free < little {
		return errors.Join(err, syscall.ENOSPC)
	}
	return err
}
