package main

import (
	"context"
	"errors"
	"os"
	"runtime/debug"
	"time"

	"tidemark/internal/backup"
	"tidemark/internal/cli"
	"tidemark/internal/exit"
	"tidemark/internal/repo"
)

type createCmd struct {
	cli.DSNFlag
	cli.ReposFlag
	cli.JobsFlag
	cli.NiceFlag
	PGData  string        `name:"pgdata" short:"D" placeholder:"DIR" type:"datadir" help:"The server's data directory: on this machine, where it is found by itself as well, or sftp://USER@HOST/PATH to read it over ssh. Without it, what cannot be read here is read over SQL."`
	Stream  bool          `help:"Read everything over the replication protocol (BASE_BACKUP), from another host too: the role needs REPLICATION and no other right. All is read each time."`
	Label   string        `placeholder:"TEXT" help:"Words to find the backup by."`
	Full    bool          `help:"Store every block again, and reference none of an earlier backup."`
	Expires string        `placeholder:"DATE" help:"When the backup may go, whatever the policy says: 2027-12-31, or 90d from now."`
	Rehash  *int          `name:"rehash-every" placeholder:"DAYS" config:"repository.rehash_every" help:"Read every block after so many days, even where the WAL proves it unchanged; 7 by default, 0: each time."`
	Rate    cli.ByteSize  `placeholder:"BYTES" help:"Read at most so many bytes per second (such as 50MB); as fast as it goes by default."`
	Plain   string        `placeholder:"DIR" type:"path" help:"Write a data directory that starts as it is, instead of into the repository."`
	Tar     bool          `help:"With --plain: write base.tar and a tar file for each tablespace into the directory."`
	Spaces  []string      `name:"tablespace" short:"T" placeholder:"OLD=NEW" sep:"none" help:"With --plain: put a tablespace (its directory, name or OID) into another directory; may be repeated."`
	Timeout time.Duration `placeholder:"TIME" help:"How long to wait for the last WAL to reach the repository; 5m by default."`
}

// Run takes the backup.
func (c *createCmd) Run(ctx context.Context, e *cli.Env) error {
	o := backup.Options{Tool: "dbbackup " + cli.Version(), ConnInfo: c.DSN, DataDir: c.PGData, Stream: c.Stream, Label: c.Label, Full: c.Full,
		Jobs: c.Jobs, Timeout: c.Timeout, Rehash: c.rehash(), Rate: int64(c.Rate), Progress: e.Progress(), Log: e.Log()}
	boundMemory()
	err := c.checkStream()
	if err == nil {
		err = c.StandBack(e)
	}
	if err != nil {
		return err
	}
	if o.Expires, err = backup.ParseMoment(c.Expires, time.Now()); err != nil {
		return err
	}
	if c.Plain != "" {
		return c.plain(ctx, e, o)
	}
	if c.Tar || len(c.Spaces) > 0 {
		return exit.New(exit.Usage, "dbrecover restore places the tablespaces of a backup in a repository", "--tar and --tablespace go with --plain DIR")
	}
	if err := needRepos(c.Repos); err != nil {
		return err
	}
	if err := becomeOwner(c.Repos); err != nil {
		return err
	}
	return c.into(ctx, e, o)
}

// checkStream refuses what does not go with --stream.
func (c *createCmd) checkStream() error {
	switch {
	case c.Stream && c.PGData != "":
		return exit.New(exit.Usage, "leave one of them out", "with --stream the server sends its files, and -D says where to read them")
	case c.Stream && c.Plain != "":
		return exit.New(exit.Usage, "leave --stream out to read the files over SQL; or take the backup into a repository, and dbrecover restore it from there",
			"--stream does not go with --plain")
	}
	return nil
}

// into takes the backup into the repositories that can be opened. It is the
// same backup in each; one that did not get it is an error, and the others
// keep theirs.
func (c *createCmd) into(ctx context.Context, e *cli.Env, o backup.Options) error {
	open, err := inEach(c.Repos, func(location string) (*repo.Repository, error) { return repo.Open(ctx, location) })
	if len(open) == 0 {
		return err
	}
	if err != nil {
		e.Note("%v: the others get the backup", err)
	}
	taken, failed := backup.CreateIn(ctx, open, o)
	var with []backup.Taken
	where, errs := []string{}, []error{}
	for _, t := range taken {
		where, errs = append(where, t.Repository.Location()), append(errs, t.Err)
		if t.Summary != nil {
			with = append(with, t)
		}
	}
	if failed == nil {
		failed = notInAll(err, inSome(where, errs, "did not get the backup"), len(with))
	}
	if len(with) == 0 {
		return failed
	}
	sum := with[0].Summary
	if err := e.Render(backup.NewResultIn(with), func(t *cli.Text) { renderTaken(t, with, len(c.Repos) > 1) }); err != nil {
		return err
	}
	return errors.Join(failed, damaged(sum.FindingCount))
}

// notInAll is the error of a backup that some repositories did not get: with is
// how many did.
func notInAll(unopened, failed error, with int) error {
	err := errors.Join(unopened, failed)
	if err == nil || with == 0 {
		return err
	}
	hint := "the next dbbackup create goes on there with what came; dbbackup copy brings this backup"
	for _, e := range []error{unopened, failed} {
		if h := exit.HintOf(e); h != "" {
			hint = h + "\n" + hint
		}
	}
	return exit.Wrap(err, exit.Partial, hint, "the backup is complete in %s only", cli.Plural(with, "repository", "repositories"))
}

func renderTaken(t *cli.Text, taken []backup.Taken, several bool) {
	s := taken[0].Summary
	renderCreated(t, s)
	if !several {
		return
	}
	t.Blank()
	tab := cli.NewTable("repository", "type", ">unchanged blocks", ">stored")
	for _, k := range taken {
		tab.Row(k.Repository.Location(), k.Summary.Type, cli.Count(k.Summary.OldBlocks), cli.Bytes(k.Summary.StoredSize))
	}
	t.Table(tab)
}

// memoryGoal is what a backup has the collector keep to: the list of a million
// files and the blocks at work fit into it.
const memoryGoal = 192 << 20

// boundMemory sets the goal unless the operator has one of his own.
func boundMemory() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryGoal)
	}
}

// rehash is the policy in the library's terms: 0 means its default, below it always.
func (c *createCmd) rehash() time.Duration {
	switch {
	case c.Rehash == nil:
		return 0
	case *c.Rehash <= 0:
		return -1
	}
	return time.Duration(*c.Rehash) * 24 * time.Hour
}

func (c *createCmd) plain(ctx context.Context, e *cli.Env, o backup.Options) error {
	if c.Full {
		return exit.New(exit.Usage, "leave --full out", "a plain backup is always full")
	}
	for _, s := range c.Spaces {
		m, err := backup.ParseMapping(s)
		if err != nil {
			return err
		}
		o.Tablespaces = append(o.Tablespaces, m)
	}
	if err := cli.BecomeOwner(c.Plain, ""); err != nil {
		return err
	}
	take, complete := backup.CreatePlain, "%s is complete: a server starts on it, and pg_verifybackup accepts it."
	if c.Tar {
		take, complete = backup.CreateTar, "The tar files in %s are complete: unpacked, a server starts on them."
	}
	res, err := take(ctx, c.Plain, o)
	if err != nil {
		return err
	}
	err = e.Render(res, func(t *cli.Text) {
		t.Line(complete, res.Directory)
		took := res.Finished.Sub(res.Began)
		t.KV("files", cli.Count(res.Files), "size", cli.Bytes(res.SizeBytes), "WAL", cli.Bytes(res.WALBytes),
			"took", cli.Duration(took)+" ("+cli.Rate(res.SizeBytes, took)+")",
			"consistent", res.Start.LSN.String()+" to "+res.Stop.String())
		renderFindings(t, res.Findings, res.FindingCount)
	})
	if err != nil {
		return err
	}
	return damaged(res.FindingCount)
}

// damaged is the error of a backup that holds damaged blocks.
func damaged(n int64) error {
	if n == 0 {
		return nil
	}
	return exit.New(exit.Problem, "the backup is complete and holds these blocks as they are; older backups may hold them sound",
		"%s of the cluster failed the checksum test", cli.Plural(n, "block", "blocks"))
}

func renderCreated(t *cli.Text, s *repo.Summary) {
	t.Line("Backup %s is complete (%s).", s.ID, s.Type)
	old := ""
	if s.Type == repo.Incremental {
		old = cli.Count(s.OldBlocks) + " of " + cli.Count(s.Blocks-s.ZeroBlocks) + " blocks as in " + s.Parent
	}
	read := ""
	if s.ReadSize < s.ClusterSize {
		read = cli.Bytes(s.ReadSize) + ", the WAL proves the rest unchanged"
		if s.Proof == backup.ProofSummaries {
			read = cli.Bytes(s.ReadSize) + ", the server's WAL summaries prove the rest unchanged"
		}
	}
	t.KV("cluster", cli.Bytes(s.ClusterSize)+" in "+cli.Plural(s.Files, "file", "files"), "read", read, "unchanged", old,
		"stored", cli.Bytes(s.StoredSize)+" for "+cli.Bytes(s.NewSize), "took", cli.Duration(s.Took())+" ("+cli.Rate(s.ClusterSize, s.Took())+")",
		"consistent", s.Start.LSN.String()+" to "+s.Stop.String())
	renderFindings(t, s.Findings, s.FindingCount)
}

// shownFindings bounds the list for people; --json and the manifest hold more.
const shownFindings = 20

func renderFindings(t *cli.Text, findings []repo.Finding, count int64) {
	if count == 0 {
		return
	}
	t.Blank()
	tab := cli.NewTable("file", ">block", "relation", "page LSN", "checksum", "should be")
	for _, f := range findings[:min(len(findings), shownFindings)] {
		tab.Row(f.Path, f.Block, f.Relation, f.LSN, f.Found, f.Expected)
	}
	t.Table(tab)
	if more := count - int64(min(len(findings), shownFindings)); more > 0 {
		t.Line("and %s more", cli.Count(more))
	}
}

// Examples are printed with --help.
func (createCmd) Examples() string {
	return `dbbackup create --repo /srv/backup -d "host=/run/postgresql"
dbbackup create --repo /srv/backup --label "before the upgrade"
dbbackup create --repo /srv/backup -d service=replica  # from a standby
dbbackup create --repo /srv/backup --rate 50MB         # gently
dbbackup create --repo /srv/backup --repo sftp://backup@vault/srv/pg   # one backup in both, the cluster is read once
dbbackup create --repo /srv/backup -d "host=db1" -D sftp://postgres@db1/var/lib/postgresql/15/main # files over ssh
dbbackup create --repo /srv/backup -d "host=db1 user=backup" --stream # over the replication protocol
dbbackup create --plain /srv/copy -d "port=5433"       # a data directory
dbbackup create --plain /srv/copy -T /ssd/fast=/srv/fast # with a tablespace
dbbackup create --plain /srv/tars --tar                  # base.tar and the like`
}
