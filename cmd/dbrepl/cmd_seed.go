package main

import (
	"context"
	"strings"

	"tidemark/internal/cli"
	"tidemark/internal/exit"
	"tidemark/internal/replication"
)

type seedCmd struct {
	cli.DataDirFlag
	cli.DSNFlag
	Slot       string   `name:"slot" placeholder:"NAME" help:"Replication slot at the source; by default named after the directory."`
	Tablespace []string `name:"tablespace" placeholder:"OLD=NEW" sep:"none" help:"Where a tablespace's directory OLD goes; may be repeated."`
	Start      bool     `name:"start" help:"Start the standby afterwards and prove that it streams."`
	cli.BindirFlag
	cli.JobsFlag
	cli.DryRunFlag
	cli.OwnerFlag
}

func (seedCmd) Examples() string {
	return `dbrepl seed -D /srv/standby -d 'host=db1 user=replicator'              # run again, it resumes
dbrepl seed -D /srv/standby -d 'host=db1 user=replicator' --start      # and let it stream
dbrepl seed -D /srv/standby -d 'host=db1' --tablespace /ssd/a=/ssd/b   # another place for /ssd/a
dbrepl seed -D /srv/standby -d 'host=db1' --dry-run                    # what would be copied`
}

// seedDocument is the verb's JSON document.
type seedDocument struct {
	replication.SeedResult
	// Standby is the status after --start.
	Standby *replication.Status `json:"standby,omitempty"`
}

func (c *seedCmd) Run(ctx context.Context, e *cli.Env) error {
	if c.PGData == "" {
		return exit.New(exit.Usage, "name it with -D DIR, or in PGDATA", "no data directory is given")
	}
	spaces, err := tablespaces(c.Tablespace)
	if err != nil {
		return err
	}
	if err := cli.BecomeOwner(c.PGData, c.Owner); err != nil {
		return err
	}
	result, err := replication.Seed(ctx, replication.SeedOptions{Dir: c.PGData, ConnInfo: c.DSN, Slot: c.Slot, Jobs: c.Jobs,
		Tablespaces: spaces, DryRun: c.DryRun, Command: thisCommand(), Progress: e.Progress(), Log: e.Log()})
	if err != nil {
		return err
	}
	doc := seedDocument{SeedResult: result}
	if c.Start && !c.DryRun {
		doc.Standby, err = replication.Start(ctx, replication.StandbyOptions{Dir: c.PGData, Bindir: c.Bindir, Progress: e.Progress(), Log: e.Log()})
	}
	if rerr := e.Render(doc, func(t *cli.Text) { renderSeed(t, &doc) }); rerr != nil {
		return rerr
	}
	return err
}

// tablespaces reads OLD=NEW; an equals sign in a path has a backslash before it.
func tablespaces(pairs []string) (map[string]string, error) {
	out := map[string]string{}
	for _, pair := range pairs {
		from, to, ok := strings.Cut(strings.ReplaceAll(pair, `\=`, "\x00"), "=")
		if !ok || from == "" || to == "" {
			return nil, exit.New(exit.Usage, "write --tablespace /srv/fast=/data/fast", "--tablespace %s: not of the form OLD=NEW", pair)
		}
		out[strings.ReplaceAll(from, "\x00", "=")] = strings.ReplaceAll(to, "\x00", "=")
	}
	return out, nil
}

func renderSeed(t *cli.Text, d *seedDocument) {
	if d.DryRun {
		t.Line("Dry run: nothing is changed. The seed would:")
		t.KV("copy", cli.Bytes(d.TotalBytes)+" in "+cli.Plural(d.Files, "file", "files"), "from", d.Source, "into", d.Dir,
			"hold WAL with the slot", d.Slot, "begin at the latest at", d.Start.String())
		for _, a := range d.Plan.Actions {
			if a.LinkTarget != "" {
				t.KV("tablespace "+strings.TrimPrefix(a.Path, "pg_tblspc/"), a.LinkTarget)
			}
		}
		return
	}
	t.Line("%s is a standby of %s.", d.Dir, d.Source)
	took := seconds(d.Elapsed)
	copied := cli.Bytes(d.Copied)
	if d.Copied > 0 {
		copied += " in " + cli.Duration(took) + ", " + cli.Rate(d.Copied, took)
	}
	kept, restarts := "", ""
	if d.Resumed {
		kept = cli.Bytes(d.Kept) + " were there already"
	}
	if d.Restarts > 0 {
		restarts = cli.Plural(d.Restarts, "time", "times")
	}
	wal := ""
	if d.End != 0 {
		wal = d.Start.String() + " to " + d.End.String() + " (" + cli.Bytes(d.WAL) + ") on timeline " + d.Timeline.String()
	}
	t.KV("copied", copied, "resumed", kept, "started again", restarts, "WAL to replay", wal, "slot", d.Slot)
	if d.Standby != nil {
		renderStatus(t, d.Standby)
		return
	}
	t.Blank()
	t.Line("Adjust its postgresql.conf where it must differ (port, memory), then:")
	t.Line("    dbrepl start -D %s", quote(d.Dir))
}
