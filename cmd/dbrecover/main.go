// Command dbrecover restores backups and recovers them to a point in time.
package main

import (
	"os"

	"tidemark/internal/cli"
)

type commands struct {
	Restore restoreCmd `cmd:"" help:"Restore a backup into a directory, ready to be recovered to a target."`
	Run     runCmd     `cmd:"" help:"Restore, replay WAL up to the target, and prove that it stopped there."`
	Fetch   fetchCmd   `cmd:"" help:"Bring one WAL file from the repository: the server's restore_command."`
}

// Examples are printed with --help.
func (commands) Examples() string {
	return `dbrecover run --repo /srv/backup -D /srv/pg --to-time '2026-11-21 22:50:01+00'
dbrecover restore --repo /srv/backup -D /srv/pg   # ready to be started
restore_command = 'dbrecover fetch --repo /srv/backup %f %p'`
}

const description = "Restore and forward recovery of PostgreSQL clusters."

func main() {
	if isFetch(os.Args[1:]) {
		os.Exit(fetchMain())
	}
	os.Exit(cli.Main("dbrecover", description, &commands{}))
}
