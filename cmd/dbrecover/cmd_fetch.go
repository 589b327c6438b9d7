package main

import (
	"context"
	"errors"
	"os"
	"runtime/debug"
	"strings"

	"tidemark/internal/cli"
	"tidemark/internal/exit"
	"tidemark/internal/recovery"
	"tidemark/internal/repo"
)

type fetchCmd struct {
	cli.ReposFlag
	cli.IdentityFlag
	System  uint64 `name:"cluster" placeholder:"ID" help:"System identifier; by default that of the data directory the server runs it in."`
	Standby bool   `name:"standby" help:"A fault may count as a missing file, for the server asks again. Detected by standby.signal."`
	Name    string `arg:"" name:"file" help:"The WAL file: %f."`
	Path    string `arg:"" name:"path" help:"Where to put it: %p."`

	lacks bool // how it ended: the server is to be told that there is no such file
}

func (fetchCmd) Examples() string {
	return `restore_command = 'dbrecover fetch --repo /srv/backup "%f" "%p"'
restore_command = 'dbrecover fetch --repo /srv/backup --repo "s3://backup/pg?region=eu-central-1" "%f" "%p"'   # in this order

# Exit codes: 0 the file is there; 1 the archive lacks it, which ends a recovery;
# 200 something is wrong (the server stops and loses nothing).`
}

func (c *fetchCmd) Run(ctx context.Context, e *cli.Env) error {
	err := c.fetch(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, recovery.ErrLacks):
		c.lacks = true
		return &exit.Error{Code: recovery.FetchLacks} // the server asks for many a file that never was
	case c.Standby || recovery.IsStandby("."):
		c.lacks = true
		return exit.Wrap(err, recovery.FetchLacks, "the standby will ask again", "%s could not be fetched", c.Name)
	case recovery.HasHistory(".", c.Name):
		c.lacks = true
		return exit.Wrap(err, recovery.FetchLacks, "the server needs none from the archive and goes on", "%s could not be fetched", c.Name)
	}
	return exit.Wrap(err, recovery.FetchFault, "recovery stops here so that nothing is lost; mend the cause and start the server again",
		"%s could not be fetched", c.Name)
}

func (c *fetchCmd) fetch(ctx context.Context) error {
	if len(c.Repos) == 0 {
		return exit.New(exit.Usage, "say --repo DIR", "which repository?")
	}
	// The first that has the file serves it. Nobody lacks it for certain while
	// one of them cannot be asked.
	var faults []error
	var lacks, stranger error
	for _, location := range c.Repos {
		err := c.fetchFrom(ctx, location)
		var s *strangerError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &s):
			stranger = s.error
		case errors.Is(err, recovery.ErrLacks):
			lacks = err
		case len(c.Repos) > 1:
			faults = append(faults, exit.Wrap(err, exit.CodeOf(err), "", "%s", location))
		default:
			return err
		}
	}
	switch {
	case len(faults) > 0:
		return errors.Join(faults...)
	case lacks != nil:
		return lacks
	}
	return stranger
}

// strangerError says that a repository has never heard of the cluster.
type strangerError struct{ error }

// fetchFrom fetches the file from one repository.
func (c *fetchCmd) fetchFrom(ctx context.Context, location string) error {
	r, err := repo.Open(ctx, location)
	if err != nil {
		return err
	}
	if err := r.Unlock(ctx, c.Identities()...); err != nil {
		return err
	}
	cluster, err := recovery.FetchCluster(ctx, r, c.System, ".")
	if err != nil {
		return err
	}
	err = recovery.Fetch(ctx, cluster, c.Name, c.Path)
	if !errors.Is(err, recovery.ErrLacks) {
		return err
	}
	// A repository that has never heard of the cluster is the wrong one, and
	// says nothing about its WAL.
	if e := recovery.KnowsCluster(ctx, r, cluster.SystemID()); e != nil {
		return &strangerError{e}
	}
	return err
}

// isFetch tells whether the server calls, and not a person for help.
func isFetch(args []string) bool {
	verb := ""
	for _, a := range args {
		if a == "-h" || a == "-?" || a == "--help" || a == "-V" || a == "--version" {
			return false
		}
		if verb == "" && !strings.HasPrefix(a, "-") {
			verb = a
		}
	}
	return verb == "fetch"
}

// fetchMain runs the verb under the server's rule: 1 says that the archive
// lacks the file, and nothing else may say so. A wrong flag, a broken
// configuration or a crash of this program is a fault.
func fetchMain() int {
	debug.SetTraceback("crash") // die by a signal, not with Go's exit code 2
	defer func() {
		if p := recover(); p != nil {
			os.Stderr.WriteString("dbrecover fetch: internal error\n")
			os.Exit(recovery.FetchFault)
		}
	}()
	c := &commands{}
	code := cli.Main("dbrecover", description, c)
	if code == 0 || code == recovery.FetchLacks && c.Fetch.lacks || code > 125 {
		return code
	}
	return recovery.FetchFault
}
