// Ledger is the client of the failover playbook: it writes numbered rows, one
// transaction each, and remembers in a file of its own which of them the
// server acknowledged. Afterwards it tells which acknowledged rows a server
// no longer has, and how long writing stood still.
package main

import (
	"os"

	"tidemark/internal/cli"
)

type commands struct {
	Write  writeCmd  `cmd:"" help:"Write numbered rows until a signal comes."`
	Verify verifyCmd `cmd:"" help:"Compare the acknowledged rows with what a server has."`
}

func main() {
	os.Exit(cli.Main("ledger", "Numbered rows, and a memory of what was acknowledged.", &commands{}))
}
