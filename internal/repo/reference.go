package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Blocks that provably did not change since the parent are taken over without
// being read. Who proves it is the caller: see internal/backup.

// OpenBase opens the manifest of a backup whose blocks are to be taken over
// unread. It fails where a pack that the manifest names is not in the store as
// it should be: such blocks have to be read again.
func (c *Cluster) OpenBase(ctx context.Context, id string) (*Manifest, error) {
	m, err := c.OpenManifest(ctx, id)
	if err != nil {
		return nil, err
	}
	there, err := c.listPacks(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, p := range m.Packs {
		if size, ok := there[p.Name]; !ok || size != p.Size {
			return nil, &CorruptError{Object: c.packHeader(p.Name, 0).Name, Offset: -1, Reason: "it is not in the repository as backup " + id + " names it"}
		}
	}
	return m, nil
}

// Seek returns the next file at or after path, at being the last one that it
// returned, in the order of the manifest; nil where there is
// none. It is for callers that walk a listing in the same order.
func (r *FileReader) Seek(at *File, path string) (*File, error) {
	for at == nil || at.Path < path {
		f, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		at = f
	}
	return at, nil
}

// base is the file as the parent has it, nil where it does not.
func (f *FileWriter) base() *oldFile {
	for i := range f.olds {
		if !f.olds[i].from.left {
			return &f.olds[i]
		}
	}
	return nil
}

var errNotInParent = errors.New("the previous backup does not have it")

// Reference takes count blocks from block first on over from the parent.
func (f *FileWriter) Reference(first, count int64) error {
	old := f.base()
	if old == nil || first+count > blockCount(old.file.Size, f.w.o.BlockSize) {
		return fmt.Errorf("%s, blocks %d to %d: %w", f.entry.Path, first, first+count-1, errNotInParent)
	}
	f.mu.Lock()
	f.mark()
	cur := old.cursor()
	f.mu.Unlock()
	b := blockSorter{f: f}
	for n := first; n < first+count; {
		run, skip := cur.seek(n)
		p := part{first: n, count: min(int64(run.Count)-skip, first+count-n), kind: zeroBlocks}
		if run.Pack != ZeroPack {
			if err := f.oldPart(old, &p, run, uint32(skip)); err != nil {
				return err
			}
		}
		b.extend(p)
		n += p.count
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.parts = append(f.parts, b.parts...)
	return nil
}

// oldPart fills in where blocks of the parent are, from block skip of a run on:
// all of the part, or as many as a window of hashes has.
func (f *FileWriter) oldPart(old *oldFile, p *part, run Run, skip uint32) error {
	known, err := old.hashes.from(old, p.first)
	if err != nil {
		return err
	}
	if known[0] == noHash {
		return fmt.Errorf("%s: the pack %s cannot be read any more", f.entry.Path, old.m.Packs[run.Pack].Name)
	}
	p.kind, p.pack, p.from = oldBlocks, f.w.packNumber(old.m.Packs[run.Pack], false), run.First+skip
	p.count = min(p.count, int64(len(known)))
	p.hashes = known[:p.count:p.count]
	return nil
}

// SameSize reports whether the parent's file is as long as this one was when
// it was listed.
func (f *FileWriter) SameSize() bool {
	old := f.base()
	return old != nil && old.file.Size == f.entry.Size
}

// Keep makes the file what it is in the parent, and closes it. Not even the
// hashes of its blocks are looked at.
func (f *FileWriter) Keep() error {
	if !f.SameSize() {
		return fmt.Errorf("%s: %w", f.entry.Path, errNotInParent)
	}
	old := f.base()
	kept := &File{Entry: f.entry, Digest: old.file.Digest, Runs: slices.Clone(old.file.Runs)}
	for i := range kept.Runs {
		if r := &kept.Runs[i]; r.Pack != ZeroPack {
			r.Pack = f.w.packNumber(old.m.Packs[r.Pack], false)
		}
	}
	f.mu.Lock()
	f.kept = kept
	f.mu.Unlock()
	return f.Close(f.entry.Size, false)
}

// countKept counts the blocks of a file that was kept.
func (f *FileWriter) countKept(t *Totals) *File {
	t.Files++
	t.ClusterSize += f.kept.Size
	t.Blocks += blockCount(f.kept.Size, f.w.o.BlockSize)
	for _, r := range f.kept.Runs {
		if r.Pack == ZeroPack {
			t.ZeroBlocks += int64(r.Count)
		} else {
			t.OldBlocks += int64(r.Count)
		}
	}
	return f.kept
}
