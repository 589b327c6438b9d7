package repo

import (
	"context"
	"errors"
	"io"
	"slices"

	"golang.org/x/sync/errgroup"

	"tidemark/internal/blockcopy"
)

// CopyBackup copies a complete backup from another repository, under its own
// identifier. What is there already is not copied again: whole packs where
// both repositories are in the clear, and blocks otherwise, for then everything
// is encrypted anew. WAL is not copied. It reports whether there was anything
// to do.
func (c *Cluster) CopyBackup(ctx context.Context, from *Cluster, id string, jobs int, add func(bytes int64)) (bool, error) {
	has, err := c.has(ctx, c.ManifestName(id))
	if err != nil || has {
		return false, err
	}
	m, err := from.OpenManifest(ctx, id)
	if err != nil {
		return false, err
	}
	if !c.repo.Encrypted() && m.Encryption == nil {
		return true, c.copyPacks(ctx, from, m, add)
	}
	return true, c.copyBlocks(ctx, from, m, jobs, add)
}

// copyPacks copies the packs that are missing and the manifest, as they are.
func (c *Cluster) copyPacks(ctx context.Context, from *Cluster, m *Manifest, add func(int64)) error {
	w := &BackupWriter{cluster: c, o: WriterOptions{Tool: m.Tool}} // it announces that packs come
	if err := w.announce(ctx); err != nil {
		return err
	}
	there, err := c.listPacks(ctx, "")
	if err != nil {
		return err
	}
	for _, p := range m.Packs {
		if there[p.Name] != p.Size {
			if err := c.copyObject(ctx, from, c.packHeader(p.Name, m.BlockSize)); err != nil && !errors.Is(err, ErrExist) {
				return err
			}
		}
		add(p.Size)
	}
	if err := c.copyObject(ctx, from, c.manifestHeader(m.ID)); err != nil && !errors.Is(err, ErrExist) {
		return err
	}
	return c.removeNotes(ctx, w.started.ID)
}

// copyObject copies an object as it is stored, checking each byte on the way.
func (c *Cluster) copyObject(ctx context.Context, from *Cluster, h header) error {
	idx, err := from.readIndex(ctx, h)
	if err != nil {
		return err
	}
	if err := idx.checkHeader(ctx, from.driver); err != nil {
		return err
	}
	return c.driver.Put(ctx, h.Name, func(w io.Writer) error {
		at := int64(skipHeader + len(idx.header.append(nil)))
		if err := copyRange(ctx, from.driver, h.Name, 0, at, w); err != nil {
			return err
		}
		for i, f := range idx.frames {
			buf := getBuffer(int(f.stored))
			got, _, err := getBytes(ctx, from.driver, h.Name, f.offset, int64(f.stored), int64(f.stored), *buf)
			if err == nil {
				err = idx.checkBytes(i, got)
			}
			if err == nil {
				_, err = w.Write(got)
			}
			putBuffer(buf)
			if err != nil {
				return err
			}
			at = f.offset + int64(f.stored)
		}
		return copyRange(ctx, from.driver, h.Name, at, idx.size-at, w)
	})
}

func copyRange(ctx context.Context, d Driver, name string, offset, length int64, w io.Writer) error {
	b, _, err := getBytes(ctx, d, name, offset, length, maxIndexSize, nil)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// copyBlocks takes the backup anew, from the other repository instead of a
// server: blocks are compared, compressed and encrypted as in any backup.
func (c *Cluster) copyBlocks(ctx context.Context, from *Cluster, m *Manifest, jobs int, add func(int64)) error {
	src, err := from.OpenSource(ctx, m.ID)
	if err != nil {
		return err
	}
	parent, err := c.parentOf(ctx, m)
	if err != nil {
		return err
	}
	w, err := c.NewBackup(ctx, WriterOptions{Tool: m.Tool, ID: m.ID, BlockSize: m.BlockSize, Parent: parent})
	if err != nil {
		return err
	}
	sum := m.Summary
	err = copyFiles(ctx, src, w, jobs, add)
	if err == nil {
		err = w.Commit(&sum)
	}
	if err != nil {
		return errors.Join(err, w.Suspend())
	}
	return c.removeNotes(ctx, w.started.ID)
}

// parentOf finds what the copy of a backup is compared with: the newest one
// before it.
func (c *Cluster) parentOf(ctx context.Context, m *Manifest) (string, error) {
	cat, err := c.Catalog(ctx)
	if err != nil {
		return "", err
	}
	for _, s := range slices.Backward(cat.Backups) {
		if s.ID < m.ID && s.BlockSize == m.BlockSize && c.Comparable(s) {
			return s.ID, nil
		}
	}
	return "", nil
}

// copyFiles writes the files of a source into a backup, several at once.
func copyFiles(ctx context.Context, src *Source, w *BackupWriter, jobs int, add func(int64)) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(jobs, 1))
	bs := int64(w.o.BlockSize)
	for _, e := range src.entries {
		f, err := w.File(e)
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		if e.Type != blockcopy.File {
			continue
		}
		g.Go(func() error {
			err := src.Fetch(ctx, []blockcopy.Range{{Path: e.Path, Length: e.Size}}, func(p blockcopy.Range, data []byte, _ bool) error {
				add(int64(len(data)))
				return f.Write(p.Offset/bs, data)
			})
			if err != nil {
				return err
			}
			return f.Close(e.Size, false)
		})
		if ctx.Err() != nil {
			break
		}
	}
	return g.Wait()
}
