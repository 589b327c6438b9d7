package main

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"tidemark/internal/cli"
	"tidemark/internal/repo"
)

type initCmd struct {
	cli.RepoFlag
	cli.OwnerFlag
}

// initResult is what init did.
type initResult struct {
	Repository string `json:"repository"` // where it is
	ID         string `json:"id"`         // the repository's identifier
	Created    bool   `json:"created"`    // false: it was there already
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
	return e.Render(&initResult{r.Location(), r.ID(), created}, func(t *cli.Text) {
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
