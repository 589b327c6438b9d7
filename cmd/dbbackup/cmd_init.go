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
	cli.RepoFlag
	cli.OwnerFlag
	Recipient []string `name:"recipient" placeholder:"KEY" sep:"none" help:"Encrypt the repository for this public key (age1... or an ssh one); may be repeated."`
}

// Run makes the repository.
func (c *initCmd) Run(ctx context.Context, e *cli.Env) error {
	if err := needRepo(c.Repo); err != nil {
		return err
	}
	if strings.Contains(c.Repo, "://") && !strings.HasPrefix(c.Repo, "file://") {
		// Not on this machine: whoever runs this is told apart there.
	} else if _, err := os.Lstat(strings.TrimPrefix(c.Repo, "file://")); errors.Is(err, fs.ErrNotExist) {
		if err := cli.BecomeOwner(strings.TrimPrefix(c.Repo, "file://"), c.Owner); err != nil {
			return err
		}
	} else if err := becomeRepoOwner(c.Repo); err != nil {
		return err
	}
	r, created, err := repo.Init(ctx, c.Repo, c.Recipient...)
	if err != nil {
		return err
	}
	return e.Render(&backup.InitResult{Repository: r.Location(), ID: r.ID(), Created: created, Encrypted: r.Encrypted()}, func(t *cli.Text) {
		if created && r.Encrypted() {
			t.Line("%s is a repository now, encrypted for %s.", r.Location(), cli.Plural(len(c.Recipient), "recipient", "recipients"))
			t.Line("Who loses every secret key loses every backup: keep one offline, and try it now and then.")
		} else if created {
			t.Line("%s is a repository now.", r.Location())
		} else {
			t.Line("%s is a repository already.", r.Location())
		}
	})
}

// Examples are printed with --help.
func (initCmd) Examples() string {
	return `mkdir -p /srv && dbbackup init --repo /srv/backup
sudo install -d -o postgres /srv/backup && sudo dbbackup init --repo /srv/backup
dbbackup init --repo /srv/backup --recipient age1...      # this host writes what it cannot read
dbbackup init --repo 's3://backup/pg?endpoint=https://s3.example.com'   # keys: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY
dbbackup init --repo sftp://backup@vault/srv/pg                         # as ssh backup@vault logs in`
}
