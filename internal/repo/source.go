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
	sourcePiece       = 1 << 20
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
	err = s.pieces(ctx, f, blockcopy.Range{Path: path, Length: f.Size}, func(_ blockcopy.Range, data []byte, _ bool) error {
		out = append(out, data...)
		return nil
	})
	return out, err
}

// Fetch implements blockcopy.Source. Every block is compared with its hash.
// Frames that neighbouring pieces share are decoded once.
func (s *Source) Fetch(ctx context.Context, ranges []blockcopy.Range, deliver blockcopy.Deliver) error {
	var f *File
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
		if err := s.pieces(ctx, f, r, deliver); err != nil {
			return err
		}
	}
	return nil
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

// pieces delivers the range r of file f.
func (s *Source) pieces(ctx context.Context, f *File, r blockcopy.Range, deliver blockcopy.Deliver) error {
	bs := int64(s.m.BlockSize)
	end := min(r.End(), f.Size)
	cur := runCursor{runs: f.Runs}
	buf := make([]byte, min(sourcePiece+2*bs, max(end-r.Offset, 0)+2*bs))
	for pos := r.Offset; ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if pos >= end {
			if end < r.End() { // the file ends inside the range: say so
				return deliver(blockcopy.Range{Path: r.Path, Offset: pos, Length: r.End() - pos}, nil, false)
			}
			return nil
		}
		next := min((pos/bs)*bs+sourcePiece, end)
		first := pos / bs
		raw, err := s.blocks(ctx, f, &cur, first, blockCount(next, s.m.BlockSize)-first, buf)
		if err != nil {
			return err
		}
		skip := pos - first*bs
		if int64(len(raw)) < skip+next-pos {
			return &CorruptError{Object: s.m.idx.path, Offset: -1, Part: f.Path, Reason: "its blocks are shorter than the file"}
		}
		piece := blockcopy.Range{Path: r.Path, Offset: pos, Length: next - pos}
		if next == end && end < r.End() {
			piece.Length = r.End() - pos // short data: the file ends here
			return deliver(piece, raw[skip:skip+next-pos], false)
		}
		if err := deliver(piece, raw[skip:skip+next-pos], false); err != nil {
			return err
		}
		pos = next
	}
}

// blocks puts count blocks of f, from block first on, into buf.
func (s *Source) blocks(ctx context.Context, f *File, cur *runCursor, first, count int64, buf []byte) ([]byte, error) {
	bs := int64(s.m.BlockSize)
	out := buf[:0]
	for n := first; n < first+count; {
		run, skip := cur.seek(n)
		take := min(int64(run.Count)-skip, first+count-n)
		if run.Pack == ZeroPack {
			length := min((n+take)*bs, f.Size) - n*bs
			out = out[:int64(len(out))+length]
			clear(out[int64(len(out))-length:])
			n += take
			continue
		}
		var err error
		out, err = s.stored(ctx, f, n, run.Pack, run.First+uint32(skip), uint32(take), out)
		if err != nil {
			return nil, err
		}
		n += take
	}
	return out, nil
}

// stored appends count blocks of a pack to out. n is the first one's number in
// the file.
func (s *Source) stored(ctx context.Context, f *File, n int64, pack int32, first, count uint32, out []byte) ([]byte, error) {
	idx, err := s.m.packIndex(ctx, pack)
	if err != nil {
		return nil, naming(err, f.Path, n)
	}
	bs := int64(s.m.BlockSize)
	for count > 0 {
		i := idx.frameOf(first)
		raw, err := s.frames.get(ctx, idx, i)
		if err != nil {
			return nil, naming(err, f.Path, n)
		}
		fr := idx.frames[i]
		pos := 0
		for b := fr.first; b < first; b++ {
			pos += int(idx.blocks[b].length)
		}
		for ; count > 0 && first < fr.first+fr.blocks; first, count, n = first+1, count-1, n+1 {
			length := int(idx.blocks[first].length)
			if want := min(bs, f.Size-n*bs); int64(length) != want {
				return nil, naming(&CorruptError{Object: idx.path, Offset: fr.offset, Part: fmt.Sprintf("block %d", first),
					Reason: fmt.Sprintf("it has %d bytes, the file needs %d", length, want)}, f.Path, n)
			}
			out = append(out, raw[pos:pos+length]...)
			pos += length
		}
	}
	return out, nil
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

// runCursor finds the run of a block, quickly where blocks ascend, and with
// marks wherever they are.
type runCursor struct {
	runs  []Run
	i     int
	begin int64 // the block at which runs[i] begins
	marks runMarks
}

// runMarks are the blocks at which every markEvery-th run of a file begins. A
// table that was backed up often while it changed here and there has a run for
// every few blocks.
type runMarks []int64

const markEvery = 64

// marksOf marks a file's runs; few of them need none.
func marksOf(runs []Run) runMarks {
	if len(runs) <= markEvery {
		return nil
	}
	marks := make(runMarks, 0, len(runs)/markEvery+1)
	begin := int64(0)
	for i, r := range runs {
		if i%markEvery == 0 {
			marks = append(marks, begin)
		}
		begin += int64(r.Count)
	}
	return marks
}

// seek returns the run that holds block n and how far into it n lies. n must
// be a block of the file.
func (c *runCursor) seek(n int64) (Run, int64) {
	if next := c.i/markEvery + 1; n < c.begin || next < len(c.marks) && n >= c.marks[next] {
		c.i, c.begin = 0, 0
		if c.marks != nil {
			k, found := slices.BinarySearch(c.marks, n)
			if !found {
				k--
			}
			c.i, c.begin = k*markEvery, c.marks[k]
		}
	}
	for n >= c.begin+int64(c.runs[c.i].Count) {
		c.begin += int64(c.runs[c.i].Count)
		c.i++
	}
	return c.runs[c.i], n - c.begin
}
