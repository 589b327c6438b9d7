package main

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"tidemark/internal/cli"
	"tidemark/internal/exit"
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
