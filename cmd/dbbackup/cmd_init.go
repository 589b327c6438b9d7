package main

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"tidemark/internal/backup"
	"tidemark/internal/cli"
	"tidemark/internal/repo"
)

type initCmd struct {
	cli.RepoFlag
	cli.OwnerFlag
}

// Run makes the repository.
func (c *initCmd) Run(ctx context.Context, e *cli.Env) error {
	if err := needRepo(c.Repo); err != nil {
		return err
	}
	if _, err := os.Lstat(c.Repo); errors.Is(err, fs.ErrNotExist) {
		if err := cli.BecomeOwner(c.Repo, c.Owner); err != nil {
			return err
		}
	} else if err := becomeRepoOwner(c.Repo); err != nil {
		return err
	}
	r, created, err := repo.Init(ctx, c.Repo)
	if err != nil {
		return err
	}
	return e.Render(&backup.InitResult{Repository: r.Location(), ID: r.ID(), Created: created}, func(t *cli.Text) {
		if created {
			t.Line("%s is a repository now.", r.Location())
		} else {
			t.Line("%s is a repository already.", r.Location())
		}
	})
}

// Examples are printed with --help.
func (initCmd) Examples() string {
	return `mkdir -p /srv && dbbackup init --repo /srv/backup
sudo install -d -o postgres /srv/backup && sudo dbbackup init --repo /srv/backup`
}
