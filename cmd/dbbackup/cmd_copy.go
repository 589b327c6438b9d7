package main

import (
	"context"
	"errors"
	"strings"

	"tidemark/internal/backup"
	"tidemark/internal/cli"
	"tidemark/internal/exit"
	"tidemark/internal/repo"
)

type copyCmd struct {
	cli.ReposFlag
	cli.IdentityFlag
	cli.JobsFlag
	systemFlag
	To     string   `required:"" placeholder:"REPO" help:"The other repository. If it is encrypted, everything is encrypted anew for its recipients."`
	AllWAL bool     `name:"all-wal" help:"Copy the whole WAL archive, and not only what makes the backups consistent."`
	IDs    []string `arg:"" optional:"" name:"backup" help:"Only these backups, by identifier; all by default."`
}

// Run copies the backups.
func (c *copyCmd) Run(ctx context.Context, e *cli.Env) error {
	if err := needRepos(c.Repos); err != nil {
		return err
	}
	ids, err := repo.LoadIdentities(c.Identities()...)
	if err != nil {
		return err
	}
	if err := becomeRepoOwner(c.To); err != nil {
		return err
	}
	to, err := repo.Open(ctx, c.To)
	if err != nil {
		return err
	}
	from, unread := c.sources(ctx, ids, to)
	if len(from) == 0 {
		return unread
	}
	if unread != nil {
		e.Note("%v: the others are copied from", unread)
	}
	res, err := backup.Copy(ctx, from, to.Cluster(from[0].SystemID()), backup.CopyOptions{Backups: c.IDs, AllWAL: c.AllWAL, Jobs: c.Jobs, Progress: e.Progress()})
	if err == nil && unread != nil && (c.IDs == nil || c.AllWAL) {
		err = exit.Wrap(unread, exit.Partial, "run the same command again: what has come is not copied again", "not everything is copied")
	}
	if err != nil && exit.CodeOf(err) != exit.Partial {
		return err
	}
	return errors.Join(e.Render(res, func(t *cli.Text) { renderCopy(t, res) }), err)
}

// sources opens the repositories that are copied from, but for the one that is
// copied to and for empty ones. The error says which cannot be read; where none
// is left, why.
func (c *copyCmd) sources(ctx context.Context, ids *repo.Identities, to *repo.Repository) (from []*repo.Cluster, unread error) {
	var where []string
	var errs []error
	for _, l := range c.Repos {
		cluster, err := c.source(ctx, l, ids, to)
		if err == nil && cluster == nil {
			continue
		}
		if err == nil && len(from) > 0 && from[0].SystemID() != cluster.SystemID() {
			return nil, exit.New(exit.Usage, "choose one of them with --system-id", "%s holds cluster %d, and %s cluster %d",
				from[0].Repository().Location(), from[0].SystemID(), l, cluster.SystemID())
		}
		if err == nil {
			from = append(from, cluster)
		}
		where, errs = append(where, l), append(errs, err)
	}
	if len(where) == 0 {
		return nil, exit.New(exit.Failed, "dbbackup list shows what there is", "there is nothing that could be copied to %s", c.To)
	}
	return from, inSome(where, errs, "cannot be read")
}

// source opens a repository that is copied from. It returns nil for what is left
// out where there are several.
func (c *copyCmd) source(ctx context.Context, location string, ids *repo.Identities, to *repo.Repository) (*repo.Cluster, error) {
	r, err := repo.Open(ctx, location)
	if err != nil {
		return nil, err
	}
	if len(c.Repos) > 1 {
		clusters, err := r.Clusters(ctx)
		if err != nil || r.ID() == to.ID() || len(clusters) == 0 {
			return nil, err
		}
	}
	if err := r.UnlockWith(ctx, ids); err != nil {
		return nil, err
	}
	if !r.Unlocked() {
		return nil, exit.Wrap(repo.ErrNoKey, exit.Failed, "say --identity FILE, or set TIDEMARK_IDENTITY", "%s", location)
	}
	return clusterOf(ctx, r, c.SystemID)
}

func renderCopy(t *cli.Text, r *backup.CopyResult) {
	var from []string
	for _, s := range r.Sources {
		from = append(from, s.Repository)
	}
	t.Line("Copied from %s to %s.", strings.Join(from, ", "), r.To)
	t.KV("backups", strings.Join(r.Copied, ", "), "there already", strings.Join(r.There, ", "), "WAL files", r.WALFiles)
	if len(r.Sources) == 1 || len(r.Copied) == 0 {
		return
	}
	t.Blank()
	tab := cli.NewTable("repository", "gave")
	for _, s := range r.Sources {
		tab.Row(s.Repository, strings.Join(s.Copied, ", "))
	}
	t.Table(tab)
}

// Examples are printed with --help.
func (copyCmd) Examples() string {
	return `dbbackup copy --repo /srv/backup --to /mnt/offsite
dbbackup copy --repo /srv/backup --to /mnt/offsite latest --all-wal
dbbackup copy --to /mnt/offsite    # each from the first configured repository that has it
dbbackup copy --repo /srv/backup --identity key.txt --to /mnt/other   # decrypted, or encrypted for others`
}
