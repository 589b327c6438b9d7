package backup

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/internal/repo"
	"tidemark/pkg/volume"
)

// A push that takes waiting segments along leaves receipts: which file it read,
// and which object it made of it. The server's own call for such a segment then
// has nothing to compare: where the file is still the one that was read and the
// archive still holds that object, it was archived. The receipts lie in
//
//	$TIDEMARK_STATE or ~/.local/state/tidemark, <repository id>.<system identifier>.pushed
//
// and each push that takes segments along replaces those of the one before.
// Where they are missing, damaged or of other files, nothing but time is lost:
// the contents are compared.

// receipt says what was read, and what became of it.
type receipt struct {
	Name   string    `json:"name"` // of the segment
	File   fileState `json:"file"`
	Object repo.Hash `json:"object"` // see repo.Cluster.WALObject
}

// fileState is what changes when somebody writes into a file, or puts another
// in its place.
type fileState struct {
	Device  uint64 `json:"device"`
	Inode   uint64 `json:"inode"`
	Size    int64  `json:"size"`     // bytes
	ModTime int64  `json:"mod_time"` // nanoseconds since 1970
	Changed int64  `json:"changed"`  // likewise, of the inode
}

// settled is how long a file must not have changed before it was read: file
// systems count time in steps, and a change in the same step as the read would
// not show.
const settled = 2 * time.Second

func stateOf(f *os.File) (fileState, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fileState{}, err
	}
	return fileState{Device: uint64(st.Dev), Inode: st.Ino, Size: st.Size, ModTime: st.Mtim.Nano(), Changed: st.Ctim.Nano()}, nil
}

// settledAt tells whether a change at a time would show.
func (s fileState) settledAt(now time.Time) bool {
	return now.Sub(time.Unix(0, s.Changed)) >= settled && now.Sub(time.Unix(0, s.ModTime)) >= settled
}

// receiptsPath is where the receipts of a cluster's WAL in a repository are.
func receiptsPath(c *repo.Cluster) (string, error) {
	dir, err := c.Repository().StateDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, fmt.Sprintf("%s.%d.pushed", c.Repository().ID(), c.SystemID())), nil
}

// findReceipt returns the receipt for a segment that is the file f.
func findReceipt(c *repo.Cluster, name string, f *os.File) (receipt, bool) {
	path, err := receiptsPath(c)
	if err != nil {
		return receipt{}, false
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return receipt{}, false
	}
	var all []receipt
	if json.Unmarshal(data, &all) != nil {
		return receipt{}, false
	}
	now, err := stateOf(f)
	for _, r := range all {
		if err == nil && r.Name == name && r.File == now {
			return r, true
		}
	}
	return receipt{}, false
}

// keepReceipts replaces the receipts.
func keepReceipts(c *repo.Cluster, all []receipt) error {
	path, err := receiptsPath(c)
	if err != nil {
		return err
	}
	data, err := json.Marshal(all)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return volume.WriteFile(volume.OS, path, data, 0o600)
}
