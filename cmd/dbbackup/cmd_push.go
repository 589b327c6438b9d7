package main

import (
	"context"
	"errors"

	"tidemark/internal/backup"
	"tidemark/internal/cli"
	"tidemark/internal/exit"
)

type pushCmd struct {
	cli.ReposFlag
	PGData string `name:"pgdata" short:"D" placeholder:"DIR" type:"path" help:"Data directory; the current one by default, as the server runs it."`
	Ahead  *int   `placeholder:"N" help:"Archive up to N of the segments that wait behind it along with it, in parallel; 31 by default, 0: none."`
	File   string `arg:"" name:"file" help:"The WAL file: %p of archive_command."`
}

// Run archives the file.
func (c *pushCmd) Run(ctx context.Context, e *cli.Env) error {
	if err := needRepos(c.Repos); err != nil {
		return err
	}
	if err := becomeOwner(c.Repos); err != nil {
		return err
	}
	ahead := backup.DefaultAhead
	if c.Ahead != nil {
		ahead = *c.Ahead
	}
	results, err := inEach(c.Repos, func(location string) (*backup.PushResult, error) {
		return backup.Push(ctx, backup.PushOptions{Repository: location, DataDir: c.PGData, File: c.File, Ahead: ahead, Log: e.Log()})
	})
	if len(results) == 0 || !e.JSON() && !e.Verbose() {
		return err // the server's log needs no line for each segment
	}
	doc := *results[0]
	for _, r := range results[1:] {
		doc.Others = append(doc.Others, backup.PushCopy{Existed: r.Existed, StoredBytes: r.StoredBytes, Repository: r.Repository})
	}
	return errors.Join(e.Render(&doc, func(t *cli.Text) {
		for _, r := range results {
			renderPushed(t, r, len(c.Repos) > 1)
		}
	}), err)
}

func renderPushed(t *cli.Text, r *backup.PushResult, several bool) {
	where := "the archive"
	if several {
		where = r.Repository
	}
	switch {
	case r.Existed:
		t.Line("%s is in %s already, with the same content.", r.File, where)
	case several:
		t.Line("%s archived in %s: %s for %s.", r.File, where, cli.Bytes(r.StoredBytes), cli.Bytes(r.SizeBytes))
	default:
		t.Line("%s archived: %s for %s.", r.File, cli.Bytes(r.StoredBytes), cli.Bytes(r.SizeBytes))
	}
	if r.Ahead > 0 {
		t.Line("%s that waited behind it archived as well.", cli.Plural(r.Ahead, "segment", "segments"))
	}
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
archive_command = 'dbbackup push --repo /srv/backup --repo "s3://backup/pg?region=eu-central-1" %p'   # durable in both
cd $PGDATA && dbbackup push --repo /srv/backup -v pg_wal/000000010000000000000003`
}
