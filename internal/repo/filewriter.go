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
	old   *File // the parent's entry, may be nil

	mu     sync.Mutex
	parts  []part
	closed bool
	gone   bool
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
	b := blockSorter{f: f, cur: runCursor{}, parts: make([]part, 0, 4)}
	if f.old != nil {
		b.cur.runs = f.old.Runs
		b.oldBlocks = blockCount(f.old.Size, f.w.o.BlockSize)
	}
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

// Close ends the file: it has size bytes, and blocks below that which were
// never written are zero. gone drops it: it vanished while it was read.
func (f *FileWriter) Close(size int64, gone bool) error {
	f.mu.Lock()
	f.size, f.gone = size, gone
	f.old = nil
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
	f         *FileWriter
	cur       runCursor
	oldBlocks int64
	parts     []part
	pending   [][]byte // new blocks that are not in a frame yet
	hashes    []Hash
	first     int64 // of pending
}

func (b *blockSorter) sort(n int64, block []byte) error {
	if isZero(block) {
		if err := b.flush(); err != nil {
			return err
		}
		b.extend(part{first: n, count: 1, kind: zeroBlocks})
		return nil
	}
	h := HashBlock(block)
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

// unchanged says whether the parent has the same block at the same place.
func (b *blockSorter) unchanged(n int64, h Hash) (part, bool, error) {
	if n >= b.oldBlocks {
		return part{}, false, nil
	}
	run, skip := b.cur.seek(n)
	if run.Pack == ZeroPack {
		return part{}, false, nil
	}
	p := b.f.w.parent
	at := run.First + uint32(skip)
	idx, err := p.index(run.Pack)
	if err != nil || idx == nil || idx.blocks[at].hash != h {
		return part{}, false, err
	}
	number := b.f.w.packNumber(p.m.Packs[run.Pack])
	return part{first: n, count: 1, kind: oldBlocks, pack: number, from: at, hashes: []Hash{h}}, true, nil
}

// extend appends a part or makes the last one longer.
func (b *blockSorter) extend(p part) {
	if k := len(b.parts); k > 0 {
		l := &b.parts[k-1]
		if l.kind == p.kind && l.first+l.count == p.first &&
			(p.kind == zeroBlocks || p.kind == oldBlocks && l.pack == p.pack && l.from+uint32(l.count) == p.from) {
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
			t.NewSize += min((p.first+p.count)*int64(f.w.o.BlockSize), f.size) - p.first*int64(f.w.o.BlockSize)
		} else {
			t.OldBlocks += p.count
		}
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
