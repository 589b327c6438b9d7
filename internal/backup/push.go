package backup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"tidemark/internal/exit"
	"tidemark/internal/repo"
	"tidemark/pkg/volume"
)

// PushResult is what a push did.
type PushResult struct {
	File        string `json:"file"`              // name of the WAL file
	Existed     bool   `json:"existed"`           // the archive had it already, with the same content
	SizeBytes   int64  `json:"size_bytes"`        // of the file
	StoredBytes int64  `json:"stored_bytes"`      // of the object; 0 where it existed
	Repository  string `json:"repository"`        // where it is
	SystemID    string `json:"system_identifier"` // of the cluster

	Others []PushCopy `json:"others,omitempty"` // the same in the other repositories, where there are several
}

// PushCopy is what a push did in a further repository.
type PushCopy struct {
	Existed     bool   `json:"existed"`      // its archive had it already, with the same content
	StoredBytes int64  `json:"stored_bytes"` // of the object; 0 where it existed
	Repository  string `json:"repository"`   // where it is
}

// Push archives one WAL file, as archive_command does: path is relative to the
// data directory, which is the current directory or dataDir. It returns when
// the file is durable in the repository.
func Push(ctx context.Context, location, dataDir, path string) (*PushResult, error) {
	if dataDir == "" {
		dataDir = "."
	}
	control, err := volume.ReadControl(dataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, exit.Wrap(err, exit.Failed, "the server runs archive_command in its data directory; by hand, change there first or name it with -D",
			"cannot tell which cluster %s belongs to", path)
	}
	if err != nil {
		return nil, err
	}
	file := path
	if !filepath.IsAbs(file) {
		file = filepath.Join(dataDir, path)
	}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, exit.Wrap(err, exit.Failed, `archive_command = 'dbbackup push --repo DIR %p'`, "no such WAL file")
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, exit.New(exit.Refused, `archive_command = 'dbbackup push --repo DIR %p'`, "%s is not a file", path)
	}
	r, err := repo.Open(ctx, location)
	if err != nil {
		return nil, err
	}
	name := filepath.Base(path)
	push, err := r.Cluster(control.SystemIdentifier).PushWAL(ctx, name, f, st.Size())
	if err != nil {
		return nil, err
	}
	id, err := repo.SystemID(control.SystemIdentifier).MarshalText()
	return &PushResult{File: name, Existed: push.Existed, SizeBytes: push.Size, StoredBytes: push.Stored,
		Repository: r.Location(), SystemID: string(id)}, err
}
