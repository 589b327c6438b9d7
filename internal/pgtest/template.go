package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"tidemark/internal/postgres"
)

var templates struct {
	sync.Mutex
	dirs map[string]string
}

// templateDir returns a cluster that initdb made once for these options.
func templateDir(bin postgres.Installation, o Options) (string, error) {
	key := fmt.Sprintf("%d-%t-%d-%s", bin.Major, o.Checksums, o.WALSegMB, strings.Join(o.InitArgs, " "))
	templates.Lock()
	defer templates.Unlock()
	if dir, ok := templates.dirs[key]; ok {
		return dir, nil
	}
	if templates.dirs == nil {
		templates.dirs = map[string]string{}
	}
	dir := filepath.Join(base, "tmpl", strconv.Itoa(len(templates.dirs)))
	if err := initDB(bin, o, dir); err != nil {
		return "", err
	}
	templates.dirs[key] = dir
	return dir, nil
}

func initDB(bin postgres.Installation, o Options, dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	return bin.InitDB(ctx, dir, postgres.InitOptions{Checksums: o.Checksums, WALSegmentMB: o.WALSegMB, Args: append([]string{"--no-sync"}, o.InitArgs...)})
}

// CopyTree copies a directory tree as it is; symbolic links stay links. Files
// that vanish meanwhile are passed over, so that it may be used on a running
// server in backup mode.
func CopyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != from {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			info, err := d.Info()
			if err != nil {
				return ignoreMissing(err)
			}
			return os.MkdirAll(target, info.Mode().Perm())
		case d.Type()&fs.ModeSymlink != 0:
			link, err := os.Readlink(path)
			if err != nil {
				return ignoreMissing(err)
			}
			return os.Symlink(link, target)
		case d.Type().IsRegular():
			return ignoreMissing(copyFile(path, target))
		}
		return nil
	})
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, info.Mode().Perm())
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
