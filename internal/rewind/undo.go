package rewind

import (
	"context"
	"log/slog"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/pkg/volume"
)

// setUpByHand are the files that an operator edits between a rewind and the
// first start; an undo restores them too.
var setUpByHand = []string{"standby.signal", "recovery.signal", "postgresql.auto.conf", "postgresql.conf", "pg_hba.conf", "pg_ident.conf"}

// UndoOptions say whose rewind to undo. Target is needed.
type UndoOptions struct {
	Target         string // data directory, its server stopped
	Discard        bool   // give the undo up and free its space instead
	Command        string // the command line to run again, for the tombstone and for messages
	DiscardCommand string // the command line that gives the undo up, for messages

	Progress progress.Reporter
	Log      *slog.Logger
}

// UndoResult is what Undo did.
type UndoResult struct {
	blockcopy.UndoResult
	Target    string  `json:"target"`    // data directory
	Discarded bool    `json:"discarded"` // what the undo needed is removed, nothing is undone
	Seconds   float64 `json:"elapsed_seconds"`
}

// Undo brings the target of a finished or interrupted rewind back to what it
// was before, byte for byte. It refuses once a server has been started on the
// result. An error with exit.Partial leaves a target that refuses to start and
// that the same call goes on with.
func Undo(ctx context.Context, o UndoOptions) (*UndoResult, error) {
	start := time.Now()
	if o.Target == "" {
		return nil, exit.New(exit.Usage, "name it with -D (--target-pgdata)", "no target data directory given")
	}
	res := &UndoResult{Target: o.Target}
	if o.Discard {
		kept, err := blockcopy.Undoable(volume.OS, o.Target)
		if err == nil && kept == nil {
			err = exit.New(exit.Refused, "", "%s keeps nothing for an undo of a finished run", o.Target)
		}
		if err != nil {
			return nil, err
		}
		res.Operation, res.Begun, res.Finished, res.Discarded = kept.Operation, kept.Begun, true, true
		return res, blockcopy.GiveUp(volume.OS, o.Target)
	}
	running, err := postgres.IsRunning(o.Target)
	if err != nil {
		return nil, err
	}
	if running {
		return nil, exit.New(exit.Refused, "a rewind can be undone only before the first start on its result", "a server is running on the target %s", o.Target)
	}
	res.UndoResult, err = blockcopy.Undo(ctx, blockcopy.UndoOptions{Target: o.Target, Command: o.Command, Discard: o.DiscardCommand,
		Progress: o.Progress, Log: o.Log})
	if err != nil {
		return nil, err
	}
	res.Seconds = time.Since(start).Seconds()
	return res, nil
}
