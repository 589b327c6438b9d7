// Command dbctl shows a PostgreSQL cluster's nodes and changes their roles.
package main

import (
	"os"

	"tidemark/internal/cli"
)

type commands struct {
	Status     statusCmd     `cmd:"" help:"Show every node: role, timeline, position, lag, slots, and what is wrong."`
	Switchover switchoverCmd `cmd:"" help:"Move the primary's role to a standby, as planned; nothing acknowledged is lost."`
	Promote    promoteCmd    `cmd:"" help:"Make a standby the primary after the primary was lost."`
	Rejoin     rejoinCmd     `cmd:"" help:"Bring an old primary or a lost standby back as a standby."`
	Lab        labCmd        `cmd:"" help:"A scratch cluster on this machine to rehearse on."`
}

// Examples are printed with --help.
func (commands) Examples() string {
	return `dbctl lab up /tmp/lab                        # a scratch cluster to try things on
dbctl status
dbctl switchover --to bravo --dry-run
dbctl switchover --to bravo
dbctl promote charlie                        # the primary is lost
dbctl rejoin alpha                           # the old primary comes back`
}

func main() {
	os.Exit(cli.Main("dbctl", "The nodes of a PostgreSQL cluster and their roles. The nodes are named in tidemark.toml.", &commands{}))
}
