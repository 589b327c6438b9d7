package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"tidemark/internal/blockcopy"
)

// A manifest is lines of JSON in the object format, in this order:
//
//	files, directories and links   ordered by path, bytewise; a segment in pg_wal is the last
//	packs                          in a block of their own, from block Summary.PackTable on
//	the summary                    in the last block
//
// The text of a section is cut into blocks of at most manifestBlock bytes
// anywhere, and each block is a frame. A reader finds the index at the end of
// the object, the summary in the last frame before it, and then reads the
// sections that it wants.
const (
	manifestBlock = 1 << 20
	maxLine       = 128 << 20
)

// ZeroPack is the pack number of blocks that are all zero and stored nowhere.
const ZeroPack = -1

// Run is a run of consecutive blocks of a file that lie one after another in
// a pack, or are all zero.
type Run struct {
	Count uint32
	Pack  int32  // index into Manifest.Packs, or ZeroPack
	First uint32 // number of the first block in the pack
}

// File is one entry of a manifest: a file, a directory or a link.
type File struct {
	blockcopy.Entry
	Runs []Run // in order, without gaps, for files
	// Digest is the hash of the hashes of the file's blocks, one after
	// another; an all-zero block counts as sixteen zero bytes.
	Digest Hash
}

// Pack is a pack that a manifest names.
type Pack struct {
	Name   string `json:"pack"` // backup id and number: "20261121T225012Z/000001"
	Size   int64  `json:"size"`
	Blocks uint32 `json:"blocks"`
}

func (c *Cluster) manifestHeader(id string) header {
	return header{Kind: kindManifest, SystemID: c.systemID, MaxBlock: manifestBlock, Name: c.prefix + "backups/" + id + "/manifest.zst"}
}

// Manifest is an open manifest. Files read it from its beginning.
type Manifest struct {
	Summary
	Packs []Pack

	cluster   *Cluster
	idx       *objectIndex
	unordered bool // a part whose files are in any order
}

// readSummary reads a manifest's index and its last block.
func (c *Cluster) readSummary(ctx context.Context, id string) (*Summary, *objectIndex, error) {
	idx, err := c.readIndex(ctx, c.manifestHeader(id))
	if err != nil {
		return nil, nil, err
	}
	corrupt := func(err error) error {
		return &CorruptError{Object: idx.path, Offset: -1, Part: "summary", Err: err}
	}
	raw, err := summaryLine(ctx, c.driver, idx)
	if err != nil {
		return nil, nil, err
	}
	s := new(Summary)
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, nil, corrupt(err)
	}
	if err := s.Validate(); err != nil {
		return nil, nil, corrupt(err)
	}
	if s.ID != id || uint64(s.SystemID) != c.systemID || int64(s.PackTable) >= int64(len(idx.frames)) {
		return nil, nil, corrupt(errors.New("it does not fit the object"))
	}
	s.ManifestSize = idx.size
	return s, idx, nil
}

// summaryLine reads the last line of a manifest, which begins a block and may need
// several.
func summaryLine(ctx context.Context, d Driver, idx *objectIndex) ([]byte, error) {
	missing := &CorruptError{Object: idx.path, Offset: -1, Part: "summary", Reason: "missing"}
	if len(idx.frames) == 0 || len(idx.frames) != len(idx.blocks) {
		return nil, missing
	}
	at := len(idx.frames) - 1
	raw, err := idx.readFrame(ctx, d, at, nil)
	if err != nil {
		return nil, err
	}
	for !bytes.HasPrefix(raw, []byte(`{"format":`)) {
		if at == 0 || len(raw) > 32<<20 {
			return nil, missing
		}
		at--
		more, err := idx.readFrame(ctx, d, at, nil)
		if err != nil {
			return nil, err
		}
		raw = append(more, raw...)
	}
	return raw, nil
}

// OpenManifest opens the manifest of a backup: its summary and its packs. The
// files are read with Files.
func (c *Cluster) OpenManifest(ctx context.Context, id string) (*Manifest, error) {
	s, idx, err := c.readSummary(ctx, id)
	if err != nil {
		if errors.Is(err, ErrNotExist) {
			return nil, noBackup(c, id, err)
		}
		return nil, err
	}
	m := &Manifest{Summary: *s, cluster: c, idx: idx}
	if err := m.readPacks(ctx); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *Manifest) readPacks(ctx context.Context) error {
	lr := newLineReader(ctx, m.cluster.driver, m.idx, int(m.PackTable), len(m.idx.frames))
	corrupt := func(err error) error {
		return &CorruptError{Object: m.idx.path, Offset: -1, Part: "pack table", Err: err}
	}
	if m.PackCount < 0 || m.PackCount > 1<<24 {
		return corrupt(fmt.Errorf("%d packs", m.PackCount))
	}
	for range m.PackCount {
		line, _, err := lr.next()
		if err != nil {
			return corrupt(err)
		}
		var p Pack
		if err := json.Unmarshal(line, &p); err != nil {
			return corrupt(err)
		}
		if !ValidName(p.Name) || p.Blocks > maxBlocks {
			return corrupt(fmt.Errorf("pack %q", p.Name))
		}
		m.Packs = append(m.Packs, p)
	}
	return nil
}

// Files returns a reader of the manifest's files from the first on. Memory
// does not grow with the number of files.
func (m *Manifest) Files(ctx context.Context) *FileReader {
	return &FileReader{m: m, lr: newLineReader(ctx, m.cluster.driver, m.idx, 0, int(m.PackTable))}
}

// EachFile calls each for every entry of the manifest.
func (m *Manifest) EachFile(ctx context.Context, each func(*File)) error {
	files := m.Files(ctx)
	for {
		f, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		each(f)
	}
}

// ManifestName is the name of the object that makes a backup exist.
func (c *Cluster) ManifestName(id string) string { return c.manifestHeader(id).Name }

// FileReader reads the files of a manifest, in order.
type FileReader struct {
	m     *Manifest
	lr    *lineReader
	order pathOrder
}

// Next returns the next file, io.EOF after the last one.
func (r *FileReader) Next() (*File, error) {
	f, _, err := r.next()
	return f, err
}

// next returns the next file and where its line begins.
func (r *FileReader) next() (*File, int64, error) {
	line, at, err := r.lr.next()
	if err != nil {
		return nil, 0, err
	}
	f, err := parseFile(line, r.m.Packs, r.m.BlockSize)
	if err == nil && !r.m.unordered && !r.order.next(f.Path) {
		err = fmt.Errorf("%s follows %s", f.Path, r.order.last)
	}
	if err != nil {
		return nil, 0, &CorruptError{Object: r.m.idx.path, Offset: -1, Part: "file list", Err: err}
	}
	return f, at, nil
}
