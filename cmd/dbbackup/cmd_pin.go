package main

import (
	"context"
	"strings"
	"time"

	"tidemark/internal/backup"
	"tidemark/internal/cli"
)

type pinCmd struct {
	cli.ReposFlag
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
	return inTurn(e, c.Repos, func(location string) (*backup.PinResult, error) {
		cluster, err := openCluster(ctx, location, c.SystemID)
		if err != nil {
			return nil, err
		}
		p, err := cluster.Pin(ctx, c.ID, c.Reason, until)
		if err != nil {
			return nil, err
		}
		return &backup.PinResult{Backup: p.ID, Pinned: true, Reason: p.Reason, Until: p.Until, Repository: cluster.Repository().Location()}, nil
	}, func(t *cli.Text, p *backup.PinResult) {
		if p.Until != nil {
			t.Line("Backup %s is kept until %s%s.", p.Backup, cli.Time(*p.Until), inWhich(c.Repos, p.Repository))
			return
		}
		t.Line("Backup %s is kept until it is unpinned%s.", p.Backup, inWhich(c.Repos, p.Repository))
	})
}

// inWhich names a repository where there are several.
func inWhich(locations []string, location string) string {
	if len(locations) < 2 {
		return ""
	}
	return ", in " + location
}

// Examples are printed with --help.
func (pinCmd) Examples() string {
	return `dbbackup pin --repo /srv/backup 20261121T235940Z-3411 --reason "before the upgrade"
dbbackup pin --repo /srv/backup latest --until 2027-12-31`
}

type unpinCmd struct {
	cli.ReposFlag
	systemFlag
	ID string `arg:"" name:"backup" help:"Identifier of the backup, or latest."`
}

// Run takes the pin away.
func (c *unpinCmd) Run(ctx context.Context, e *cli.Env) error {
	return inTurn(e, c.Repos, func(location string) (*backup.PinResult, error) {
		cluster, err := openCluster(ctx, location, c.SystemID)
		if err != nil {
			return nil, err
		}
		was, id, err := cluster.Unpin(ctx, c.ID)
		if err != nil {
			return nil, err
		}
		return &backup.PinResult{Backup: id, Was: was, Repository: cluster.Repository().Location()}, nil
	}, func(t *cli.Text, p *backup.PinResult) {
		if p.Was {
			t.Line("Backup %s is kept by the policy's rules only%s.", p.Backup, inWhich(c.Repos, p.Repository))
		} else {
			t.Line("Backup %s was not pinned%s.", p.Backup, inWhich(c.Repos, p.Repository))
		}
	})
}

// Examples are printed with --help.
func (unpinCmd) Examples() string {
	return `dbbackup unpin --repo /srv/backup 20261121T235940Z-3411`
}

type deleteCmd struct {
	cli.ReposFlag
	systemFlag
	IDs []string `arg:"" name:"backup" help:"Identifiers of the backups."`
}

// Run removes the backups.
func (c *deleteCmd) Run(ctx context.Context, e *cli.Env) error {
	location, err := oneOnly(c.Repos, "delete")
	if err != nil {
		return err
	}
	cluster, err := openCluster(ctx, location, c.SystemID)
	if err != nil {
		return err
	}
	if err := e.Confirm("Remove %s from %s for ever?", strings.Join(c.IDs, ", "), location); err != nil {
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
	return `dbbackup delete --repo /srv/backup 20261121T235940Z-3411
dbbackup delete --repo /srv/backup --yes 20261120T021500Z-3411 20261119T021500Z`
}
