package repo

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
)

// CopyBackup copies a complete backup from another repository, under its own
// identifier. What is there already is not copied again: whole packs where
// both repositories are in the clear, and blocks otherwise, for then everything
// is encrypted anew. WAL is not copied. It reports whether there was anything
// to do.
func (c *Cluster) CopyBackup(ctx context.Context, from *Cluster, id string, jobs int, add func(bytes int64)) (bool, error) {
	has, err := c.has(ctx, c.ManifestName(id))
	if err != nil {
		return false, err
	}
	if has {
		return false, c.mustBeSame(ctx, from, id)
	}
	m, err := from.OpenManifest(ctx, id)
	if err != nil {
		return false, err
	}
	if !c.repo.Encrypted() && m.Encryption == nil {
		whole, err := c.copyPacks(ctx, from, m, add)
		if whole || err != nil {
			return true, err
		}
	}
	return true, c.copyBlocks(ctx, from, m, jobs, add)
}

// mustBeSame fails unless the backup of that name is the same one in both
// repositories: they may have got it from one command, or one from the other.
func (c *Cluster) mustBeSame(ctx context.Context, from *Cluster, id string) error {
	there, _, err := c.readSummary(ctx, id)
	if err != nil {
		return err
	}
	here, _, err := from.readSummary(ctx, id)
	if err != nil || here.SameAs(there) {
		return err
	}
	return exit.New(exit.Refused, "delete the one that is not wanted, with dbbackup delete",
		"backup %s in %s is another one than in %s: that began at %s, this at %s", id, c.repo.Location(), from.repo.Location(),
		there.Began.Format(time.RFC3339Nano), here.Began.Format(time.RFC3339Nano))
}

// copyPacks copies the packs that are missing and the manifest, as they are. It
// reports false, having done nothing, where a pack is there that nothing vouches
// for: somebody may be about to sweep it.
func (c *Cluster) copyPacks(ctx context.Context, from *Cluster, m *Manifest, add func(int64)) (bool, error) {
	w := &BackupWriter{cluster: c, o: WriterOptions{Tool: m.Tool, ID: m.ID, owners: packOwners(m)}}
	if err := w.announce(ctx); err != nil {
		return false, err
	}
	there, whole, err := c.vouched(ctx, from, w.started.ID, m)
	if err == nil && whole {
		err = c.bring(ctx, from, m, there, add)
	}
	if err == nil {
		return whole, c.removeNotes(ctx, w.started.ID)
	}
	// What came is kept for the same command to go on from.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), suspendTime)
	defer cancel()
	return false, errors.Join(err, putNote(ctx, c.driver, c.stoppedName(w.started.ID), &stoppedNote{w.started.ID, now()}))
}

// bring copies the packs that are not there, and the manifest.
func (c *Cluster) bring(ctx context.Context, from *Cluster, m *Manifest, there map[string]bool, add func(int64)) error {
	for _, p := range m.Packs {
		if !there[p.Name] {
			if err := c.copyObject(ctx, from, c.packHeader(p.Name, m.BlockSize)); err != nil && !errors.Is(err, ErrExist) {
				return err
			}
		}
		add(p.Size)
	}
	if err := c.copyObject(ctx, from, c.manifestHeader(m.ID)); err != nil && !errors.Is(err, ErrExist) {
		return err
	}
	return nil
}

// packOwners returns the backups that a manifest's packs are named after.
func packOwners(m *Manifest) []string {
	var owners []string
	for _, p := range m.Packs {
		if owner, _, _ := strings.Cut(p.Name, "/"); !slices.Contains(owners, owner) {
			owners = append(owners, owner)
		}
	}
	return owners
}

// vouched returns which packs of a manifest are in the store and may be taken
// as they are, by the rules of sweep.go. all is false where one is there that may
// not, or that is another one. own is the caller's note, which is there already.
func (c *Cluster) vouched(ctx context.Context, from *Cluster, own string, m *Manifest) (there map[string]bool, all bool, err error) {
	list, err := c.listBackups(ctx)
	if err != nil {
		return nil, false, err
	}
	named, err := c.neededPacks(ctx, list, nil)
	if err != nil {
		return nil, false, err
	}
	brought := map[string]bool{}
	for _, id := range list.unfinished() {
		if id == own {
			continue
		}
		s, err := c.readStarted(ctx, id, list)
		if err != nil && !errors.Is(err, ErrNotExist) && !isCorrupt(err) {
			return nil, false, err
		}
		for _, owner := range s.owners() {
			brought[owner] = true
		}
	}
	sizes, err := c.listPacks(ctx, "")
	if err != nil {
		return nil, false, err
	}
	there = map[string]bool{}
	for _, p := range m.Packs {
		size, ok := sizes[p.Name]
		owner, _, _ := strings.Cut(p.Name, "/")
		if ok && (size != p.Size || !named[p.Name] && !brought[owner]) {
			return nil, false, nil
		}
		there[p.Name] = ok
	}
	all, err = c.samePacks(ctx, from, m, there)
	return there, all, err
}

// samePacks tells whether packs that are in both repositories under one name
// are the same: a backup that one command took into several has its own in each.
func (c *Cluster) samePacks(ctx context.Context, from *Cluster, m *Manifest, there map[string]bool) (bool, error) {
	var other atomic.Bool
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(comparePacks)
	for _, p := range m.Packs {
		if !there[p.Name] {
			continue
		}
		g.Go(func() error {
			name := c.packHeader(p.Name, m.BlockSize).Name
			ours, _, err := getBytes(ctx, c.driver, name, -trailerLength, -1, trailerLength, nil)
			if err != nil {
				return err
			}
			theirs, _, err := getBytes(ctx, from.driver, name, -trailerLength, -1, trailerLength, nil)
			if !bytes.Equal(ours, theirs) { // the hash of an index, which has that of every block
				other.Store(true)
			}
			return err
		})
	}
	err := g.Wait()
	return !other.Load(), err
}

// comparePacks is how many packs are looked at at once.
const comparePacks = 8

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
