package main

import (
	"context"
	"strings"

	"tidemark/internal/backup"
	"tidemark/internal/cli"
	"tidemark/internal/exit"
	"tidemark/internal/repo"
)

type copyCmd struct {
	cli.RepoFlag
	cli.IdentityFlag
	cli.JobsFlag
	systemFlag
	To     string   `required:"" placeholder:"REPO" help:"The other repository. If it is encrypted, everything is encrypted anew for its recipients."`
	AllWAL bool     `name:"all-wal" help:"Copy the whole WAL archive, and not only what makes the backups consistent."`
	IDs    []string `arg:"" optional:"" name:"backup" help:"Only these backups, by identifier; all by default."`
}

// Run copies the backups.
func (c *copyCmd) Run(ctx context.Context, e *cli.Env) error {
	if err := needRepo(c.Repo); err != nil {
		return err
	}
	ids, err := repo.LoadIdentities(c.Identities()...)
	if err != nil {
		return err
	}
	if err := becomeRepoOwner(c.To); err != nil {
		return err
	}
	from, err := repo.Open(ctx, c.Repo)
	if err != nil {
		return err
	}
	if err := from.UnlockWith(ctx, ids); err != nil {
		return err
	}
	if !from.Unlocked() {
		return exit.Wrap(repo.ErrNoKey, exit.Failed, "say --identity FILE, or set TIDEMARK_IDENTITY", "%s", from.Location())
	}
	to, err := repo.Open(ctx, c.To)
	if err != nil {
		return err
	}
	cluster, err := from.OnlyCluster(ctx)
	if c.SystemID != 0 {
		cluster, err = from.Cluster(c.SystemID), nil
	}
	if err != nil {
		return err
	}
	res, err := backup.Copy(ctx, cluster, to.Cluster(cluster.SystemID()), backup.CopyOptions{Backups: c.IDs, AllWAL: c.AllWAL, Jobs: c.Jobs, Progress: e.Progress()})
	if err != nil {
		return err
	}
	return e.Render(res, func(t *cli.Text) {
		t.Line("Copied from %s to %s.", res.From, res.To)
		t.KV("backups", strings.Join(res.Copied, ", "), "there already", strings.Join(res.There, ", "), "WAL files", res.WALFiles)
	})
}

// Examples are printed with --help.
func (copyCmd) Examples() string {
	return `dbbackup copy --repo /srv/backup --to /mnt/offsite
dbbackup copy --repo /srv/backup --to /mnt/offsite latest --all-wal
dbbackup copy --repo /srv/backup --identity key.txt --to /mnt/other   # decrypted, or encrypted for others`
}
