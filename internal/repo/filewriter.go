package repo

import (
	"cmp"
	"crypto/sha256"
	"slices"
	"sync"

	"tidemark/internal/blockcopy"
)

// FileWriter takes the content of one file.
type FileWriter struct {
	w     *BackupWriter
	entry blockcopy.Entry
	olds  []oldFile // what earlier backups have of it
	kept  *File     // the entry, where it is the parent's (see Keep)

	mu     sync.Mutex
	marked bool // the runs of olds
	parts  []part
	closed bool
	gone   bool
	stored bool // some of its blocks were stored for this backup
	size   int64
}

// part is a run of blocks that were written by one call.
type part struct {
	first  int64
	count  int64
	kind   partKind
	frame  *frame // newBlocks: where they are, and from which index on
	index  uint32
	pack   int32 // oldBlocks
	from   uint32
	left   bool   // oldBlocks: an interrupted backup stored them
	hashes []Hash // one per block; nil for zero blocks
}

type partKind uint8

const (
	zeroBlocks partKind = iota
	oldBlocks
	newBlocks
)

// Write takes blocks from block number first on: whole ones, but for the last
// of the file. Several goroutines may write different blocks at once.
func (f *FileWriter) Write(first int64, data []byte) error {
	bs := int(f.w.o.BlockSize)
	b := blockSorter{f: f, parts: make([]part, 0, 4), curs: f.cursors()}
	for n := first; len(data) > 0; n++ {
		block := data[:min(bs, len(data))]
		data = data[len(block):]
		if err := b.sort(n, block); err != nil {
			return err
		}
	}
	if err := b.flush(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.parts = append(f.parts, b.parts...)
	return nil
}

// cursors returns one for each earlier version of the file.
func (f *FileWriter) cursors() []oldCursor {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mark()
	out := make([]oldCursor, 0, len(f.olds))
	for _, o := range f.olds {
		out = append(out, oldCursor{oldFile: o, cur: o.cursor(), blocks: blockCount(o.file.Size, f.w.o.BlockSize)})
	}
	return out
}

// mark prepares the earlier versions for many cursors, once; mu is held.
func (f *FileWriter) mark() {
	if f.marked {
		return
	}
	f.marked = true
	for i := range f.olds {
		f.olds[i].marks = marksOf(f.olds[i].file.Runs)
	}
}

// Close ends the file: it has size bytes, and blocks below that which were
// never written are zero. gone drops it: it vanished while it was read.
func (f *FileWriter) Close(size int64, gone bool) error {
	f.mu.Lock()
	f.size, f.gone = size, gone
	f.olds = nil
	f.mu.Unlock()
	f.w.mu.Lock()
	f.closed = true
	n := len(f.w.queue)
	f.w.mu.Unlock()
	if n > queueLimit {
		if err := f.w.flushFill(); err != nil {
			return err
		}
	}
	return f.w.drain()
}

// blockSorter decides for consecutive blocks what is to become of each.
type blockSorter struct {
	f       *FileWriter
	curs    []oldCursor
	parts   []part
	pending [][]byte // new blocks that are not in a frame yet
	hashes  []Hash
	first   int64 // of pending
}

// oldCursor walks through the runs of a file's earlier version, and the hashes
// of its blocks.
type oldCursor struct {
	oldFile
	cur    runCursor
	blocks int64
	first  int64  // the block that the first hash is of
	known  []Hash // see oldHashes
}

// hash returns the hash of a block of the earlier version.
func (c *oldCursor) hash(n int64) (Hash, error) {
	if n < c.first || n >= c.first+int64(len(c.known)) {
		known, err := c.hashes.from(&c.oldFile, n)
		if err != nil {
			return noHash, err
		}
		c.first, c.known = n, known
	}
	return c.known[n-c.first], nil
}

func (b *blockSorter) sort(n int64, block []byte) error {
	if isZero(block) {
		if err := b.flush(); err != nil {
			return err
		}
		b.extend(part{first: n, count: 1, kind: zeroBlocks})
		return nil
	}
	h := b.f.w.hash(block)
	p, ok, err := b.unchanged(n, h)
	if err != nil {
		return err
	}
	if ok {
		if err := b.flush(); err != nil {
			return err
		}
		b.extend(p)
		return nil
	}
	if len(b.pending) == 0 {
		b.first = n
	}
	b.pending = append(b.pending, block)
	b.hashes = append(b.hashes, h)
	return nil
}

// unchanged says whether an earlier version has the same block at the same place.
func (b *blockSorter) unchanged(n int64, h Hash) (part, bool, error) {
	for i := range b.curs {
		c := &b.curs[i]
		if n >= c.blocks {
			continue
		}
		old, err := c.hash(n)
		if err != nil {
			return part{}, false, err
		}
		if old != h || h == noHash {
			continue
		}
		run, skip := c.cur.seek(n)
		number := b.f.w.packNumber(c.m.Packs[run.Pack], c.from.left)
		return part{first: n, count: 1, kind: oldBlocks, pack: number, from: run.First + uint32(skip), left: c.from.left, hashes: []Hash{h}}, true, nil
	}
	return part{}, false, nil
}

// extend appends a part or makes the last one longer.
func (b *blockSorter) extend(p part) {
	if k := len(b.parts); k > 0 {
		l := &b.parts[k-1]
		if l.kind == p.kind && l.first+l.count == p.first &&
			(p.kind == zeroBlocks || p.kind == oldBlocks && l.pack == p.pack && l.left == p.left && l.from+uint32(l.count) == p.from) {
			l.count += p.count
			l.hashes = append(l.hashes, p.hashes...)
			return
		}
	}
	b.parts = append(b.parts, p)
}

// flush puts the pending blocks into frames.
func (b *blockSorter) flush() error {
	for len(b.pending) > 0 {
		p, full, took := b.f.w.gather(b.pending, b.hashes)
		if took > 0 {
			p.first = b.first
			b.parts = append(b.parts, p)
		}
		b.pending, b.hashes, b.first = b.pending[took:], b.hashes[took:], b.first+int64(took)
		if full != nil {
			if err := b.f.w.place(full); err != nil {
				return err
			}
		}
	}
	b.pending, b.hashes = nil, nil
	return nil
}

// placed reports whether all frames that hold the file's blocks have a place.
func (f *FileWriter) placed() bool {
	for i := range f.parts {
		if fr := f.parts[i].frame; fr != nil && !fr.placed {
			return false
		}
	}
	return true
}

// entryOf makes the manifest's entry of a closed file and counts its blocks.
func (f *FileWriter) entryOf(t *Totals) *File {
	if f.kept != nil {
		return f.countKept(t)
	}
	file := &File{Entry: f.entry}
	if f.entry.Type != blockcopy.File {
		return file
	}
	file.Size = f.size
	t.Files++
	t.ClusterSize += f.size
	blocks := blockCount(f.size, f.w.o.BlockSize)
	t.Blocks += blocks

	slices.SortFunc(f.parts, func(a, b part) int { return cmp.Compare(a.first, b.first) })
	digest := sha256.New()
	next := int64(0)
	zero := func(n int64) {
		if n > 0 {
			file.Runs = appendRun(file.Runs, Run{Count: uint32(n), Pack: ZeroPack})
			for range n {
				digest.Write(zeros[:HashSize])
			}
			t.ZeroBlocks += n
			next += n
		}
	}
	for i := range f.parts {
		p := &f.parts[i]
		if p.first >= blocks { // the file was cut while it was read
			break
		}
		p.count = min(p.count, blocks-p.first)
		p.hashes = p.hashes[:min(int64(len(p.hashes)), p.count)]
		zero(p.first - next)
		if p.kind == zeroBlocks {
			zero(p.count)
			continue
		}
		r := Run{Count: uint32(p.count), Pack: p.pack, First: p.from}
		if p.kind == newBlocks {
			r.Pack, r.First = p.frame.pack, p.frame.first+p.index
			t.NewBlocks += p.count
			t.NewSize += f.bytes(p)
		} else if p.left {
			t.NewBlocks += p.count
			t.ResumedBlocks += p.count
			t.NewSize += f.bytes(p)
		} else {
			t.OldBlocks += p.count
		}
		f.stored = f.stored || p.kind == newBlocks || p.left
		file.Runs = appendRun(file.Runs, r)
		for _, h := range p.hashes {
			digest.Write(h[:])
		}
		next += p.count
	}
	zero(blocks - next)
	file.Digest = Hash(digest.Sum(nil)[:HashSize])
	f.parts = nil
	return file
}

// bytes is the size of a part.
func (f *FileWriter) bytes(p *part) int64 {
	bs := int64(f.w.o.BlockSize)
	return min((p.first+p.count)*bs, f.size) - p.first*bs
}

// appendRun appends r, joined to the last run where the two are one.
func appendRun(runs []Run, r Run) []Run {
	if k := len(runs); k > 0 {
		l := &runs[k-1]
		if l.Pack == r.Pack && (r.Pack == ZeroPack || l.First+l.Count == r.First) {
			l.Count += r.Count
			return runs
		}
	}
	return append(runs, r)
}
