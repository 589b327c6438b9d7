package main

import (
	"context"
	"fmt"
	"time"

	"tidemark/internal/cli"
	"tidemark/internal/rewind"
)

type verifyCmd struct {
	Target       string        `name:"target-pgdata" short:"D" placeholder:"DIR" type:"path" required:"" help:"Data directory of the standby, its server running."`
	SourceServer string        `name:"source-server" placeholder:"CONNINFO" required:"" help:"The server that it shall be a copy of. The role needs what a rewind's needs, and CHECKPOINT."`
	Timeout      time.Duration `name:"timeout" placeholder:"DURATION" help:"How long the standby may take to replay what the source has; default 10m."`
	cli.JobsFlag
}

// Examples of the verb.
func (verifyCmd) Examples() string {
	return `dbrewind verify -D /srv/pg --source-server 'host=db2 user=postgres'
dbrewind verify -D /srv/pg --source-server 'host=db2 user=postgres' --json | jq '.differences[]'`
}

func (c *verifyCmd) Run(ctx context.Context, e *cli.Env) error {
	if err := (&pairFlags{Target: c.Target}).becomeOwner(); err != nil {
		return err
	}
	v, err := rewind.Verify(ctx, rewind.VerifyOptions{Target: c.Target, SourceConn: c.SourceServer, Jobs: c.Jobs, Timeout: c.Timeout,
		Progress: e.Progress(), Log: e.Log()})
	if err != nil {
		return err
	}
	if err := e.Render(v, func(t *cli.Text) { renderVerification(t, v) }); err != nil {
		return err
	}
	return v.Err()
}

// shownDifferences is how many blocks are listed for people.
const shownDifferences = 20

func renderVerification(t *cli.Text, v *rewind.Verification) {
	verdict := "every block is the source's"
	if n := len(v.Differences); n > 0 {
		verdict = cli.Plural(n, "block is", "blocks are") + " wrong"
	}
	t.Line("Verified with %s: %s.", v.Source, verdict)
	unsettled := ""
	if v.Unsettled > 0 {
		unsettled = fmt.Sprintf("%s: the source changed them all the time", cli.Plural(v.Unsettled, "block", "blocks"))
	}
	t.KV("up to", v.CommonLSN.String(), "compared", fmt.Sprintf("%s in %s", cli.Bytes(v.Bytes), cli.Plural(v.Files, "file", "files")),
		"looked at closely", cli.Plural(v.Reread, "block", "blocks"), "not comparable", unsettled, "took", cli.Duration(seconds(v.Seconds)))
	for _, d := range v.Differences[:min(len(v.Differences), shownDifferences)] {
		t.Line("  %s", d)
	}
	if more := len(v.Differences) - shownDifferences; more > 0 {
		t.Line("  and %s; --json lists them all.", cli.Plural(more, "more", "more"))
	}
	for _, name := range v.Orphans {
		t.Line("note: %s belongs to no relation, and is on one side only", name)
	}
}
