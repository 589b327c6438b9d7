package backup

import (
	"cmp"
	"context"
	"runtime"
	"slices"

	"tidemark/internal/exit"
	"tidemark/internal/progress"
	"tidemark/internal/repo"
)

// CopyOptions say what is copied.
type CopyOptions struct {
	Backups  []string // identifiers; nil for all
	AllWAL   bool     // the whole archive, and not only what the backups need to be consistent
	Jobs     int
	Progress progress.Reporter
}

// CopyResult is what was copied into another repository.
type CopyResult struct {
	From     string   `json:"from"`      // where it was
	To       string   `json:"to"`        // where it is now as well
	Copied   []string `json:"copied"`    // identifiers of the backups
	There    []string `json:"there"`     // those that were there already
	WALFiles int      `json:"wal_files"` // how many WAL files were copied
}

// Copy copies backups, and the WAL that makes them consistent, into another
// repository. What is there already is not copied again, so the same command
// goes on where an interrupted one had come to.
func Copy(ctx context.Context, from, to *repo.Cluster, o CopyOptions) (*CopyResult, error) {
	o.Progress = progress.Or(o.Progress)
	o.Jobs = cmp.Or(o.Jobs, runtime.GOMAXPROCS(0))
	cat, err := from.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	if from.Repository().ID() == to.Repository().ID() {
		return nil, exit.New(exit.Refused, "make another one with dbbackup init", "%s and %s are one repository", from.Repository().Location(), to.Repository().Location())
	}
	ids, err := fullIDs(ctx, from, o.Backups)
	if err != nil {
		return nil, err
	}
	res := &CopyResult{From: from.Repository().Location(), To: to.Repository().Location(), Copied: []string{}, There: []string{}}
	for _, s := range cat.Backups {
		if ids != nil && !slices.Contains(ids, s.ID) {
			continue
		}
		err := needed(s, func(name string) error { return copyWAL(ctx, from, to, name, res) })
		if err != nil {
			return res, err
		}
		o.Progress.Phase("copying "+s.ID, 0, progress.Bytes)
		did, err := to.CopyBackup(ctx, from, s.ID, o.Jobs, o.Progress.Add)
		if err != nil {
			return res, err
		}
		if did {
			res.Copied = append(res.Copied, s.ID)
		} else {
			res.There = append(res.There, s.ID)
		}
	}
	if len(res.Copied) > 0 { // what interrupted copies of them left
		if _, err := to.Sweep(ctx, nil, false); err != nil {
			o.Progress.Note("what interrupted copies left is still there, the next dbbackup expire removes it: %v", err)
		}
	}
	for _, id := range ids {
		if !slices.Contains(res.Copied, id) && !slices.Contains(res.There, id) {
			return res, exit.New(exit.Failed, "dbbackup list shows what there is", "there is no backup %s in %s", id, res.From)
		}
	}
	if !o.AllWAL {
		return res, nil
	}
	archive, err := listArchive(ctx, from)
	if err != nil {
		return res, err
	}
	o.Progress.Phase("copying WAL", int64(len(archive.files)), progress.Items)
	for _, f := range archive.files {
		if err := copyWAL(ctx, from, to, f.String(), res); err != nil {
			return res, err
		}
		o.Progress.Add(1)
	}
	return res, nil
}

// copyWAL copies one WAL file unless it is there.
func copyWAL(ctx context.Context, from, to *repo.Cluster, name string, res *CopyResult) error {
	if has, err := to.HasWAL(ctx, name); err != nil || has {
		return err
	}
	f, err := from.OpenWAL(ctx, name)
	if err != nil {
		return err
	}
	defer f.Close()
	p, err := to.PushWAL(ctx, name, f, f.Size())
	if err == nil && !p.Existed {
		res.WALFiles++
	}
	return err
}
