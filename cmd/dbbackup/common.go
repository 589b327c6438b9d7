package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"

	"tidemark/internal/cli"
	"tidemark/internal/exit"
	"tidemark/internal/repo"
)

func needRepo(location string) error {
	if location != "" {
		return nil
	}
	return exit.New(exit.Usage, "say --repo DIR, set TIDEMARK_REPO, or put [repository] path = \"DIR\" into tidemark.toml", "no repository given")
}

func needRepos(locations []string) error {
	if len(locations) > 0 {
		return needRepo(locations[0])
	}
	return needRepo("")
}

// becomeRepoOwner makes a process of root's the owner of the repository: what
// it writes there has to be readable by the server's own archive_command.
func becomeRepoOwner(location string) error {
	location = strings.TrimPrefix(location, "file://")
	if _, err := os.Lstat(location); errors.Is(err, fs.ErrNotExist) {
		return nil // opening it says what is wrong
	}
	return cli.BecomeOwner(location, "")
}

// openToRead opens the repository for a verb that changes nothing.
func openToRead(ctx context.Context, location string, identity cli.IdentityFlag) (*repo.Repository, error) {
	if err := needRepo(location); err != nil {
		return nil, err
	}
	r, err := repo.Open(ctx, location)
	if err != nil {
		return nil, err
	}
	return r, r.Unlock(ctx, identity.Identities()...)
}

// open opens the repository as its owner, with the secret key if there is one.
func open(ctx context.Context, location string, identity cli.IdentityFlag) (*repo.Repository, error) {
	if err := needRepo(location); err != nil {
		return nil, err
	}
	ids, err := repo.LoadIdentities(identity.Identities()...) // before root becomes another user
	if err != nil {
		return nil, err
	}
	return openWith(ctx, location, ids)
}

// openWith is open with keys that were read before.
func openWith(ctx context.Context, location string, ids *repo.Identities) (*repo.Repository, error) {
	if err := becomeRepoOwner(location); err != nil {
		return nil, err
	}
	r, err := repo.Open(ctx, location)
	if err != nil {
		return nil, err
	}
	return r, r.UnlockWith(ctx, ids)
}

// openCluster opens the part of the repository that belongs to one cluster.
func openCluster(ctx context.Context, location string, system uint64) (*repo.Cluster, error) {
	r, err := open(ctx, location, cli.IdentityFlag{})
	if err != nil {
		return nil, err
	}
	return clusterOf(ctx, r, system)
}

// clusterOf chooses a cluster: the only one, where none is named.
func clusterOf(ctx context.Context, r *repo.Repository, system uint64) (*repo.Cluster, error) {
	if system != 0 {
		return r.Cluster(system), nil
	}
	return r.OnlyCluster(ctx)
}

// systemFlag chooses a cluster.
type systemFlag struct {
	SystemID uint64 `name:"system-id" placeholder:"ID" help:"The cluster with this system identifier."`
}
