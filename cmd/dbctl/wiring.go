package main

import (
	"tidemark/internal/cli"
	"tidemark/internal/cluster"
)

// rewinder wires the rewind of package rewind into a rejoin.
func rewinder(e *cli.Env) cluster.Rewinder { return nil }

// seeder wires the copy of package replication into a rejoin.
func seeder(e *cli.Env) cluster.Seeder { return nil }
