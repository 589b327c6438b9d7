// Dbrepl makes standbys and looks after their stream of WAL.
package main

import (
	"os"

	"tidemark/internal/cli"
)

const description = "Seed standbys of PostgreSQL, start and stop their replication, see where they are."

type commands struct {
	Seed   seedCmd   `cmd:"" help:"Copy a running server into a new standby; run again, it resumes."`
	Start  startCmd  `cmd:"" help:"Start the standby, turn receiving on, prove that it streams."`
	Stop   stopCmd   `cmd:"" help:"Stop receiving; the server stays readable."`
	Status statusCmd `cmd:"" help:"Role, positions, lag, and where WAL comes from."`
	Sync   syncCmd   `cmd:"" help:"Reach the primary's position of now, then exit (also -S)."`
}

// Examples are printed with --help.
func (commands) Examples() string {
	return `dbrepl seed -D /srv/standby -d 'host=db1 user=replicator'   # while db1 works on
dbrepl start -D /srv/standby                                # server and receiving, proved
dbrepl status -D /srv/standby
dbrepl sync -D /srv/standby --timeout 10s                   # exit 0: has all that db1 had`
}

func main() {
	os.Args = spelled(os.Args)
	os.Exit(cli.Main("dbrepl", description, &commands{}))
}

// spelled turns the older spelling of sync, -S, into the verb.
func spelled(args []string) []string {
	if len(args) > 1 && args[1] == "-S" {
		args = append([]string{args[0], "sync"}, args[2:]...)
	}
	return args
}
