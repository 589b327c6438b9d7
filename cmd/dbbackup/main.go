// Command dbbackup takes online backups of PostgreSQL and archives its WAL.
package main

import (
	"os"

	"tidemark/internal/cli"
)

type commands struct {
	Init   initCmd   `cmd:"" help:"Make a repository, once."`
	Create createCmd `cmd:"" help:"Take an online backup, into the repository or a plain directory."`
	Push   pushCmd   `cmd:"" help:"Archive one WAL file: the server's archive_command."`
	List   listCmd   `cmd:"" help:"List the backups of a repository."`
	Log    logCmd    `cmd:"" help:"Show the WAL in the repository by timeline, its gaps, and what they cost."`
	Show   showCmd   `cmd:"" help:"Say what one backup is, and what it needs."`
	Verify verifyCmd `cmd:"" help:"Check that the repository holds what it should."`
	Expire expireCmd `cmd:"" help:"Remove the backups and the WAL that no rule keeps."`
	Pin    pinCmd    `cmd:"" help:"Keep a backup from being expired."`
	Unpin  unpinCmd  `cmd:"" help:"Let a backup be expired again."`
	Delete deleteCmd `cmd:"" help:"Remove backups now, in any order."`
	Copy   copyCmd   `cmd:"" help:"Copy backups into another repository, encrypted as that one is."`
	Key    keyCmd    `cmd:"" help:"Say who can read an encrypted repository."`
}

// Examples are printed with --help.
func (commands) Examples() string {
	return `dbbackup init --repo /srv/backup             # once
archive_command = 'dbbackup push --repo /srv/backup %p'
dbbackup create --repo /srv/backup           # full at first, then incremental
dbbackup list --repo /srv/backup`
}

func main() {
	os.Exit(cli.Main("dbbackup", "Online backup of PostgreSQL.", &commands{}))
}
