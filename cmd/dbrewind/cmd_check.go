package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/cli"
	"tidemark/internal/exit"
	"tidemark/internal/rewind"
	"tidemark/pkg/timeline"
)

type checkCmd struct {
	pairFlags
	compareFlag
}

// Examples of the verb.
func (checkCmd) Examples() string {
	return `dbrewind check -D /srv/pg --source-server 'host=db2 user=postgres'
dbrewind check -D /srv/pg --source-pgdata /srv/pg-new --json | jq '.lost_transactions[].xid'`
}

func (c *checkCmd) Run(ctx context.Context, e *cli.Env) error {
	if err := c.becomeOwner(); err != nil {
		return err
	}
	o := c.options(e)
	o.Compare = c.Compare
	rep, err := rewind.Check(ctx, o)
	if err != nil {
		return err
	}
	if err := e.Render(rep, func(t *cli.Text) { renderReport(t, rep) }); err != nil {
		return err
	}
	if rep.Pending != "" {
		return exit.New(exit.Problem, "run the same rewind again", "the target holds an unfinished rewind")
	}
	if c := rep.Compared; c != nil && !rep.Diverged && rep.Plan.Bytes > 0 {
		return exit.New(exit.Problem, "dbrewind run --compare makes the target a copy of the source",
			"target and source differ in %s of %s", cli.Bytes(c.DifferingBytes), cli.Bytes(c.Bytes))
	}
	if rep.Diverged {
		return exit.New(exit.Problem, "dbrewind run brings the target back; what is listed above is lost then",
			"the target diverged from the source at %s", forkText(&rep.Divergence))
	}
	return nil
}

func forkText(d *rewind.Divergence) string {
	if d.Fork == nil {
		return "" // not known, where sides were only compared
	}
	return fmt.Sprintf("%s on timeline %d", d.Fork.LSN, d.Fork.Timeline)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func renderReport(t *cli.Text, r *rewind.Report) {
	switch {
	case r.Diverged:
		t.Line("Diverged: %s.", r.Reason)
	case r.Compared != nil:
		t.Line("Compared: %s.", r.Reason)
	default:
		t.Line("No divergence: %s.", r.Reason)
	}
	tab := cli.NewTable("", "where", "state", "timeline", "WAL ends at", "history")
	for _, s := range []struct {
		what string
		side rewind.Side
	}{{"target", r.Target}, {"source", r.Source}} {
		tab.Row(s.what, s.side.Name, s.side.State, s.side.Timeline.String(), s.side.End.String(), historyText(s.side.Spans))
	}
	t.Table(tab)
	switch {
	case r.Compared != nil:
		renderComparison(t, r)
	case r.Diverged:
		renderDivergence(t, r)
	}
	for _, w := range r.Warnings {
		t.Line("warning: %s", w)
	}
}

// historyText draws a history: "1 -> 0/3000148 -> 2".
func historyText(spans []timeline.Span) string {
	var parts []string
	for _, s := range spans {
		parts = append(parts, s.Timeline.String())
		if s.End != 0 {
			parts = append(parts, s.End.String())
		}
	}
	return strings.Join(parts, " → ")
}

// renderComparison is for a check that compared: of the target's WAL nothing is known.
func renderComparison(t *cli.Text, r *rewind.Report) {
	pairs := append([]any{"fork", forkText(&r.Divergence)}, comparedText(r.Compared)...)
	pairs = append(pairs, "replay would begin at", r.Start.Redo.String())
	t.KV(append(append(pairs, totals(r.Plan, r.Plan.Bytes+r.LateBytes)...), estimated(r.Estimate)...)...)
	t.Blank()
	t.Line("Which transactions a rewind loses only the target's WAL could tell: leave --compare out to see.")
}

// comparedText are a comparison's sums as keys and values; none without one.
func comparedText(c *rewind.Comparison) []any {
	if c == nil {
		return nil
	}
	return []any{"compared", fmt.Sprintf("%s in %s", cli.Bytes(c.Bytes), cli.Plural(c.Files, "file", "files")),
		"of that differ", fmt.Sprintf("%s in %s", cli.Bytes(c.DifferingBytes), cli.Plural(c.DifferingFiles, "file", "files")),
		"hashes moved", cli.Bytes(c.DigestBytes)}
}

func renderDivergence(t *cli.Text, r *rewind.Report) {
	missing := "all there"
	if len(r.Missing) > 0 {
		missing = "missing: " + strings.Join(r.Missing, ", ")
	}
	common := "" // an interrupted comparison did without
	if r.Checkpoint != nil {
		common = r.Checkpoint.LSN.String()
	}
	pairs := []any{"fork", forkText(&r.Divergence), "last common checkpoint", common,
		"replay would begin at", r.Start.Redo.String(), "WAL for the replay", missing}
	if r.WAL != nil {
		pairs = append(pairs[:len(pairs)-2], "WAL of the target to read", walText(r.WAL.Target), "WAL for the replay", walText(r.WAL.Replay))
	}
	if r.Pending == "" {
		pairs = append(pairs, "changed blocks", cli.Count(r.Blocks))
	}
	if r.Plan != nil {
		pairs = append(append(pairs, totals(r.Plan, r.Plan.Bytes+r.LateBytes)...), estimated(r.Estimate)...)
	}
	t.KV(pairs...)
	if r.Pending == "" {
		renderLost(t, r)
	}
}

// estimated says how long a rewind may take.
func estimated(e *rewind.Estimate) []any {
	if e == nil {
		return nil
	}
	return []any{"may take", fmt.Sprintf("%s, at %s a second", cli.Duration(seconds(e.Seconds)), cli.Bytes(e.Rate))}
}

// totals are a plan's sums as keys and values.
func totals(p *blockcopy.Totals, bytes int64) []any {
	return []any{"would travel", fmt.Sprintf("%s of %s", cli.Bytes(bytes), cli.Bytes(p.SourceBytes)),
		"blocks", fmt.Sprintf("%s in %s", cli.Bytes(p.PatchedBytes), cli.Plural(p.Patched, "file", "files")),
		"whole files", fmt.Sprintf("%s in %s", cli.Bytes(p.CopiedBytes), cli.Plural(p.Copied, "file", "files")),
		"files to remove", cli.Count(p.Removed), "files left alone", cli.Count(p.Unchanged)}
}
