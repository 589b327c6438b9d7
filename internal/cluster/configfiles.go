package cluster

import (
	"errors"
	"io/fs"
	"path/filepath"
	"sort"
	"strings"

	"tidemark/pkg/volume"
)

// ownFiles are a node's configuration, which a copy of another node must not
// replace: the port among it.
var ownFiles = []string{"postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf"}

// keepConfiguration copies a node's own configuration files from its old data
// directory into the new one.
func keepConfiguration(fsys volume.FS, from, to string) error {
	for _, name := range ownFiles {
		data, err := volume.ReadFile(fsys, filepath.Join(from, name), 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := volume.WriteFile(fsys, filepath.Join(to, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// lastAside finds the directory that an interrupted copy had moved aside.
func lastAside(dir string) string {
	found, err := filepath.Glob(strings.TrimRight(dir, "/") + ".*.old")
	if err != nil || len(found) == 0 {
		return ""
	}
	sort.Strings(found)
	return found[len(found)-1]
}
