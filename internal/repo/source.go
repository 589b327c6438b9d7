package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sort"

	"tidemark/internal/blockcopy"
)

// Source gives the files of a backup to the block-copy engine. It implements
// blockcopy.Source.
//
// Its List holds what the manifest holds. Three files are not in it, since they
// end a restore and are not part of the copy: global/pg_control, backup_label
// and tablespace_map. ReadFile returns them, and so does Summary.
type Source struct {
	m       *Manifest
	entries []blockcopy.Entry // in path order
	lines   []int64           // where each entry's line begins in the manifest's text
	frames  *frameCache
}

const (
	// DefaultCacheBytes bounds the decoded frames that a Source keeps.
	DefaultCacheBytes = 64 << 20
)

var _ blockcopy.Source = (*Source)(nil)

// OpenSource opens a backup for reading. "latest" is the newest one.
func (c *Cluster) OpenSource(ctx context.Context, id string) (*Source, error) {
	s, err := c.Summary(ctx, id)
	if err != nil {
		return nil, err
	}
	m, err := c.OpenManifest(ctx, s.ID)
	if err != nil {
		return nil, err
	}
	src := &Source{m: m, frames: newFrameCache(c.driver, DefaultCacheBytes)}
	files := m.Files(ctx)
	for {
		f, at, err := files.next()
		if errors.Is(err, io.EOF) {
			return src, nil
		}
		if err != nil {
			return nil, err
		}
		i := len(src.entries)
		if i > 0 && f.Path < src.entries[i-1].Path { // the tail comes last
			i = sort.Search(i, func(i int) bool { return src.entries[i].Path >= f.Path })
		}
		src.entries = slices.Insert(src.entries, i, f.Entry)
		src.lines = slices.Insert(src.lines, i, at)
	}
}

// Name says which backup it is.
func (s *Source) Name() string {
	return fmt.Sprintf("backup %s in %s", s.m.ID, s.m.cluster.repo.Location())
}

// Summary is the backup's summary.
func (s *Source) Summary() *Summary { return &s.m.Summary }

// Close does nothing.
func (s *Source) Close() error { return nil }

// List returns what the backup holds, in path order.
func (s *Source) List(context.Context) ([]blockcopy.Entry, error) { return s.entries, nil }

// special returns the content of a file that the summary holds.
func (s *Source) special(path string) ([]byte, bool) {
	switch {
	case path == "global/pg_control":
		return s.m.Control, true
	case path == "backup_label":
		return []byte(s.m.BackupLabel), true
	case path == "tablespace_map" && s.m.TablespaceMap != "":
		return []byte(s.m.TablespaceMap), true
	}
	return nil, false
}

// ReadFile returns a file's content.
func (s *Source) ReadFile(ctx context.Context, path string) ([]byte, error) {
	if data, ok := s.special(path); ok {
		return bytes.Clone(data), nil
	}
	f, err := s.lookup(ctx, path)
	if err != nil {
		return nil, err
	}
	if f == nil || f.Type != blockcopy.File {
		return nil, &fs.PathError{Op: "read", Path: path, Err: fs.ErrNotExist}
	}
	out := make([]byte, 0, f.Size)
	w := readWindow{s: s, deliver: func(_ blockcopy.Range, data []byte, _ bool) error {
		out = append(out, data...)
		return nil
	}}
	err = w.add(ctx, f, blockcopy.Range{Path: path, Length: f.Size})
	if err == nil {
		err = w.flush(ctx)
	}
	return out, err
}

// Fetch implements blockcopy.Source. Every block is compared with its hash.
// Frames that pieces share are decoded once (see readWindow).
func (s *Source) Fetch(ctx context.Context, ranges []blockcopy.Range, deliver blockcopy.Deliver) error {
	var f *File
	w := readWindow{s: s, deliver: deliver}
	for _, r := range ranges {
		if data, ok := s.special(r.Path); ok {
			if err := deliverBytes(r, data, deliver); err != nil {
				return err
			}
			continue
		}
		if f == nil || f.Path != r.Path {
			var err error
			if f, err = s.lookup(ctx, r.Path); err != nil {
				return err
			}
		}
		if f == nil || f.Type != blockcopy.File {
			f = nil
			if err := deliver(r, nil, true); err != nil {
				return err
			}
			continue
		}
		if err := w.add(ctx, f, r); err != nil {
			return err
		}
	}
	return w.flush(ctx)
}

func deliverBytes(r blockcopy.Range, data []byte, deliver blockcopy.Deliver) error {
	from := min(r.Offset, int64(len(data)))
	return deliver(r, data[from:min(r.End(), int64(len(data)))], false)
}

// lookup returns the manifest's entry for a path, nil where there is none.
func (s *Source) lookup(ctx context.Context, path string) (*File, error) {
	i := sort.Search(len(s.entries), func(i int) bool { return s.entries[i].Path >= path })
	if i == len(s.entries) || s.entries[i].Path != path {
		return nil, nil
	}
	line, err := s.line(ctx, s.lines[i])
	if err != nil {
		return nil, err
	}
	f, err := parseFile(line, s.m.Packs, s.m.BlockSize)
	if err != nil {
		return nil, &CorruptError{Object: s.m.idx.path, Offset: -1, Part: "file list", Err: err}
	}
	return f, nil
}

// line returns the line that begins at a position of the manifest's text. All
// blocks before that of the line's end are full, so the position gives the block.
func (s *Source) line(ctx context.Context, at int64) ([]byte, error) {
	var line []byte
	for frame := int(at / manifestBlock); frame < int(s.m.PackTable); frame++ {
		raw, err := s.frames.get(ctx, s.m.idx, frame)
		if err != nil {
			return nil, err
		}
		if line == nil {
			raw = raw[min(at%manifestBlock, int64(len(raw))):]
		}
		if end := bytes.IndexByte(raw, '\n'); end >= 0 {
			return append(line, raw[:end]...), nil
		}
		line = append(line, raw...)
	}
	return nil, &CorruptError{Object: s.m.idx.path, Offset: -1, Part: "file list", Reason: "cut short"}
}

// packIndex returns the index of a pack that the manifest names.
func (m *Manifest) packIndex(ctx context.Context, pack int32) (*objectIndex, error) {
	p := m.Packs[pack]
	idx, err := m.cluster.indexes.get(ctx, m.cluster, m.cluster.packHeader(p.Name, m.BlockSize))
	if err != nil {
		return nil, err
	}
	if uint32(len(idx.blocks)) != p.Blocks || idx.size != p.Size {
		return nil, &CorruptError{Object: idx.path, Offset: -1, Reason: "it is not the pack that the manifest names"}
	}
	return idx, nil
}

// naming adds which file and block a fault hits.
func naming(err error, path string, block int64) error {
	return fmt.Errorf("%s, block %d: %w", path, block, err)
}
