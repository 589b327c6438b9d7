package main

import (
	"context"

	"tidemark/internal/cli"
	"tidemark/internal/rewind"
)

// dropInCmd is the command without a verb.
type dropInCmd struct{ rewindFlags }

func (c *dropInCmd) Run(ctx context.Context, e *cli.Env) error { return c.run(ctx, e) }

type runCmd struct{ rewindFlags }

func (c *runCmd) Run(ctx context.Context, e *cli.Env) error { return c.run(ctx, e) }

// Examples of the verb.
func (runCmd) Examples() string {
	return `dbrewind run -D /srv/pg --source-server 'host=db2 user=postgres' --dry-run   # the plan
dbrewind run -D /srv/pg --source-server 'host=db2 user=postgres' -R          # then follow db2
dbrewind run -D /srv/pg --source-pgdata /srv/pg-new                          # source is stopped
dbrewind run -D /srv/pg --source-server 'host=db2 user=postgres' -R --compare   # the WAL is gone: by hashes
dbrewind run -D /srv/pg --source-server 'host=db2 user=postgres' -R --start --verify   # up to the proof
dbrewind run -D /srv/pg --source-repo /srv/backup                            # no server is up: backup and WAL archive
dbrewind run -D /srv/pg --source-server 'host=db2' -c --repo /srv/backup     # WAL is missing: ask the archives`
}

// shownActions is how much of a plan is printed for people.
const shownActions = 20

func renderResult(t *cli.Text, r *rewind.Result, err error) {
	switch {
	case err != nil && r.Started == nil:
		return // the error says it
	case !r.Diverged && r.Compared == nil:
		t.Line("No rewind required: %s.", r.Reason)
	case r.DryRun:
		renderPlan(t, r)
	default:
		t.Line("Rewound to %s.", r.Source.Name)
		before := ""
		if r.Resumed {
			before = cli.Bytes(r.Skipped)
		}
		pairs := append([]any{"fork", forkText(&r.Divergence)}, comparedText(r.Compared)...)
		t.KV(append(pairs, "replay begins at", r.Start.Redo.String(), "bytes moved", cli.Bytes(r.Bytes),
			"durable from before", before, "size of the source", cli.Bytes(r.Totals.SourceBytes),
			"kept for an undo", undoText(r.Undo), "took", cli.Duration(seconds(r.Seconds)))...)
	}
	if r.Started != nil {
		renderStarted(t, r)
	} else if r.Standby {
		t.Line("The target is set up as a standby: start it.")
	}
	for _, w := range r.Warnings {
		t.Line("warning: %s", w)
	}
}

// renderStarted is the proof that the target follows; of one that does not the
// error says why.
func renderStarted(t *cli.Text, r *rewind.Result) {
	s := r.Started
	if s.Replayed >= s.SourceLSN && s.State == "streaming" {
		t.Line("It follows: %s from %s on timeline %d, replayed up to %s (the source was at %s on timeline %d), after %s.",
			s.State, s.Sender, s.Timeline, s.Replayed, s.SourceLSN, s.SourceTLI, cli.Duration(seconds(s.Seconds)))
	}
	if r.Verified != nil {
		renderVerification(t, r.Verified)
	}
}

func renderPlan(t *cli.Text, r *rewind.Result) {
	t.Line("Dry run: nothing is changed.")
	pairs := append([]any{"fork", forkText(&r.Divergence)}, comparedText(r.Compared)...)
	pairs = append(pairs, "replay would begin at", r.Start.Redo.String())
	t.KV(append(append(pairs, totals(r.Totals, r.Bytes)...), estimated(r.Estimate)...)...)
	tab := cli.NewTable("action", "path", ">bytes", "why")
	for _, a := range r.Plan.Actions[:min(len(r.Plan.Actions), shownActions)] {
		tab.Row(a.Kind.String(), a.Path, cli.Bytes(a.Bytes()), a.Reason)
	}
	t.Table(tab)
	if more := len(r.Plan.Actions) - shownActions; more > 0 {
		t.Line("and %s; --json prints them all.", cli.Plural(more, "more action", "more actions"))
	}
}
