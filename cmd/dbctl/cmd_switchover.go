package main

import (
	"context"

	"tidemark/internal/cli"
	"tidemark/internal/cluster"
)

type switchoverCmd struct {
	To string `required:"" placeholder:"NODE" help:"The standby that becomes the primary."`
	cli.DryRunFlag
	timeoutFlags
	MaxLag     int64 `placeholder:"BYTES" help:"Refuse when the standby is further behind; default 16 MiB, -1 for no limit."`
	MaxBacklog int   `placeholder:"N" help:"Refuse when more WAL segments wait for the archive; default 16, -1 for no limit."`
}

// Examples are printed with --help.
func (switchoverCmd) Examples() string {
	return `dbctl switchover --to bravo --dry-run        # the checks and the steps, nothing is changed
dbctl switchover --to bravo
dbctl switchover --to bravo                  # cut off? run it again: it goes on from where things are
dbctl switchover --to bravo --json | jq .write_gap_seconds`
}

// Run switches over.
func (s *switchoverCmd) Run(ctx context.Context, e *cli.Env) error {
	o := options(e)
	s.apply(&o)
	o.MaxLag, o.MaxBacklog = s.MaxLag, s.MaxBacklog
	c, err := open(e, s.To, o)
	if err != nil {
		return err
	}
	report, err := c.Switchover(ctx, cluster.SwitchoverOptions{To: s.To, DryRun: s.DryRun})
	return renderReport(e, report, err)
}
