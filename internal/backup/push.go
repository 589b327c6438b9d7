package backup

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

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
	Ahead       int    `json:"ahead"`             // waiting segments that were archived along with it

	Others []PushCopy `json:"others,omitempty"` // the same in the other repositories, where there are several
}

// PushCopy is what a push did in a further repository.
type PushCopy struct {
	Existed     bool   `json:"existed"`      // its archive had it already, with the same content
	StoredBytes int64  `json:"stored_bytes"` // of the object; 0 where it existed
	Repository  string `json:"repository"`   // where it is
}

// PushOptions say what is archived, and where.
type PushOptions struct {
	Repository string // its location
	DataDir    string // the server's; the current directory where empty
	File       string // relative to DataDir
	Ahead      int    // waiting segments to take along at most; see DefaultAhead

	Log *slog.Logger // nil: nothing is logged
}

// Push archives one WAL file, as archive_command does. It returns when the
// file is durable in the repository.
func Push(ctx context.Context, o PushOptions) (*PushResult, error) {
	dataDir, path := cmp.Or(o.DataDir, "."), o.File
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
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
	r, err := repo.Open(ctx, o.Repository)
	if err != nil {
		return nil, err
	}
	res := &PushResult{File: filepath.Base(path), SizeBytes: st.Size(), Repository: r.Location()}
	id, err := repo.SystemID(control.SystemIdentifier).MarshalText()
	if err != nil {
		return nil, err
	}
	res.SystemID = string(id)
	return res, res.push(ctx, r.Cluster(control.SystemIdentifier), f, filepath.Dir(file), o)
}

// push archives the file and, unless it was archived before, those that wait
// behind it.
func (res *PushResult) push(ctx context.Context, c *repo.Cluster, f *os.File, walDir string, o PushOptions) error {
	if r, ok := findReceipt(c, res.File, f); ok {
		if there, err := c.WALObject(ctx, res.File); err == nil && there == r.Object {
			res.Existed = true
			return nil
		}
	}
	var g errgroup.Group
	if names := waiting(walDir, res.File, o.Ahead); len(names) > 0 {
		has, err := c.HasWAL(ctx, res.File)
		if err != nil {
			return err
		}
		if !has {
			g.Go(func() error {
				res.Ahead = pushAhead(ctx, c, walDir, names, o.Log)
				return nil
			})
		}
	}
	push, err := c.PushWAL(ctx, res.File, f, res.SizeBytes)
	res.Existed, res.StoredBytes = push.Existed, push.Stored
	g.Wait()
	return err
}
