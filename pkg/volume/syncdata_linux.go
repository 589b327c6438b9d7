package volume

import (
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// SyncData makes a file's content and size durable, as Sync does, without its
// times: for what was overwritten in place the file system's own journal need
// not be written.
func SyncData(f File) error {
	file, ok := f.(*os.File)
	if !ok {
		return f.Sync()
	}
	for {
		err := unix.Fdatasync(int(file.Fd()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
		return nil
	}
}
