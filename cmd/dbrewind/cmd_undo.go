package main

import (
	"context"

	"tidemark/internal/cli"
	"tidemark/internal/rewind"
)

type undoCmd struct {
	Target  string `name:"target-pgdata" short:"D" placeholder:"DIR" type:"path" required:"" help:"Data directory that was rewound, its server stopped."`
	Discard bool   `name:"discard" help:"Give the undo of a finished rewind up and free its space."`
}

// Examples of the verb.
func (undoCmd) Examples() string {
	return `dbrewind undo -D /srv/pg             # after a finished or an interrupted rewind, before the first start
dbrewind undo -D /srv/pg --discard   # the rewound server does well: free the space`
}

func (c *undoCmd) Run(ctx context.Context, e *cli.Env) error {
	if err := (&pairFlags{Target: c.Target}).becomeOwner(); err != nil {
		return err
	}
	res, err := rewind.Undo(ctx, rewind.UndoOptions{Target: c.Target, Discard: c.Discard, Command: undoCommand(c.Target),
		DiscardCommand: undoCommand(c.Target) + " --discard", Progress: e.Progress(), Log: e.Log()})
	if err != nil {
		return err
	}
	return e.Render(res, func(t *cli.Text) { renderUndo(t, res) })
}

// undoCommand is how the shell takes the undo of a rewind of target.
func undoCommand(target string) string { return "dbrewind undo -D " + quote(target) }

func undoText(bytes int64) string {
	if bytes == 0 {
		return ""
	}
	return cli.Bytes(bytes)
}

func renderUndo(t *cli.Text, r *rewind.UndoResult) {
	what := "interrupted"
	if r.Finished {
		what = "finished"
	}
	if r.Discarded {
		t.Line("The %s of %s can no longer be undone: what was kept for that is removed.", r.Operation, cli.Time(r.Begun))
		return
	}
	t.Line("%s is as it was before the %s of %s, which was %s.", r.Target, r.Operation, cli.Time(r.Begun), what)
	t.KV("bytes written back", cli.Bytes(r.Bytes), "files put back", cli.Count(r.Renamed), "made by it and removed", cli.Count(r.Removed),
		"took", cli.Duration(seconds(r.Seconds)))
	for _, n := range r.Notes {
		t.Line("note: %s", n)
	}
}
