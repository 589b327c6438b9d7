package main

import (
	"context"

	"tidemark/internal/cli"
	"tidemark/internal/replication"
)

type startCmd struct {
	localFlags
	LogFile string `name:"log-file" placeholder:"FILE" type:"path" help:"Receives the output of a server that is started; default log/startup.log in the data directory."`
}

func (startCmd) Examples() string {
	return `dbrepl start -D /srv/standby                  # server and receiving
dbrepl start -D /etc-style/data --config-file /etc/postgresql/15/main/postgresql.conf`
}

func (c *startCmd) Run(ctx context.Context, e *cli.Env) error {
	if err := c.dataDir(); err != nil {
		return err
	}
	o := c.options(e)
	o.LogFile = c.LogFile
	st, err := replication.Start(ctx, o)
	if st == nil {
		return err
	}
	if rerr := e.Render(st, func(t *cli.Text) {
		if err == nil {
			t.Line("%s receives from its primary.", c.PGData)
		}
		renderStatus(t, st)
	}); rerr != nil {
		return rerr
	}
	return err
}
