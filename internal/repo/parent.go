package repo

import (
	"context"
	"errors"
	"io"
	"strings"

	"tidemark/internal/blockcopy"
)

// comparison is an earlier backup that blocks are compared with: the parent,
// or the parts of one that was interrupted. It finds the entry of each file and
// the hashes of its blocks. Files are asked for in path order, unless anyOrder.
type comparison struct {
	ctx      context.Context
	id       string
	left     bool            // an interrupted one: only what it stored counts
	own      map[string]bool // then: whose packs that are
	manifest *Manifest       // the parent's
	queue    []*Manifest     // still to be read, the current one first
	files    *FileReader
	ahead    *File // read and not used yet
	end      bool
	there    map[string]int64 // the packs that are in the store, and their sizes
	fault    error            // its file list is damaged from here on
	anyOrder bool             // files are asked for, or listed, in any order:
	lookup   *fileLookup      // then they are looked up
}

// oldFile is a file as an earlier backup has it.
type oldFile struct {
	file   *File
	m      *Manifest
	from   *comparison
	marks  runMarks
	hashes *oldHashes
}

func (o *oldFile) cursor() runCursor { return runCursor{runs: o.file.Runs, marks: o.marks} }

func openParent(ctx context.Context, c *Cluster, id string, anyOrder bool) (*comparison, error) {
	m, err := c.OpenManifest(ctx, id)
	if err != nil {
		return nil, err
	}
	there, err := c.listPacks(ctx, "")
	return &comparison{ctx: ctx, id: id, manifest: m, queue: []*Manifest{m}, anyOrder: anyOrder, there: there}, err
}

// listPacks returns the packs in the store, by name, and their sizes; of one
// backup, or of all.
func (c *Cluster) listPacks(ctx context.Context, id string) (map[string]int64, error) {
	there := map[string]int64{}
	prefix := c.prefix + "packs/"
	below := prefix
	if id != "" {
		below += id + "/"
	}
	err := c.driver.List(ctx, below, func(i ObjectInfo) error {
		if name, ok := strings.CutSuffix(strings.TrimPrefix(i.Name, prefix), ".zst"); ok {
			there[name] = i.Size
		}
		return nil
	})
	return there, err
}

// findOld looks for the file in all that is compared with.
func (f *FileWriter) findOld() error {
	all := f.w.left
	if f.w.parent != nil {
		all = append([]*comparison{f.w.parent}, all...)
	}
	for _, c := range all {
		old, m, err := c.find(f.entry.Path)
		if err != nil {
			return err
		}
		if old != nil {
			f.olds = append(f.olds, oldFile{file: old, m: m, from: c, hashes: &oldHashes{}})
		}
	}
	return nil
}

// find returns the entry of a file and the manifest that it is in.
func (p *comparison) find(path string) (*File, *Manifest, error) {
	if p.anyOrder {
		if p.lookup == nil {
			var err error
			if p.lookup, p.fault, err = newFileLookup(p.ctx, p.queue); err != nil {
				return nil, nil, err
			}
		}
		return p.lookup.find(path)
	}
	for !p.end && (p.ahead == nil || p.ahead.Path < path) {
		if err := p.advance(); err != nil {
			return nil, nil, err
		}
	}
	if p.ahead != nil && p.ahead.Path == path && p.ahead.Type == blockcopy.File {
		return p.ahead, p.queue[0], nil
	}
	return nil, nil, nil
}

// advance reads the next entry.
func (p *comparison) advance() error {
	if p.files == nil {
		if len(p.queue) == 0 {
			p.end, p.ahead = true, nil
			return nil
		}
		p.files = p.queue[0].Files(p.ctx)
	}
	f, err := p.files.Next()
	var bad *CorruptError
	switch {
	case errors.Is(err, io.EOF):
		p.files, p.ahead, p.queue = nil, nil, p.queue[1:]
		return nil
	case errors.As(err, &bad), errors.Is(err, ErrNotExist): // damaged, or deleted meanwhile
		p.end, p.ahead, p.fault = true, nil, err
		return nil
	}
	p.ahead = f
	return err
}

// index returns a pack's index, nil when the pack is not in the store as the
// manifest names it: its blocks are then stored again.
func (p *comparison) index(m *Manifest, pack int32) (*objectIndex, error) {
	t := m.Packs[pack]
	if size, ok := p.there[t.Name]; !ok || size != t.Size {
		return nil, nil
	}
	if p.left {
		if owner, _, _ := strings.Cut(t.Name, "/"); !p.own[owner] {
			return nil, nil
		}
	}
	idx, err := m.packIndex(p.ctx, pack)
	var bad *CorruptError
	if errors.As(err, &bad) || errors.Is(err, ErrNotExist) {
		return nil, nil
	}
	return idx, err
}
