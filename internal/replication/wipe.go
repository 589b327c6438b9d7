package replication

import (
	"errors"
	"io/fs"
	"path/filepath"

	"tidemark/internal/exit"
	"tidemark/pkg/volume"
)

// wipe removes an unfinished seed. The tombstone goes last, so that what is
// left by a crash neither starts nor is taken for something else.
func wipe(fsys volume.FS, dir string) error {
	stone, err := volume.ReadTombstone(fsys, dir)
	if errors.Is(err, volume.ErrNoTombstone) || errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was begun
	}
	if err != nil {
		return err
	}
	if stone.Operation != operation {
		return exit.New(exit.Refused, "", "%s holds an unfinished %s", dir, stone.Operation)
	}
	if err := wipeTablespaces(fsys, dir); err != nil {
		return err
	}
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == volume.BackupLabelFile {
			continue
		}
		if err := volume.RemoveAll(fsys, filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if err := fsys.SyncDir(dir); err != nil {
		return err
	}
	return volume.RemoveDurable(fsys, filepath.Join(dir, volume.BackupLabelFile))
}

// wipeTablespaces empties the directories behind the links of pg_tblspc: of
// them the seed made the version directories, and nothing else.
func wipeTablespaces(fsys volume.FS, dir string) error {
	links, err := fsys.ReadDir(filepath.Join(dir, "pg_tblspc"))
	if err != nil {
		return ignoreMissing(err)
	}
	for _, link := range links {
		space := filepath.Join(dir, "pg_tblspc", link.Name())
		if target, err := fsys.Readlink(space); err == nil {
			space = target
		}
		entries, err := fsys.ReadDir(space)
		if err != nil {
			if ignoreMissing(err) == nil {
				continue
			}
			return err
		}
		for _, e := range entries {
			if _, _, ok := volume.ParseVersionDir(e.Name()); !ok {
				continue
			}
			if err := volume.RemoveAll(fsys, filepath.Join(space, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
