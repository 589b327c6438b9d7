package backup

import (
	"context"
	"iter"

	"tidemark/internal/blockcopy"
	"tidemark/internal/repo"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// joinBlocks is how many unchanged blocks between two changed ones are read
// with them: a request costs about as much.
const joinBlocks = 2

// unchanged says of relation segments which of their blocks the base has as
// they are. In full, whatever the map says, are read:
//
//   - everything but main forks: FSM and VM are not, or not always, logged;
//   - files that the base does not have, and what lies beyond the base's end;
//   - from the segment of a truncation's end on: zero pages that extend a
//     file again are not logged;
//   - files created in the meantime: a relfilenode may be used again;
//   - databases and tablespaces created in the meantime: their files may have
//     been copied;
//   - blocks whose checksum was wrong in the base.
type unchanged struct {
	changed   *wal.Map
	blockSize int64
	relSeg    uint32
	databases map[[2]uint32]bool // tablespace, database
	spaces    map[uint32]bool
	damaged   map[string]map[uint32]bool // by path, blocks of the fork
}

func newUnchanged(m *wal.Map, base *repo.Summary, c *volume.Control) *unchanged {
	u := &unchanged{changed: m, blockSize: int64(c.BlockSize), relSeg: c.RelSegSize,
		databases: map[[2]uint32]bool{}, spaces: map[uint32]bool{}, damaged: map[string]map[uint32]bool{}}
	for _, e := range m.Databases {
		if e.Create != nil {
			u.databases[[2]uint32{e.Create.Tablespace, e.Create.Database}] = true
		}
	}
	for _, e := range m.Tablespaces {
		if e.Create != nil {
			u.spaces[e.Create.Tablespace] = true
		}
	}
	for _, f := range base.Findings {
		if u.damaged[f.Path] == nil {
			u.damaged[f.Path] = map[uint32]bool{}
		}
		u.damaged[f.Path][f.Block] = true
	}
	return u
}

// read returns the parts of a file that have to be read; old is the base's
// entry. all says that nothing of it can be taken over.
func (u *unchanged) read(e blockcopy.Entry, old *repo.File) (out []blockcopy.Range, all bool) {
	seg, ok := volume.ParseRelPath(e.Path)
	if !ok || seg.Fork != wal.ForkMain || u.databases[[2]uint32{seg.Tablespace, seg.Database}] || u.spaces[seg.Tablespace] {
		return nil, true
	}
	first := seg.FirstBlock(u.relSeg)
	kept := min(old.Size, e.Size) / u.blockSize // blocks that both have whole
	c := u.changed.Lookup(seg.RelFile)
	if c != nil && c.Limit < first+u.relSeg {
		return nil, true
	}
	damaged := u.damaged[e.Path]
	add := func(from, to int64) {
		if n := len(out); n > 0 && from <= out[n-1].End()+joinBlocks*u.blockSize {
			out[n-1].Length = to - out[n-1].Offset
			return
		}
		out = append(out, blockcopy.Range{Path: e.Path, Offset: from, Length: to - from})
	}
	for b := int64(0); b < kept && (c != nil || damaged != nil); b++ {
		if c != nil && c.Blocks.Contains(first+uint32(b)) || damaged[first+uint32(b)] {
			add(b*u.blockSize, (b+1)*u.blockSize)
		}
	}
	if e.Size > kept*u.blockSize {
		add(kept*u.blockSize, e.Size)
	}
	return out, false
}

// skip leaves out of the reading what the base has. The base lists its files
// in the order of the entries.
func (c *contents) skip(ctx context.Context, base *repo.Manifest, u *unchanged) error {
	files := base.Files(ctx)
	var old *repo.File
	var err error
	c.parts, c.read = make([]bool, len(c.entries)), map[int][]blockcopy.Range{}
	c.bytes = 0
	for i, e := range c.all() {
		if e.Type != blockcopy.File {
			continue
		}
		if i == 0 || old != nil {
			if old, err = files.Seek(old, e.Path); err != nil {
				return err
			}
		}
		if e.Size > 0 && old != nil && old.Path == e.Path && old.Type == blockcopy.File {
			if ranges, all := u.read(e, old); !all {
				c.parts[i] = true
				if len(ranges) > 0 {
					c.read[i] = ranges
				}
			}
		}
		c.bytes += c.toRead(i)
	}
	return nil
}

// readAll takes skip back.
func (c *contents) readAll() {
	c.parts, c.read = nil, nil
	c.bytes = 0
	for i := range c.entries {
		c.bytes += c.toRead(i)
	}
}

// whole tells whether a file is read from its begin to its end.
func (c *contents) whole(i int) bool { return c.parts == nil || !c.parts[i] }

// toRead returns how many bytes of an entry are read.
func (c *contents) toRead(i int) (n int64) {
	e := &c.entries[i]
	if e.kind != blockcopy.File {
		return 0
	}
	if c.whole(i) {
		return e.size
	}
	for _, r := range c.read[i] {
		n += r.Length
	}
	return n
}

// reads tells whether anything of a file is to be read.
func (c *contents) reads(i int) bool {
	e := &c.entries[i]
	return e.kind == blockcopy.File && e.size > 0 && (c.whole(i) || len(c.read[i]) > 0)
}

// What is worked out at once. A file that nothing is read of is written behind
// the ones before it, and waits while one of those is being read: hence the
// bound on how many entries lie between two that are read at the same time.
const (
	rangesAtOnce  = 1 << 16
	entriesAtOnce = 1 << 14
)

// ranges gives what is to be read, so many ranges at a time.
func (c *contents) ranges() iter.Seq[[]blockcopy.Range] {
	return func(yield func([]blockcopy.Range) bool) {
		var out []blockcopy.Range
		begin := 0
		for i := range c.entries {
			if len(out) == 0 {
				begin = i
			}
			switch e := &c.entries[i]; {
			case e.kind != blockcopy.File || e.size == 0:
			case c.whole(i):
				out = append(out, blockcopy.Range{Path: e.path, Length: e.size})
			default:
				out = append(out, c.read[i]...)
			}
			if len(out) >= rangesAtOnce || len(out) > 0 && i-begin >= entriesAtOnce {
				if !yield(out) {
					return
				}
				out = nil
			}
		}
		if len(out) > 0 {
			yield(out)
		}
	}
}

// takeOver gives a file the blocks that are not read. It returns the end of the last of
// them, in bytes; done says that there is nothing to read: the file is closed.
func (c *contents) takeOver(i int, w *repo.FileWriter, blockSize int64) (end int64, done bool, err error) {
	if c.whole(i) {
		return 0, false, nil
	}
	read := c.read[i]
	if len(read) == 0 && w.SameSize() {
		return 0, true, w.Keep()
	}
	from, size := int64(0), c.entries[i].size
	for k := 0; k <= len(read); k++ {
		to := size
		if k < len(read) {
			to = read[k].Offset
		}
		if to > from {
			if err := w.Reference(from/blockSize, (to-from)/blockSize); err != nil {
				return 0, false, err
			}
			end = to
		}
		if k < len(read) {
			from = read[k].End()
		}
	}
	if len(read) == 0 {
		return end, true, w.Close(end, false)
	}
	return end, false, nil
}
