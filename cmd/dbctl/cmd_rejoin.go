package main

import (
	"context"
	"fmt"

	"tidemark/internal/cli"
	"tidemark/internal/cluster"
	"tidemark/internal/rewind"
)

type rejoinCmd struct {
	Node string `arg:"" help:"The node that becomes a standby of the running primary."`
	cli.DryRunFlag
	timeoutFlags
	Stop   bool `help:"Stop the node when it runs as a second primary; what it alone has is taken back."`
	Reseed bool `help:"Copy the node anew from the primary; its old data directory is moved aside."`
}

// Examples are printed with --help.
func (rejoinCmd) Examples() string {
	return `dbctl rejoin alpha --dry-run                 # follow, rewind or copy anew? what would be lost?
dbctl rejoin alpha
dbctl rejoin alpha --stop                    # it came back alone and accepts writes
dbctl rejoin alpha --reseed                  # its data directory is lost`
}

// Run rejoins.
func (r *rejoinCmd) Run(ctx context.Context, e *cli.Env) error {
	o := options(e)
	r.apply(&o)
	c, err := open(e, r.Node, o)
	if err != nil {
		return err
	}
	var rewound string
	report, err := c.Rejoin(ctx, cluster.RejoinOptions{Node: r.Node, Stop: r.Stop, Reseed: r.Reseed, DryRun: r.DryRun,
		Rewind: rewinder(e, &rewound), Seed: seeder(e), Confirm: func(r *cluster.Report) error { return confirmRejoin(e, r) }})
	if err == nil && rewound != "" {
		// The server runs on the result: it can no longer be undone.
		if _, derr := rewind.Undo(ctx, rewind.UndoOptions{Target: rewound, Discard: true}); derr != nil {
			e.Note("what was kept to undo the rewind is left in %s: %v", rewound, derr)
		}
	}
	return renderReport(e, report, err)
}

func confirmRejoin(e *cli.Env, r *cluster.Report) error {
	what := "It is stopped first."
	for _, s := range r.Steps {
		switch s.Action {
		case cluster.ActionRewind:
			what = fmt.Sprintf("It is rewound: %s.", lossText(r.Loss))
		case cluster.ActionReseed:
			what = "Its data directory is moved aside and copied anew."
		}
	}
	return e.Confirm("Rejoin %s? %s", r.Node, what)
}
