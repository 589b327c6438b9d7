package main

import (
	"context"
	"os"
	"strings"

	"tidemark/internal/cli"
	"tidemark/internal/cluster"
	"tidemark/internal/replication"
	"tidemark/internal/rewind"
)

// commandLine is what an operator types to go on with unfinished work.
func commandLine() string { return "dbctl " + strings.Join(os.Args[1:], " ") }

// rewinder wires package rewind into a rejoin. It sets rewound to the data
// directory that keeps an undo.
func rewinder(e *cli.Env, rewound *string) cluster.Rewinder {
	return func(ctx context.Context, target, source cluster.Node) error {
		result, err := rewind.Run(ctx, rewind.Options{
			Target: target.DataDir, SourceConn: source.Conninfo, Bindir: target.Bindir, ConfigFile: cluster.ConfigFile(target),
			Jobs: e.Config().Jobs, Command: commandLine(), Progress: e.Progress(), Log: e.Log(),
			UndoCommand: "dbrewind undo -D " + target.DataDir,
		})
		if result != nil && err == nil && result.Diverged {
			*rewound = target.DataDir
			e.Note("%s: rewound, %s moved", target.Name, cli.Bytes(result.Bytes))
		}
		return err
	}
}

// seeder wires the copy of package replication into a rejoin.
func seeder(e *cli.Env) cluster.Seeder {
	return func(ctx context.Context, target, source cluster.Node, slot string) error {
		result, err := replication.Seed(ctx, replication.SeedOptions{
			Dir: target.DataDir, ConnInfo: source.Conninfo, Slot: slot, Jobs: e.Config().Jobs,
			Command: commandLine(), Progress: e.Progress(), Log: e.Log(),
		})
		if err == nil {
			e.Note("%s: copied anew, %s", target.Name, cli.Bytes(result.Copied))
		}
		return err
	}
}
