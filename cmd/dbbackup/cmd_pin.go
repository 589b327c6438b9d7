package main

import (
	"context"
	"strings"
	"time"

	"tidemark/internal/backup"
	"tidemark/internal/cli"
)

type pinCmd struct {
	cli.RepoFlag
	systemFlag
	Reason string `placeholder:"TEXT" help:"Why; list and show say it."`
	Until  string `placeholder:"DATE" help:"Until then only: 2027-12-31, or 90d from now."`
	ID     string `arg:"" name:"backup" help:"Identifier of the backup, or latest."`
}

// Run pins the backup.
func (c *pinCmd) Run(ctx context.Context, e *cli.Env) error {
	until, err := backup.ParseMoment(c.Until, time.Now())
	if err != nil {
		return err
	}
	cluster, err := openCluster(ctx, c.Repo, c.SystemID)
	if err != nil {
		return err
	}
	p, err := cluster.Pin(ctx, c.ID, c.Reason, until)
	if err != nil {
		return err
	}
	return e.Render(&backup.PinResult{Backup: p.ID, Pinned: true, Reason: p.Reason, Until: p.Until}, func(t *cli.Text) {
		if p.Until != nil {
			t.Line("Backup %s is kept until %s.", p.ID, cli.Time(*p.Until))
			return
		}
		t.Line("Backup %s is kept until it is unpinned.", p.ID)
	})
}

// Examples are printed with --help.
func (pinCmd) Examples() string {
	return `dbbackup pin --repo /srv/backup 20261121T235940Z --reason "before the upgrade"
dbbackup pin --repo /srv/backup latest --until 2027-12-31`
}

type unpinCmd struct {
	cli.RepoFlag
	systemFlag
	ID string `arg:"" name:"backup" help:"Identifier of the backup, or latest."`
}

// Run takes the pin away.
func (c *unpinCmd) Run(ctx context.Context, e *cli.Env) error {
	cluster, err := openCluster(ctx, c.Repo, c.SystemID)
	if err != nil {
		return err
	}
	was, id, err := cluster.Unpin(ctx, c.ID)
	if err != nil {
		return err
	}
	return e.Render(&backup.PinResult{Backup: id, Was: was}, func(t *cli.Text) {
		if was {
			t.Line("Backup %s is kept by the policy's rules only.", id)
		} else {
			t.Line("Backup %s was not pinned.", id)
		}
	})
}

// Examples are printed with --help.
func (unpinCmd) Examples() string {
	return `dbbackup unpin --repo /srv/backup 20261121T235940Z`
}

type deleteCmd struct {
	cli.RepoFlag
	systemFlag
	IDs []string `arg:"" name:"backup" help:"Identifiers of the backups."`
}

// Run removes the backups.
func (c *deleteCmd) Run(ctx context.Context, e *cli.Env) error {
	cluster, err := openCluster(ctx, c.Repo, c.SystemID)
	if err != nil {
		return err
	}
	if err := e.Confirm("Remove %s from %s for ever?", strings.Join(c.IDs, ", "), c.Repo); err != nil {
		return err
	}
	res, err := backup.Delete(ctx, cluster, c.IDs)
	if res != nil {
		if err := e.Render(res, func(t *cli.Text) {
			t.Line("Removed: %s.", strings.Join(res.Backups, ", "))
			t.KV("packs", cli.Count(res.Packs)+", "+cli.Bytes(res.PackBytes))
			if len(res.WaitsFor) > 0 {
				t.Line("packs stay while backup %s runs; the next expire removes them", strings.Join(res.WaitsFor, ", "))
			}
		}); err != nil {
			return err
		}
	}
	return err
}

// Examples are printed with --help.
func (deleteCmd) Examples() string {
	return `dbbackup delete --repo /srv/backup 20261121T235940Z
dbbackup delete --repo /srv/backup --yes 20261120T021500Z 20261119T021500Z`
}
