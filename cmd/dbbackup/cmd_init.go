package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"

	"tidemark/internal/backup"
	"tidemark/internal/cli"
	"tidemark/internal/repo"
)

type initCmd struct {
	cli.ReposFlag
	cli.OwnerFlag
	Recipient []string `name:"recipient" placeholder:"KEY" sep:"none" help:"Encrypt the repository for this public key (age1... or an ssh one); may be repeated."`
}

// Run makes the repository.
func (c *initCmd) Run(ctx context.Context, e *cli.Env) error {
	return inTurn(e, c.Repos, func(location string) (*backup.InitResult, error) { return c.init(ctx, location) },
		func(t *cli.Text, r *backup.InitResult) {
			switch {
			case r.Created && r.Encrypted:
				t.Line("%s is a repository now, encrypted for %s.", r.Repository, cli.Plural(len(c.Recipient), "recipient", "recipients"))
				t.Line("Who loses every secret key loses every backup: keep one offline, and try it now and then.")
			case r.Created:
				t.Line("%s is a repository now.", r.Repository)
			default:
				t.Line("%s is a repository already.", r.Repository)
			}
		})
}

// init makes one repository.
func (c *initCmd) init(ctx context.Context, location string) (*backup.InitResult, error) {
	if strings.Contains(location, "://") && !strings.HasPrefix(location, "file://") {
		// Not on this machine: whoever runs this is told apart there.
	} else if _, err := os.Lstat(strings.TrimPrefix(location, "file://")); errors.Is(err, fs.ErrNotExist) {
		if err := cli.BecomeOwner(strings.TrimPrefix(location, "file://"), c.Owner); err != nil {
			return nil, err
		}
	} else if err := becomeRepoOwner(location); err != nil {
		return nil, err
	}
	r, created, err := repo.Init(ctx, location, c.Recipient...)
	if err != nil {
		return nil, err
	}
	return &backup.InitResult{Repository: r.Location(), ID: r.ID(), Created: created, Encrypted: r.Encrypted()}, nil
}

// Examples are printed with --help.
func (initCmd) Examples() string {
	return `mkdir -p /srv && dbbackup init --repo /srv/backup
sudo install -d -o postgres /srv/backup && sudo dbbackup init --repo /srv/backup
dbbackup init --repo /srv/backup --recipient age1...      # this host writes what it cannot read
dbbackup init --repo 's3://backup/pg?endpoint=https://s3.example.com'   # keys: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY
dbbackup init --repo sftp://backup@vault/srv/pg                         # as ssh backup@vault logs in`
}
