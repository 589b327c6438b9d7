package volume

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// Space tells how many bytes the file system with name on it can still take,
// and which one it is: the same number means the same file system.
func (osFS) Space(name string) (free int64, device uint64, err error) {
	var st unix.Stat_t
	var sf unix.Statfs_t
	if err = unix.Stat(name, &st); err == nil {
		err = unix.Statfs(name, &sf)
	}
	if err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: name, Err: err}
	}
	return int64(sf.Bavail) * sf.Bsize, st.Dev, nil
}
