package repo

import (
	"context"
	"errors"
	"io"
	"strings"

	"tidemark/internal/blockcopy"
)

// parentReader finds the parent's entry of each file and the hashes of its
// blocks. Files are asked for in path order.
type parentReader struct {
	m     *Manifest
	files *FileReader
	ahead *File // read and not used yet
	end   bool
	ctx   context.Context
	there map[string]int64 // the packs that are in the store, and their sizes
	fault error            // its file list is damaged from here on
}

func openParent(ctx context.Context, c *Cluster, id string) (*parentReader, error) {
	m, err := c.OpenManifest(ctx, id)
	if err != nil {
		return nil, err
	}
	p := &parentReader{m: m, files: m.Files(ctx), ctx: ctx, there: map[string]int64{}}
	prefix := c.prefix + "packs/"
	return p, c.driver.List(ctx, prefix, func(i ObjectInfo) error {
		p.there[strings.TrimSuffix(strings.TrimPrefix(i.Name, prefix), ".zst")] = i.Size
		return nil
	})
}

func (p *parentReader) find(path string) (*File, error) {
	for !p.end && (p.ahead == nil || p.ahead.Path < path) {
		f, err := p.files.Next()
		if errors.Is(err, io.EOF) {
			p.end, p.ahead = true, nil
			break
		}
		var bad *CorruptError
		if errors.As(err, &bad) {
			p.end, p.ahead, p.fault = true, nil, err
			break
		}
		if err != nil {
			return nil, err
		}
		p.ahead = f
	}
	if p.ahead != nil && p.ahead.Path == path && p.ahead.Type == blockcopy.File {
		return p.ahead, nil
	}
	return nil, nil
}

// index returns a pack's index, nil when the pack is not in the store as the
// manifest names it: its blocks are then stored again.
func (p *parentReader) index(pack int32) (*objectIndex, error) {
	t := p.m.Packs[pack]
	if size, ok := p.there[t.Name]; !ok || size != t.Size {
		return nil, nil
	}
	idx, err := p.m.packIndex(p.ctx, pack)
	var bad *CorruptError
	if errors.As(err, &bad) || errors.Is(err, ErrNotExist) {
		return nil, nil
	}
	return idx, err
}
