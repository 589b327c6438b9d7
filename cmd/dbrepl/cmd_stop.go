package main

import (
	"context"

	"tidemark/internal/cli"
	"tidemark/internal/postgres"
	"tidemark/internal/replication"
)

type stopCmd struct {
	localFlags
	Server bool   `name:"server" help:"Stop the server too."`
	Mode   string `name:"mode" enum:"fast,smart,immediate" default:"fast" help:"With --server: fast, smart or immediate."`
}

func (stopCmd) Examples() string {
	return `dbrepl stop -D /srv/standby             # keeps answering queries, receives nothing
dbrepl stop -D /srv/standby --server    # and stops the server
dbrepl start -D /srv/standby            # goes on where it was`
}

func (c *stopCmd) Run(ctx context.Context, e *cli.Env) error {
	if err := c.dataDir(); err != nil {
		return err
	}
	mode := map[string]postgres.StopMode{"fast": postgres.StopFast, "smart": postgres.StopSmart, "immediate": postgres.StopImmediate}[c.Mode]
	r, err := replication.Stop(ctx, replication.StopOptions{StandbyOptions: c.options(e), Server: c.Server, Mode: mode})
	if err != nil {
		return err
	}
	return e.Render(r, func(t *cli.Text) {
		state := "its server is stopped"
		if r.Running {
			state = "its server stays up, replayed to " + r.Replayed
		}
		if !r.Changed {
			t.Line("Nothing to do: %s receives nothing; %s.", r.Dir, state)
			return
		}
		t.Line("%s receives nothing any more; %s.", r.Dir, state)
	})
}
