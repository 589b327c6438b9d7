package main

import (
	"context"

	"tidemark/internal/cli"
	"tidemark/internal/replication"
)

type syncCmd struct {
	localFlags
	Upstream string `name:"upstream" placeholder:"CONNINFO" help:"How to reach the primary; default the standby's primary_conninfo."`
}

func (syncCmd) Examples() string {
	return `dbrepl sync -D /srv/standby                 # exit 0: has all that the primary had
dbrepl sync -D /srv/standby --timeout 10s   # exit 3: not in ten seconds
dbrepl -S -D /srv/standby                   # the same as sync`
}

func (c *syncCmd) Run(ctx context.Context, e *cli.Env) error {
	if c.PGData != "" && c.DSN == "" {
		if err := c.dataDir(); err != nil {
			return err
		}
	}
	o := c.options(e)
	if c.DSN != "" {
		o.Dir = ""
	}
	r, err := replication.Sync(ctx, replication.SyncOptions{StandbyOptions: o, Upstream: c.Upstream})
	if r.Target == 0 {
		return err
	}
	if rerr := e.Render(r, func(t *cli.Text) {
		if r.Reached {
			t.Line("In sync: replayed to %s on timeline %d, all that the primary had (%s), after %s.", r.ReplayLSN, r.Timeline, r.Target, cli.Duration(seconds(r.Elapsed)))
		}
	}); rerr != nil {
		return rerr
	}
	return err
}
