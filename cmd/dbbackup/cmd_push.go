package main

import (
	"context"

	"tidemark/internal/backup"
	"tidemark/internal/cli"
	"tidemark/internal/exit"
)

type pushCmd struct {
	cli.RepoFlag
	PGData string `name:"pgdata" short:"D" placeholder:"DIR" type:"path" help:"Data directory; the current one by default, as the server runs it."`
	File   string `arg:"" name:"file" help:"The WAL file: %p of archive_command."`
}

// Run archives the file.
func (c *pushCmd) Run(ctx context.Context, e *cli.Env) error {
	if err := needRepo(c.Repo); err != nil {
		return err
	}
	if err := becomeRepoOwner(c.Repo); err != nil {
		return err
	}
	res, err := backup.Push(ctx, c.Repo, c.PGData, c.File)
	if err != nil {
		return err
	}
	if !e.JSON() && !e.Verbose() {
		return nil // the server's log needs no line for each segment
	}
	return e.Render(res, func(t *cli.Text) {
		if res.Existed {
			t.Line("%s is in the archive already, with the same content.", res.File)
			return
		}
		t.Line("%s archived: %s for %s.", res.File, cli.Bytes(res.StoredBytes), cli.Bytes(res.SizeBytes))
	})
}

// Status keeps every failure at or below 125: above, the server takes the
// archive command for killed and its archiver process ends as well.
func (pushCmd) Status(code exit.Code) int {
	if code > 125 {
		return int(exit.Failed)
	}
	return int(code)
}

// Examples are printed with --help.
func (pushCmd) Examples() string {
	return `archive_command = 'dbbackup push --repo /srv/backup %p'
cd $PGDATA && dbbackup push --repo /srv/backup -v pg_wal/000000010000000000000003`
}
