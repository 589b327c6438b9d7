package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"tidemark/internal/exit"
	"tidemark/internal/progress"
	"tidemark/internal/repo"
)

// CopyOptions say what is copied.
type CopyOptions struct {
	Backups  []string // identifiers, their beginnings, or "latest"; nil for all
	AllWAL   bool     // the whole archive, and not only what the backups need to be consistent
	Jobs     int
	Progress progress.Reporter
}

// CopyResult is what was copied into another repository.
type CopyResult struct {
	To       string       `json:"to"`        // the other repository
	Sources  []CopySource `json:"sources"`   // where it was, in the order in which they were asked
	Copied   []string     `json:"copied"`    // identifiers of the backups
	There    []string     `json:"there"`     // those that were there already
	WALFiles int          `json:"wal_files"` // how many WAL files were copied
}

// CopySource is a repository that was copied from.
type CopySource struct {
	Repository string   `json:"repository"` // where it is
	Copied     []string `json:"copied"`     // identifiers of the backups that it gave
}

// copying is one run of Copy.
type copying struct {
	CopyOptions
	from   []*repo.Cluster
	to     *repo.Cluster
	res    *CopyResult
	failed []error // of sources that could not give all they have
}

// toCopy is a backup and who has it, in the order in which they are asked.
type toCopy struct {
	summary *repo.Summary
	at      []int // numbers of the sources
}

// Copy copies backups, and the WAL that makes them consistent, from one or
// several repositories into another one: each backup from the first that has
// it, and from the next if that one fails. What is there already is not copied
// again, so the same command goes on where an interrupted one had come to.
func Copy(ctx context.Context, from []*repo.Cluster, to *repo.Cluster, o CopyOptions) (*CopyResult, error) {
	o.Progress = progress.Or(o.Progress)
	o.Jobs = cmp.Or(o.Jobs, runtime.GOMAXPROCS(0))
	c := &copying{CopyOptions: o, from: from, to: to,
		res: &CopyResult{To: to.Repository().Location(), Copied: []string{}, There: []string{}}}
	for _, f := range from {
		if f.Repository().ID() == to.Repository().ID() {
			return nil, exit.New(exit.Refused, "make another one with dbbackup init", "%s and %s are one repository", f.Repository().Location(), c.res.To)
		}
		c.res.Sources = append(c.res.Sources, CopySource{f.Repository().Location(), []string{}})
	}
	plan, err := c.plan(ctx)
	if err != nil {
		return nil, err
	}
	for _, b := range plan {
		if err := c.backup(ctx, b); err != nil {
			return c.res, err
		}
	}
	if len(c.res.Copied) > 0 { // what interrupted copies of them left
		if _, err := to.Sweep(ctx, nil, false); err != nil {
			o.Progress.Note("what interrupted copies left is still there, the next dbbackup expire removes it: %v", err)
		}
	}
	if o.AllWAL {
		c.archives(ctx)
	}
	if err := ctx.Err(); err != nil {
		return c.res, err
	}
	return c.res, c.lacking()
}

// lacking is the error of a copy that was to hold everything, and does not.
func (c *copying) lacking() error {
	if len(c.failed) == 0 || c.Backups != nil && !c.AllWAL {
		return nil
	}
	return exit.Wrap(errors.Join(c.failed...), exit.Partial, "run the same command again: what has come is not copied again", "not everything is copied")
}

// plan lists what is to be copied, the oldest first.
func (c *copying) plan(ctx context.Context) ([]*toCopy, error) {
	all, damaged := map[string]*toCopy{}, map[string]error{}
	for i, f := range c.from {
		cat, err := f.Catalog(ctx)
		if err != nil && len(c.from) == 1 {
			return nil, err
		}
		if err != nil {
			c.fail(i, err)
			continue
		}
		for _, s := range cat.Backups {
			if all[s.ID] == nil {
				all[s.ID] = &toCopy{summary: s}
			}
			all[s.ID].at = append(all[s.ID].at, i)
		}
		for _, d := range cat.Damaged {
			damaged[d.ID] = d.Err
		}
	}
	if len(c.failed) == len(c.from) {
		return nil, errors.Join(c.failed...)
	}
	var plan []*toCopy
	for _, b := range all {
		plan = append(plan, b)
	}
	sortBy(plan, func(b *toCopy) string { return b.summary.ID })
	if c.Backups == nil {
		return plan, nil
	}
	wanted := map[string]bool{}
	for _, name := range c.Backups {
		id, err := c.resolve(name, plan, damaged)
		if err != nil {
			return nil, err
		}
		wanted[id] = true
	}
	return slices.DeleteFunc(plan, func(b *toCopy) bool { return !wanted[b.summary.ID] }), nil
}

// resolve finds the backup that is meant: "latest", an identifier, or the
// beginning of one.
func (c *copying) resolve(name string, plan []*toCopy, damaged map[string]error) (string, error) {
	var ids []string
	for _, b := range plan {
		if id := b.summary.ID; id == name {
			return id, nil
		} else if strings.HasPrefix(id, name) || name == "latest" {
			ids = append(ids, id)
		}
	}
	switch {
	case name == "latest" && len(ids) > 0:
		return ids[len(ids)-1], nil
	case len(ids) == 1:
		return ids[0], nil
	case len(ids) > 1:
		return "", exit.New(exit.Usage, "name one of them: "+strings.Join(ids[:min(len(ids), 5)], ", "), "%d backups begin with %s", len(ids), name)
	case damaged[name] != nil:
		return "", fmt.Errorf("the manifest of backup %s cannot be read: %w", name, damaged[name])
	}
	var where []string
	for _, s := range c.res.Sources {
		where = append(where, s.Repository)
	}
	return "", exit.New(exit.Failed, "dbbackup list shows what there is", "there is no backup %s in %s", name, strings.Join(where, ", "))
}

// backup copies one backup from the first source that can give it.
func (c *copying) backup(ctx context.Context, b *toCopy) error {
	var errs []error
	for k, i := range b.at {
		err := c.backupFrom(ctx, b, i)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if len(c.from) > 1 {
			err = fmt.Errorf("%s: %w", c.res.Sources[i].Repository, err)
		}
		if errs = append(errs, err); k+1 < len(b.at) {
			c.Progress.Note("backup %s is taken from %s: %v", b.summary.ID, c.res.Sources[b.at[k+1]].Repository, err)
		}
	}
	return errors.Join(errs...)
}

func (c *copying) backupFrom(ctx context.Context, b *toCopy, i int) error {
	id := b.summary.ID
	err := needed(b.summary, func(name string) error { return c.wal(ctx, name, i) })
	if err != nil {
		return err
	}
	c.Progress.Phase("copying "+id, 0, progress.Bytes)
	did, err := c.to.CopyBackup(ctx, c.from[i], id, c.Jobs, c.Progress.Add)
	switch {
	case err != nil:
		return err
	case did:
		c.res.Copied = append(c.res.Copied, id)
		c.res.Sources[i].Copied = append(c.res.Sources[i].Copied, id)
	default:
		c.res.There = append(c.res.There, id)
	}
	return nil
}

// wal copies one WAL file unless it is there: from a source, or from another
// one if that one lacks it.
func (c *copying) wal(ctx context.Context, name string, source int) error {
	if has, err := c.to.HasWAL(ctx, name); err != nil || has {
		return err
	}
	err := c.walFrom(ctx, name, c.from[source])
	for i := 0; i < len(c.from) && errors.Is(err, repo.ErrNotArchived); i++ {
		if i == source {
			continue
		}
		if other := c.walFrom(ctx, name, c.from[i]); !errors.Is(other, repo.ErrNotArchived) {
			err = other
		}
	}
	return err
}

func (c *copying) walFrom(ctx context.Context, name string, from *repo.Cluster) error {
	f, err := from.OpenWAL(ctx, name)
	if err != nil {
		return err
	}
	defer f.Close()
	p, err := c.to.PushWAL(ctx, name, f, f.Size())
	if err == nil && !p.Existed {
		c.res.WALFiles++
	}
	return err
}

// fail remembers what is wrong with a source.
func (c *copying) fail(source int, err error) {
	c.failed = append(c.failed, fmt.Errorf("%s: %w", c.res.Sources[source].Repository, err))
}

// archives copies all WAL of all sources.
func (c *copying) archives(ctx context.Context) {
	for i, f := range c.from {
		archive, err := listArchive(ctx, f)
		c.Progress.Phase("copying WAL", int64(len(archive.files)), progress.Items)
		for k := 0; k < len(archive.files) && err == nil; k++ {
			err = c.wal(ctx, archive.files[k].String(), i)
			c.Progress.Add(1)
		}
		if err != nil {
			c.fail(i, err)
		}
	}
}
