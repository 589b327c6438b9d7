package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"tidemark/internal/cli"
	"tidemark/internal/exit"
	"tidemark/internal/recovery"
	"tidemark/internal/repo"
	"tidemark/pkg/wal"
)

// targetFlags say what to restore, up to where, and into what.
type targetFlags struct {
	To     string `name:"to" placeholder:"latest|immediate" help:"Stop at the end of the archived WAL (the default), or as soon as the backup is consistent." xor:"target"`
	ToTime string `name:"to-time" aliases:"target-time" placeholder:"TIME" help:"Stop behind the last transaction that had ended by then, e.g. 2026-11-21T22:50:01Z or '2026-11-21 22:50:01+00'." xor:"target"`
	ToLSN  string `name:"to-lsn" aliases:"target-lsn" placeholder:"LSN" help:"Stop behind the record at this position." xor:"target"`
	ToXID  uint32 `name:"to-xid" aliases:"target-xid" placeholder:"XID" help:"Stop behind the end of this transaction." xor:"target"`
	ToName string `name:"to-name" aliases:"target-name" placeholder:"NAME" help:"Stop at this restore point." xor:"target"`

	Inclusive bool `name:"inclusive" help:"Include the target itself (the default)." xor:"inclusive"`
	Exclusive bool `name:"exclusive" help:"Stop just before the target." xor:"inclusive"`

	Backup     string   `name:"backup" placeholder:"ID" help:"Restore this backup; by default the newest that ends before the target."`
	Timeline   string   `name:"timeline" placeholder:"latest|current|N" default:"latest" help:"Follow WAL to this timeline: the latest, the backup's own, or a number."`
	Tablespace []string `name:"tablespace" placeholder:"OLD=NEW" sep:"none" help:"Put a tablespace (its old directory, name or OID) into another directory; may be repeated."`
	Archive    string   `name:"archive" enum:"keep,off" default:"keep" placeholder:"keep|off" help:"keep: archive_mode as in the backup. off: a copy that must not archive."`
	System     uint64   `name:"cluster" placeholder:"ID" help:"System identifier, where the repository holds several clusters."`
}

// given tells whether any of the flags was used that only a restore needs.
func (f *targetFlags) given() bool {
	return f.To != "" || f.ToTime != "" || f.ToLSN != "" || f.ToXID != 0 || f.ToName != "" || f.Backup != "" ||
		f.Exclusive || f.Timeline != "latest" || len(f.Tablespace) > 0 || f.Archive != "keep"
}

func (f *targetFlags) target() (recovery.Target, error) {
	t := recovery.Target{Kind: recovery.Latest, Exclusive: f.Exclusive}
	var err error
	switch {
	case f.ToTime != "":
		t.Kind = recovery.AtTime
		t.Time, err = recovery.ParseTime(f.ToTime)
	case f.ToLSN != "":
		t.Kind = recovery.AtLSN
		t.LSN, err = wal.ParseLSN(f.ToLSN)
	case f.ToXID != 0:
		t.Kind, t.XID = recovery.AtXID, f.ToXID
	case f.ToName != "":
		t.Kind, t.Name = recovery.AtName, f.ToName
	case f.To == "immediate":
		t.Kind = recovery.Immediate
	case f.To != "" && f.To != "latest":
		return t, exit.New(exit.Usage, "for a time say --to-time, for a position --to-lsn", "--to is latest or immediate, not %q", f.To)
	}
	if f.Exclusive && (t.Kind == recovery.Latest || t.Kind == recovery.Immediate || t.Kind == recovery.AtName) {
		return t, exit.New(exit.Usage, "", "--exclusive goes with --to-time, --to-lsn or --to-xid")
	}
	return t, exit.Wrap(err, exit.Usage, "", "the target")
}

// openCluster opens the repository's part that belongs to one cluster.
func openCluster(ctx context.Context, location, identity string, system uint64) (*repo.Cluster, error) {
	if location == "" {
		return nil, exit.New(exit.Usage, "say --repo DIR, set TIDEMARK_REPO, or name it in tidemark.toml", "which repository?")
	}
	r, err := repo.Open(ctx, location)
	if err != nil {
		return nil, err
	}
	if err := unlock(ctx, r, identity); err != nil {
		return nil, err
	}
	if system != 0 {
		return r.Cluster(system), nil
	}
	return r.OnlyCluster(ctx)
}

// unlock reads the secret key of an encrypted repository.
func unlock(ctx context.Context, r *repo.Repository, identity string) error {
	if identity == "" {
		if r.Encrypted() {
			return exit.Wrap(repo.ErrNoKey, exit.Failed, "say --identity FILE, or set TIDEMARK_IDENTITY, with the secret key of one of its recipients (dbbackup key list)", "%s", r.Location())
		}
		return nil
	}
	return r.Unlock(ctx, identity)
}

// openFirst opens the first of several repositories that can be opened and
// holds the backup, or one of the cluster where none is named; others are the
// rest, which can still serve WAL.
func openFirst(ctx context.Context, e *cli.Env, locations []string, identity string, system uint64, backup string) (c *repo.Cluster, others []string, err error) {
	if len(locations) == 0 {
		locations = []string{""}
	}
	var errs []error
	for i, location := range locations {
		c, err := openCluster(ctx, location, identity, system)
		if err == nil && len(locations) > 1 {
			_, err = c.Summary(ctx, backup)
		}
		if err == nil {
			return c, append(append(others, locations[:i]...), locations[i+1:]...), nil
		}
		if len(locations) == 1 || ctx.Err() != nil {
			return nil, nil, err
		}
		e.Note("%v", err)
		errs = append(errs, err)
	}
	return nil, nil, exit.Wrap(errors.Join(errs...), exit.CodeOf(errs[0]), exit.HintOf(errs[0]), "none of the repositories can be used")
}

// options completes what the flags say to the options of a restore.
func (f *targetFlags) options(ctx context.Context, e *cli.Env, repos []string, identity, dataDir string, jobs int, then recovery.Then) (recovery.RestoreOptions, error) {
	var o recovery.RestoreOptions
	target, err := f.target()
	if err != nil {
		return o, err
	}
	cluster, others, err := openFirst(ctx, e, repos, identity, f.System, f.Backup)
	if err != nil {
		return o, err
	}
	program, err := os.Executable()
	if err != nil {
		return o, err
	}
	o = recovery.RestoreOptions{Cluster: cluster, Others: others, DataDir: dataDir,
		Request: recovery.Request{Backup: f.Backup, Target: target, Timeline: f.Timeline},
		Then:    then, Archiving: f.Archive == "keep", Jobs: jobs, Program: program, Identity: identity, Command: commandLine(),
		Progress: e.Progress(), Log: e.Log()}
	for _, m := range f.Tablespace {
		from, to, ok := strings.Cut(m, "=")
		if !ok || from == "" || to == "" {
			return o, exit.New(exit.Usage, "write --tablespace OLD=NEW", "--tablespace %s", m)
		}
		if to, err = filepath.Abs(to); err != nil {
			return o, err
		}
		o.Tablespaces = append(o.Tablespaces, recovery.Mapping{From: from, To: to})
	}
	return o, nil
}

// commandLine is this process's, as a shell takes it.
func commandLine() string {
	words := []string{filepath.Base(os.Args[0])}
	for _, a := range os.Args[1:] {
		words = append(words, recovery.ShellQuote(a))
	}
	return strings.Join(words, " ")
}

// dataDir checks that a directory was named, and takes on its owner's identity.
func dataDir(dir, owner string) error {
	if dir == "" {
		return exit.New(exit.Usage, "say -D DIR or set PGDATA", "which data directory?")
	}
	return cli.BecomeOwner(dir, owner)
}
