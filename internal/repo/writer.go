package repo

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
)

// WriterOptions tune a backup.
type WriterOptions struct {
	Tool      string // program and version
	BlockSize uint32
	// Parent is the backup to compare with; "" stores every block.
	Parent     string
	Level      Level
	FrameBytes int   // of a frame before compression, DefaultFrameBytes where 0
	PackBytes  int64 // of a pack, DefaultPackBytes where 0
}

// BackupWriter writes one backup. Files are opened in path order, filled from
// several goroutines, and closed; Commit makes the backup exist, Abort removes
// what there is of it. Memory is bounded by the frames at work.
//
//	File --> WriteAt (hash, compare, gather) --> frame --> compress --> pack
//	  \--> Close --> queue, in path order --> manifest, once its frames are placed
type BackupWriter struct {
	ctx     context.Context
	cancel  context.CancelFunc
	cluster *Cluster
	o       WriterOptions
	started Started
	packs   packer
	parent  *parentReader

	manifest *manifestWriter
	upload   *upload

	fillMu sync.Mutex
	fill   *frame

	// mu guards what follows. It is taken last and held briefly.
	mu       sync.Mutex
	table    []Pack
	tableOf  map[string]int32
	queue    []*FileWriter // opened and not in the manifest yet, in path order
	lastPath string
	line     []byte
	totals   Totals
	done     bool // nothing more may be written

	committed   bool
	parentFault error
}

// Totals counts what a backup consists of.
type Totals struct {
	Files       int64
	ClusterSize int64
	Blocks      int64
	ZeroBlocks  int64
	OldBlocks   int64
	NewBlocks   int64
	NewSize     int64
}

// queueLimit is how many files may wait for a frame that is not full yet.
const queueLimit = 4096

// NewBackup begins a backup: it announces it under an identifier made of the
// time, and opens its manifest.
func (c *Cluster) NewBackup(ctx context.Context, o WriterOptions) (*BackupWriter, error) {
	o.FrameBytes = cmp.Or(o.FrameBytes, DefaultFrameBytes)
	o.PackBytes = cmp.Or(o.PackBytes, DefaultPackBytes)
	w := &BackupWriter{cluster: c, o: o, tableOf: map[string]int32{}}
	if err := w.announce(ctx); err != nil {
		return nil, err
	}
	w.ctx, w.cancel = context.WithCancel(ctx)
	w.packs = packer{ctx: w.ctx, cluster: c, id: w.started.ID, level: o.Level, blockSize: o.BlockSize, packBytes: o.PackBytes,
		newPack: w.newPack, endPack: w.endPack}
	w.packs.init()
	if err := w.open(); err != nil {
		w.Abort()
		return nil, err
	}
	return w, nil
}

func (w *BackupWriter) open() error {
	if w.o.Parent != "" {
		p, err := openParent(w.ctx, w.cluster, w.o.Parent)
		var bad *CorruptError
		if errors.As(err, &bad) {
			w.parentFault = err
			return w.openManifest()
		}
		if err != nil {
			return err
		}
		if p.m.BlockSize != w.o.BlockSize {
			return exit.New(exit.Refused, "take a full backup", "the block size was %d in backup %s and is %d now",
				p.m.BlockSize, w.o.Parent, w.o.BlockSize)
		}
		w.parent = p
	}
	return w.openManifest()
}

func (w *BackupWriter) openManifest() error {
	h := w.cluster.manifestHeader(w.started.ID)
	w.upload = startUpload(w.ctx, w.cluster.driver, h.Name)
	var err error
	w.manifest, err = newManifestWriter(w.upload, h)
	return err
}

// announce finds a free identifier and takes it.
func (w *BackupWriter) announce(ctx context.Context) error {
	began := now()
	w.started = newStarted(w.o.Tool, began)
	for i := range 60 {
		w.started.ID = began.Add(time.Duration(i) * time.Second).Format("20060102T150405Z")
		data, err := json.Marshal(&w.started)
		if err != nil {
			return err
		}
		err = putBytes(ctx, w.cluster.driver, w.cluster.startedName(w.started.ID), append(data, '\n'))
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrExist) {
			return exit.Wrap(err, exit.Failed, "", "cannot write to the repository %s", w.cluster.repo.Location())
		}
	}
	return errors.New("no free backup identifier")
}

// ID is the backup's identifier.
func (w *BackupWriter) ID() string { return w.started.ID }

// ParentFault says why the parent could not be compared with, or not to its
// end: its manifest is damaged. Blocks are then stored again.
func (w *BackupWriter) ParentFault() error {
	if w.parent != nil {
		return w.parent.fault
	}
	return w.parentFault
}

// Totals returns what has been written so far.
func (w *BackupWriter) Totals() Totals {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.totals
}

func (w *BackupWriter) newPack(p Pack) int32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.addPack(p)
}

// addPack gives a pack its number; mu is held.
func (w *BackupWriter) addPack(p Pack) int32 {
	n := int32(len(w.table))
	w.table = append(w.table, p)
	w.tableOf[p.Name] = n
	return n
}

func (w *BackupWriter) endPack(n int32, p Pack) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.table[n] = p
}

// packNumber returns the number of a pack of the parent.
func (w *BackupWriter) packNumber(p Pack) int32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n, ok := w.tableOf[p.Name]; ok {
		return n
	}
	return w.addPack(p)
}

// File opens the next entry. Entries come in ascending byte order of their
// paths; File is called by one goroutine at a time. The entry of a directory
// or a link is closed at once.
func (w *BackupWriter) File(e blockcopy.Entry) (*FileWriter, error) {
	f := &FileWriter{w: w, entry: e}
	if w.parent != nil && e.Type == blockcopy.File {
		old, err := w.parent.find(e.Path)
		if err != nil {
			return nil, err
		}
		f.old = old
	}
	if e.Type != blockcopy.File {
		f.closed = true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if e.Path <= w.lastPath {
		return nil, fmt.Errorf("%s comes after %s", e.Path, w.lastPath)
	}
	w.lastPath = e.Path
	w.queue = append(w.queue, f)
	return f, nil
}

// FileWriter takes the content of one file.
type FileWriter struct {
	w     *BackupWriter
	entry blockcopy.Entry
	old   *File // the parent's entry, may be nil
	kept  *File // the entry, where it is the parent's (see Keep)

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

// gather copies blocks into the frame that is being filled. It returns that
// frame when it is full: the caller compresses it.
func (w *BackupWriter) gather(blocks [][]byte, hashes []Hash) (p part, full *frame, took int) {
	w.fillMu.Lock()
	defer w.fillMu.Unlock()
	if w.fill == nil {
		w.fill = &frame{raw: *getBuffer(0)}
	}
	f := w.fill
	p = part{kind: newBlocks, frame: f, index: uint32(len(f.blocks))}
	for _, b := range blocks {
		if len(f.raw)+len(b) > w.o.FrameBytes && len(f.raw) > 0 {
			break
		}
		f.raw = append(f.raw, b...)
		f.blocks = append(f.blocks, blockInfo{uint32(len(b)), hashes[took]})
		took++
	}
	p.count, p.hashes = int64(took), slices.Clone(hashes[:took])
	if took < len(blocks) || len(f.raw) >= w.o.FrameBytes {
		full, w.fill = f, nil
	}
	return p, full, took
}

// place compresses a full frame and puts it into a pack.
func (w *BackupWriter) place(f *frame) error {
	if err := w.packs.add(f); err != nil {
		return err
	}
	raw := f.raw
	w.mu.Lock()
	f.placed = true
	f.raw, f.blocks = nil, nil
	w.mu.Unlock()
	putBuffer(&raw)
	return w.drain()
}

// flushFill places the frame that is being filled.
func (w *BackupWriter) flushFill() error {
	w.fillMu.Lock()
	f := w.fill
	w.fill = nil
	w.fillMu.Unlock()
	if f == nil {
		return nil
	}
	return w.place(f)
}

// drain writes the entries at the head of the queue that are complete.
func (w *BackupWriter) drain() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.queue) > 0 && !w.done {
		f := w.queue[0]
		if !f.closed || !f.placed() {
			return nil
		}
		w.queue[0] = nil
		w.queue = w.queue[1:]
		if f.gone {
			continue
		}
		w.line = appendFile(w.line[:0], f.entryOf(&w.totals))
		if err := w.manifest.line(w.line); err != nil {
			return err
		}
	}
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

// Flush makes every block that was written durable in its packs. The manifest
// is still open.
func (w *BackupWriter) Flush() error {
	if err := w.flushFill(); err != nil {
		return err
	}
	return w.packs.finish()
}

// Commit makes the backup exist. The caller fills in what it knows; the rest
// of the summary (identifier, type, counts) is Commit's.
func (w *BackupWriter) Commit(s *Summary) error {
	if err := w.commit(s); err != nil {
		return errors.Join(err, w.Abort())
	}
	w.committed = true
	w.cancel()
	return nil
}

func (w *BackupWriter) commit(s *Summary) error {
	if err := w.Flush(); err != nil {
		return err
	}
	if err := w.drain(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) > 0 {
		return fmt.Errorf("%s was not closed", w.queue[0].entry.Path)
	}
	t := w.totals
	s.Format, s.Version = manifestFormat, manifestVersion
	s.ID, s.Tool, s.SystemID, s.BlockSize = w.started.ID, w.o.Tool, SystemID(w.cluster.systemID), w.o.BlockSize
	s.Type, s.Parent = Full, ""
	if w.parent != nil {
		s.Type, s.Parent = Incremental, w.o.Parent
	}
	s.Files, s.ClusterSize, s.Blocks = t.Files, t.ClusterSize, t.Blocks
	s.ZeroBlocks, s.OldBlocks, s.NewBlocks, s.NewSize = t.ZeroBlocks, t.OldBlocks, t.NewBlocks, t.NewSize
	s.StoredSize, s.PackCount = w.packs.stored, len(w.table)
	if err := s.Validate(); err != nil {
		return fmt.Errorf("the backup's own summary is wrong: %w", err)
	}
	if err := w.manifest.finish(w.table, s); err != nil {
		return err
	}
	w.done = true
	s.ManifestSize = w.manifest.obj.off
	up := w.upload
	w.upload = nil
	return up.close()
}

// Abort gives the backup up and removes what there is of it. It is harmless
// after Commit, and works when the backup's context was cancelled. No other
// method may be running.
func (w *BackupWriter) Abort() error {
	if w.committed {
		return nil
	}
	w.cancel()
	w.mu.Lock()
	w.done = true
	w.mu.Unlock()
	w.packs.abort()
	if w.upload != nil {
		w.upload.abort()
		w.upload = nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), time.Minute)
	defer cancel()
	if err := w.cluster.removeUnfinished(ctx, w.started.ID); !errors.Is(err, ErrLocked) {
		return err
	}
	return nil
}

// removeUnfinished removes the packs and the announcement of a backup that has
// no manifest. No manifest can name its packs: only complete backups are
// compared with. What the store's lock keeps is left, with an ErrLocked.
func (c *Cluster) removeUnfinished(ctx context.Context, id string) error {
	obj, err := c.driver.Get(ctx, c.manifestHeader(id).Name, 0, 0)
	if err == nil {
		return obj.Close() // complete after all
	}
	if !errors.Is(err, ErrNotExist) {
		return err
	}
	var names []string
	err = c.driver.List(ctx, c.prefix+"packs/"+id+"/", func(i ObjectInfo) error {
		names = append(names, i.Name)
		return nil
	})
	if err != nil {
		return err
	}
	var locked error
	for _, n := range append(names, c.startedName(id)) {
		err := c.driver.Delete(ctx, n)
		switch {
		case errors.Is(err, ErrLocked):
			locked = err // stays until a later run
		case err != nil:
			return err
		}
	}
	return locked
}

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
	there, err := c.packSizes(ctx)
	return &parentReader{m: m, files: m.Files(ctx), ctx: ctx, there: there}, err
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
