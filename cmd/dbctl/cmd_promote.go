package main

import (
	"context"

	"tidemark/internal/cli"
	"tidemark/internal/cluster"
)

type promoteCmd struct {
	Node string `arg:"" help:"The standby that becomes the primary."`
	cli.DryRunFlag
	timeoutFlags
	ForceBehind    bool `help:"Promote it although another standby has more; the difference is lost."`
	DespitePrimary bool `help:"Promote it although the primary runs or may run; what the old one still commits is lost when it rejoins."`
}

// Examples are printed with --help.
func (promoteCmd) Examples() string {
	return `dbctl promote charlie --dry-run              # who has most, what would be lost, the steps
dbctl promote charlie
dbctl promote charlie --yes --json           # from a script
dbctl rejoin alpha                           # afterwards, for the old primary`
}

// Run promotes.
func (p *promoteCmd) Run(ctx context.Context, e *cli.Env) error {
	o := options(e)
	p.apply(&o)
	c, err := open(e, p.Node, o)
	if err != nil {
		return err
	}
	report, err := c.Promote(ctx, cluster.PromoteOptions{Node: p.Node, ForceBehind: p.ForceBehind, DespitePrimary: p.DespitePrimary,
		DryRun: p.DryRun, Confirm: func(r *cluster.Report) error { return confirmPromote(e, r) }})
	return renderReport(e, report, err)
}

// confirmPromote asks with the number that matters in the question.
func confirmPromote(e *cli.Env, r *cluster.Report) error {
	return e.Confirm("Promote %s? %s.", r.Node, lossText(r.Loss))
}
