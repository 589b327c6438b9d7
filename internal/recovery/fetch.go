package recovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"tidemark/internal/repo"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// Exit codes of a restore_command. The server takes 1 to 125 as "there is no
// such file", which ends recovery; above 125 it stops with an error.
const (
	FetchLacks = 1
	FetchFault = 200
)

// ErrLacks is returned when the archive provably lacks the file.
var ErrLacks = repo.ErrNotArchived

// Fetch brings one file of the archive to a path. The file appears there whole
// and checked, or not at all. ErrLacks says that there is none; every other
// error is a fault, behind which the file may exist.
func Fetch(ctx context.Context, c *repo.Cluster, name, path string) (err error) {
	kind, ok := wal.ParseFileName(name)
	if !ok {
		return fmt.Errorf("%q is not the name of a WAL file", name)
	}
	tmp := path + volume.TempSuffix
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreMissing(os.Remove(tmp)))
		}
	}()
	size, err := c.FetchWAL(ctx, name, f)
	if err == nil {
		err = checkFetched(f, size, kind, c.SystemID())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// checkFetched checks that the content is what the name says.
func checkFetched(f *os.File, size int64, name wal.FileName, systemID uint64) error {
	switch name.Kind {
	case wal.FileHistory:
		data, err := io.ReadAll(io.NewSectionReader(f, 0, size))
		if err != nil {
			return err
		}
		_, err = timeline.Parse(name.Timeline, data)
		return err
	case wal.FileSegment, wal.FilePartial:
		return wal.CheckSegmentFile(f, size, name, systemID)
	}
	return nil
}

// FetchCluster returns the part of the repository that the server needs which
// calls fetch: that of the cluster in its working directory.
func FetchCluster(ctx context.Context, r *repo.Repository, systemID uint64, dir string) (*repo.Cluster, error) {
	if systemID != 0 {
		return r.Cluster(systemID), nil
	}
	c, err := volume.ReadControl(dir)
	switch {
	case err == nil:
		return r.Cluster(c.SystemIdentifier), nil
	case errors.Is(err, os.ErrNotExist):
		return r.OnlyCluster(ctx)
	}
	return nil, err
}

// KnowsCluster returns an error where a repository holds nothing of a cluster.
func KnowsCluster(ctx context.Context, r *repo.Repository, systemID uint64) error {
	ids, err := r.Clusters(ctx)
	if err == nil && !slices.Contains(ids, systemID) {
		err = fmt.Errorf("%s holds nothing of cluster %d: it is another repository, or an empty one", r.Location(), systemID)
	}
	return err
}

// IsStandby tells whether the server of a data directory is a standby, which
// asks again and may be told that a file is missing when nobody can tell.
func IsStandby(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "standby.signal"))
	return err == nil
}

// HasHistory tells whether the server of a data directory does without a
// history file of the archive: timeline 1 has none, and one that lies in pg_wal
// is read there. A standby that is promoted asks for its timeline's when its
// standby.signal is gone already; a fault would end the promotion and the server.
func HasHistory(dir, name string) bool {
	parsed, ok := wal.ParseFileName(name)
	if !ok || parsed.Kind != wal.FileHistory {
		return false
	}
	_, err := os.Stat(filepath.Join(dir, "pg_wal", name))
	return parsed.Timeline == 1 || err == nil
}
