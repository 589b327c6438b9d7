package main

import (
	"context"
	"path/filepath"
	"strings"

	"tidemark/internal/cli"
	"tidemark/internal/exit"
	"tidemark/internal/rewind"
)

type rescueCmd struct {
	pairFlags
	Out string `name:"out" placeholder:"DIR" type:"path" required:"" help:"Directory for the rows; it is made, and must be empty."`
}

// Examples of the verb.
func (rescueCmd) Examples() string {
	return `dbrewind rescue -D /srv/pg --source-server 'host=db2 user=postgres' --out /srv/lost
psql -X -h db2 -U postgres -f /srv/lost/load.sql        # into tables of the schema tidemark_rescue
jq '.not_saved[]' /srv/lost/rescue.json                 # what could not be saved`
}

func (c *rescueCmd) Run(ctx context.Context, e *cli.Env) error {
	if err := c.becomeOwner(); err != nil {
		return err
	}
	res, err := rewind.Rescue(ctx, c.options(e), c.Out)
	if err != nil {
		return err
	}
	if err := e.Render(res, func(t *cli.Text) { renderRescue(t, res) }); err != nil {
		return err
	}
	if len(res.NotSaved) > 0 {
		return exit.New(exit.Problem, "rescue.json has the list too; a rewind loses it for good, 'dbrewind undo' after one brings the whole target back",
			"not everything could be saved")
	}
	return nil
}

func renderRescue(t *cli.Text, r *rewind.RescueResult) {
	if !r.Diverged {
		t.Line("Nothing to rescue: %s.", r.Reason)
		return
	}
	t.Line("Saved %s of %s in %s.", cli.Plural(r.Rows, "row", "rows"), cli.Plural(r.Transactions, "lost transaction", "lost transactions"), r.Dir)
	if len(r.Tables) > 0 {
		tab := cli.NewTable("table", "what", ">rows", "file")
		for _, x := range r.Tables {
			for _, f := range x.Files {
				what := f.Change
				if what == "deleted" && len(x.Key) > 0 {
					what += " (" + strings.Join(x.Key, ", ") + ")"
				}
				tab.Row(x.Database+"."+x.Schema+"."+x.Name, what, cli.Count(f.Rows), f.Path)
			}
		}
		t.Table(tab)
	}
	if len(r.Sequences) > 0 {
		tab := cli.NewTable("sequence", ">last value")
		for _, s := range r.Sequences {
			tab.Row(s.Database+"."+s.Schema+"."+s.Name, cli.Count(s.Last))
		}
		t.Table(tab)
	}
	if len(r.NotSaved) > 0 {
		t.Blank()
		t.Line("Not saved:")
		tab := cli.NewTable("what", "why", ">rows")
		for _, n := range r.NotSaved {
			rows := ""
			if n.Rows > 0 {
				rows = cli.Count(n.Rows)
			}
			tab.Row(n.Relation, n.Reason, rows)
		}
		t.Table(tab)
	}
	t.Blank()
	t.KV("load them with", "psql -X -f "+quote(filepath.Join(r.Dir, "load.sql")), "copied to read them", cli.Bytes(r.CopiedBytes),
		"took", cli.Duration(seconds(r.Seconds)))
	for _, w := range r.Warnings {
		t.Line("warning: %s", w)
	}
}
