package main

import (
	"fmt"
	"strings"
	"time"

	"tidemark/internal/cli"
	"tidemark/internal/cluster"
)

// renderReport prints what a role change did, and passes its error on.
func renderReport(e *cli.Env, r *cluster.Report, err error) error {
	if r == nil || len(r.Steps) == 0 && len(r.Checks) == 0 && err != nil {
		return err
	}
	if rerr := e.Render(r, func(t *cli.Text) { reportText(t, r, e.Verbose()) }); rerr != nil {
		return rerr
	}
	return err
}

func reportText(t *cli.Text, r *cluster.Report, verbose bool) {
	t.Line("%s", headline(r))
	t.KV(facts(r)...)
	if r.Outcome == cluster.OutcomePlanned || r.Outcome == cluster.OutcomeRefused || verbose {
		renderChecks(t, r)
	} else {
		renderWarnings(t, r)
	}
	if len(r.Candidates) > 1 {
		renderCandidates(t, r)
	}
	switch {
	case r.Outcome == cluster.OutcomePlanned:
		t.Blank()
		for i, s := range r.Steps {
			t.Line("%3d. %s", i+1, s)
		}
	case r.Outcome != cluster.OutcomeRefused && len(r.Steps) > 0:
		renderSteps(t, r)
	}
	for _, n := range r.Notes {
		t.Line("note: %s", n)
	}
	renderLost(t, r)
}

func headline(r *cluster.Report) string {
	switch r.Outcome {
	case cluster.OutcomePlanned:
		return map[string]string{"switchover": "Switchover to ", "promote": "Promotion of ", "rejoin": "Rejoin of "}[r.Operation] + r.Node + ": the plan"
	case cluster.OutcomeRefused:
		return "Nothing was changed"
	case cluster.OutcomeRolledBack:
		return r.Old + " is the primary as before"
	case cluster.OutcomeFailed:
		return map[string]string{"switchover": "The switchover to ", "promote": "The promotion of ", "rejoin": "The rejoin of "}[r.Operation] + r.Node + " failed"
	}
	if r.Operation == "rejoin" {
		return r.Node + map[cluster.Outcome]string{cluster.OutcomeNothing: " streams from the primary already", cluster.OutcomeDone: " streams from the primary",
			cluster.OutcomeIncomplete: " is on its way back"}[r.Outcome]
	}
	line := fmt.Sprintf("%s is the primary, on timeline %d", r.Node, r.Timeline)
	if r.Outcome == cluster.OutcomeNothing {
		line += "; nothing to do"
	}
	return line
}

func facts(r *cluster.Report) []any {
	var kv []any
	add := func(k, v string) { kv = append(kv, k, v) }
	if r.WriteGap != nil {
		add("write gap", cli.Duration(time.Duration(*r.WriteGap*float64(time.Second))))
	}
	if p := r.Proof; p != nil {
		add("proof", fmt.Sprintf("%s replayed to %s, the end of %s's last record (CRC %s on both)", r.Node, p.Replayed, r.Old, p.CRC))
	}
	if r.Loss != nil {
		add("lost", lossText(r.Loss))
	}
	if r.Took > 0 {
		add("took", cli.Duration(time.Duration(r.Took*float64(time.Second))))
	}
	return kv
}

// lossText says in one line what the new history lacks.
func lossText(l *cluster.Loss) string {
	switch {
	case l == nil:
		return "nothing is known to be lost"
	case !l.Known && l.Bytes > 0:
		return fmt.Sprintf("at least %s of WAL may be lost (%s)", cli.Bytes(l.Bytes), l.Why)
	case !l.Known:
		return "what is lost is not known (" + l.Why + ")"
	case l.Commits == 0 && l.Bytes == 0:
		return "nothing is lost"
	case l.Commits == 0:
		return fmt.Sprintf("no transaction is lost (%s of WAL without a commit)", cli.Bytes(l.Bytes))
	}
	return fmt.Sprintf("%s lost, %s of WAL from %s to %s", cli.Plural(l.Commits, "transaction is", "transactions are"), cli.Bytes(l.Bytes), l.From, l.To)
}

func renderChecks(t *cli.Text, r *cluster.Report) {
	if len(r.Checks) == 0 {
		return
	}
	t.Blank()
	tab := cli.NewTable("check", "node", "result", "found")
	for _, c := range r.Checks {
		tab.Row(c.Name, c.Node, c.Result, c.Detail)
	}
	t.Table(tab)
}

func renderWarnings(t *cli.Text, r *cluster.Report) {
	for _, c := range r.Checks {
		if c.Result == cluster.Warned {
			t.Line("note: %s (%s): %s", c.Name, c.Node, c.Detail)
		}
	}
}

func renderCandidates(t *cli.Text, r *cluster.Report) {
	t.Blank()
	tab := cli.NewTable("standby", ">timeline", ">position", ">behind")
	for _, c := range r.Candidates {
		tab.Row(c.Node, c.Timeline, c.LSN, cli.Bytes(c.Behind))
	}
	t.Table(tab)
}

func renderSteps(t *cli.Text, r *cluster.Report) {
	t.Blank()
	tab := cli.NewTable("step", ">took", "")
	for _, s := range r.Steps {
		switch {
		case s.Done:
			tab.Row(s.String(), cli.Duration(time.Duration(s.Took*float64(time.Second))), " ")
		case s.Error != "":
			tab.Row(s.String(), cli.Duration(time.Duration(s.Took*float64(time.Second))), "failed")
		default:
			tab.Row(s.String(), "", "not done")
		}
	}
	t.Table(tab)
}

// shownLost bounds the list of lost transactions on a screen.
const shownLost = 10

func renderLost(t *cli.Text, r *cluster.Report) {
	if r.Loss == nil || len(r.Loss.Lost) == 0 {
		return
	}
	t.Blank()
	tab := cli.NewTable(">transaction", ">commit at", "time")
	for i, l := range r.Loss.Lost {
		if i == shownLost {
			break
		}
		tab.Row(l.XID, l.LSN, strings.TrimSuffix(l.Time.UTC().Format("2006-01-02 15:04:05.000"), " ")+" UTC")
	}
	t.Table(tab)
	if n := r.Loss.Commits - shownLost; n > 0 {
		t.Line("and %s; --json lists up to %d", cli.Plural(n, "more", "more"), cluster.MaxLostShown)
	}
}
