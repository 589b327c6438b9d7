package repo

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
)

// WriterOptions tune a backup.
type WriterOptions struct {
	Tool      string // program and version
	BlockSize uint32
	ID        string   // of the backup, for a copy; by default what it is announced as
	Name      string   // the identifier to announce; by default the next free one
	owners    []string // of the packs that a copy brings
	// Parent is the backup to compare with; "" stores every block.
	Parent     string
	AnyOrder   bool // files are opened in any order, and none twice
	Level      Level
	FrameBytes int   // of a frame before compression, DefaultFrameBytes where 0
	PackBytes  int64 // of a pack, DefaultPackBytes where 0
}

// BackupWriter writes one backup. Files are opened in path order, filled from
// several goroutines, and closed; Commit makes the backup exist, Suspend leaves
// what is durable for the next one to go on from, Abort removes it. Memory is
// bounded by the frames at work.
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
	key     *contentKey
	hash    func([]byte) Hash
	parent  *comparison   // nil: nothing to compare with
	left    []*comparison // what interrupted backups had stored
	parts   partKeeper

	manifest *manifestWriter
	upload   *upload
	sorted   *sortedLines // with AnyOrder: what goes into the manifest at the end

	fillMu sync.Mutex
	fill   *frame

	// mu guards what follows. It is taken last and held briefly.
	mu      sync.Mutex
	table   []Pack
	tableOf map[string]int32
	queue   []*FileWriter // opened and not in the manifest yet, in path order
	order   pathOrder
	line    []byte
	totals  Totals
	done    bool // nothing more may be written

	committed    bool
	parentFault  error
	compareFault error // the compare key could not be kept
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
	// ResumedBlocks are those of the new ones that an interrupted backup had
	// stored, and ResumedSize the packs that they are in.
	ResumedBlocks int64
	ResumedSize   int64
}

// queueLimit is how many files may wait for a frame that is not full yet.
const queueLimit = 4096

// NewBackup begins a backup: it announces it under an identifier made of the
// time, and opens its manifest.
func (c *Cluster) NewBackup(ctx context.Context, o WriterOptions) (*BackupWriter, error) {
	o.FrameBytes = cmp.Or(o.FrameBytes, DefaultFrameBytes)
	o.PackBytes = cmp.Or(o.PackBytes, DefaultPackBytes)
	w := &BackupWriter{cluster: c, o: o, tableOf: map[string]int32{}, hash: HashBlock}
	if err := w.useKey(ctx); err != nil {
		return nil, err
	}
	if err := w.announce(ctx); err != nil {
		return nil, err
	}
	// What is in flight when the caller gives up is finished, so that the next
	// backup finds it; but not at any price.
	w.ctx, w.cancel = context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() { time.AfterFunc(suspendTime, w.cancel) })
	w.packs = packer{ctx: w.ctx, cluster: c, id: w.started.ID, level: o.Level, blockSize: o.BlockSize, packBytes: o.PackBytes,
		key: w.key, newPack: w.newPack, endPack: w.endPack, durable: w.packDurable}
	w.packs.init()
	if err := w.open(); err != nil {
		w.Abort()
		return nil, err
	}
	return w, nil
}

// useKey prepares the encryption of the packs.
func (w *BackupWriter) useKey(ctx context.Context) error {
	r := w.cluster.repo
	if r.ring == nil {
		return nil
	}
	compare, err := r.ensureCompareKey()
	if compare == nil {
		return err
	}
	w.compareFault = err
	if w.key, err = r.ring.newKey(ctx, compare); err != nil {
		return err
	}
	w.hash = newBlockHasher(*compare).sum
	return nil
}

// encryption describes the packs for the manifest.
func (w *BackupWriter) encryption() *Encryption {
	if w.key == nil {
		return nil
	}
	return &Encryption{Scheme: encryptionScheme, Epoch: hex.EncodeToString(w.key.epoch[:]), CompareKey: compareKeyID(w.key.compare)}
}

func (w *BackupWriter) open() error {
	var err error
	if w.left, err = w.openLeft(); err != nil {
		return err
	}
	if w.o.Parent == "" {
		return w.openManifest()
	}
	p, err := openParent(w.ctx, w.cluster, w.o.Parent, w.o.AnyOrder)
	var bad *CorruptError
	if errors.As(err, &bad) {
		w.parentFault = err
		return w.openManifest()
	}
	if err != nil {
		return err
	}
	m := p.manifest
	if m.BlockSize != w.o.BlockSize {
		return exit.New(exit.Refused, "take a full backup", "the block size was %d in backup %s and is %d now",
			m.BlockSize, w.o.Parent, w.o.BlockSize)
	}
	if !w.comparable(m.Encryption) {
		w.parentFault = fmt.Errorf("backup %s was made with another compare key than the one this account has", w.o.Parent)
		return w.openManifest()
	}
	w.parent = p
	return w.openManifest()
}

// comparable tells whether blocks of packs that were encrypted as e says can
// be recognised.
func (w *BackupWriter) comparable(e *Encryption) bool {
	own := w.encryption()
	if own == nil || e == nil {
		return own == nil && e == nil
	}
	return own.CompareKey == e.CompareKey
}

func (w *BackupWriter) openManifest() error {
	if w.o.AnyOrder {
		var err error
		if w.sorted, err = newSortedLines(); err != nil {
			return err
		}
	}
	h := w.cluster.manifestHeader(cmp.Or(w.o.ID, w.started.ID))
	w.upload = startUpload(w.ctx, w.cluster.driver, h.Name)
	var err error
	w.manifest, err = newManifestWriter(w.upload, h)
	return err
}

// fileLine puts the line of a file into the manifest.
func (w *BackupWriter) fileLine(path string, line []byte) error {
	if w.sorted != nil {
		return w.sorted.add(path, line)
	}
	return w.manifest.line(line)
}

// closeSpools gives temporary files back.
func (w *BackupWriter) closeSpools() {
	if w.sorted != nil {
		w.sorted.close()
	}
	for _, c := range append(w.left, w.parent) {
		if c != nil && c.lookup != nil {
			c.lookup.close()
		}
	}
}

// announce finds a free identifier and takes it.
func (w *BackupWriter) announce(ctx context.Context) error {
	began := w.cluster.clock()
	w.started = newStarted(w.o.Tool, began)
	if w.o.ID != "" {
		w.started.Copy = &CopyNote{Backup: w.o.ID, Owners: w.o.owners}
	}
	for i := range 60 {
		if w.started.ID = w.cluster.newID(began.Add(time.Duration(i) * time.Second)); w.o.Name != "" {
			w.started.ID = w.o.Name
		}
		// The identifier of a backup that was deleted may still have packs.
		if packs, err := w.cluster.listPacks(ctx, w.started.ID); err != nil {
			return exit.Wrap(err, exit.Failed, "", "cannot read the repository %s", w.cluster.repo.Location())
		} else if len(packs) > 0 && w.o.Name == "" {
			continue
		} else if len(packs) > 0 {
			break
		}
		err := putNote(ctx, w.cluster.driver, w.cluster.startedName(w.started.ID), &w.started)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrExist) {
			return exit.Wrap(err, exit.Failed, "", "cannot write to the repository %s", w.cluster.repo.Location())
		}
		if w.o.Name != "" {
			break
		}
	}
	return exit.New(exit.Failed, "run the command again", "no free backup identifier in %s", w.cluster.repo.Location())
}

// originLength is how much of a repository's own identifier ends those of the
// backups that are made there.
const originLength = 4

// newID makes the identifier of a backup: when it began, and which repository
// it was made in. Repositories do not know of each other, and a backup of one
// that is copied into another must not be taken for one of that second there.
func (c *Cluster) newID(began time.Time) string {
	return began.Format("20060102T150405Z") + "-" + c.repo.id[:min(originLength, len(c.repo.id))]
}

// ID is the backup's identifier.
func (w *BackupWriter) ID() string { return w.started.ID }

// ParentFault says why the parent could not be compared with, or not to its
// end: its manifest is damaged, or the key for it is not here. Blocks are then
// stored again.
func (w *BackupWriter) ParentFault() error {
	if w.parent != nil {
		return w.parent.fault
	}
	return errors.Join(w.parentFault, w.compareFault)
}

// Resumes names the interrupted backups whose blocks are used.
func (w *BackupWriter) Resumes() []string {
	var ids []string
	for _, l := range w.left {
		ids = append(ids, l.id)
	}
	return ids
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
	if strings.HasPrefix(p.Name, w.started.ID+"/") {
		w.parts.begun++
	}
	w.tableOf[p.Name] = n
	return n
}

func (w *BackupWriter) endPack(n int32, p Pack) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.table[n] = p
}

// packNumber returns the number of a pack that was there before. left says that
// an interrupted backup stored it.
func (w *BackupWriter) packNumber(p Pack, left bool) int32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n, ok := w.tableOf[p.Name]; ok {
		return n
	}
	if left {
		w.totals.ResumedSize += p.Size
	}
	return w.addPack(p)
}

// File opens the next entry. Entries come in ascending byte order of their
// paths, a segment at TailPath last, unless AnyOrder; File is called by one goroutine at a time. The entry of a directory
// or a link is closed at once.
func (w *BackupWriter) File(e blockcopy.Entry) (*FileWriter, error) {
	f := &FileWriter{w: w, entry: e}
	if e.Type == blockcopy.File {
		if err := f.findOld(); err != nil {
			return nil, err
		}
	}
	if e.Type != blockcopy.File {
		f.closed = true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.o.AnyOrder && !w.order.next(e.Path) {
		return nil, fmt.Errorf("%s comes after %s", e.Path, w.order.last)
	}
	w.queue = append(w.queue, f)
	return f, nil
}

// Flush makes every block that was written durable in its packs. The manifest
// is still open.
func (w *BackupWriter) Flush() error {
	if err := w.flushFill(); err != nil {
		return err
	}
	return w.packs.finish()
}

// Commit makes the backup exist. After an error the caller says what becomes of
// the rest: Suspend or Abort. The caller fills in what it knows; the rest
// of the summary (identifier, type, counts) is Commit's.
func (w *BackupWriter) Commit(s *Summary) error {
	if err := w.commit(s); err != nil {
		return err
	}
	w.committed = true
	w.removeParts()
	w.cancel()
	w.closeSpools()
	return nil
}

func (w *BackupWriter) commit(s *Summary) error {
	if err := w.Flush(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.drainQueue(); err != nil { // all parts are written, and no more are wanted
		return err
	}
	if len(w.queue) > 0 {
		return fmt.Errorf("%s was not closed", w.queue[0].entry.Path)
	}
	t := w.totals
	s.Format, s.Version = manifestFormat, manifestVersion
	s.ID, s.Tool, s.SystemID, s.BlockSize = cmp.Or(w.o.ID, w.started.ID), w.o.Tool, SystemID(w.cluster.systemID), w.o.BlockSize
	s.Type, s.Parent = Full, ""
	if w.parent != nil {
		s.Type, s.Parent = Incremental, w.o.Parent
	}
	s.Files, s.ClusterSize, s.Blocks = t.Files, t.ClusterSize, t.Blocks
	s.ZeroBlocks, s.OldBlocks, s.NewBlocks, s.NewSize = t.ZeroBlocks, t.OldBlocks, t.NewBlocks, t.NewSize
	s.StoredSize, s.PackCount, s.ResumedBlocks = w.packs.stored+t.ResumedSize, len(w.table), t.ResumedBlocks
	s.Encryption = w.encryption()
	if err := s.Validate(); err != nil {
		return fmt.Errorf("the backup's own summary is wrong: %w", err)
	}
	if err := w.stillThere(); err != nil {
		return err
	}
	if w.sorted != nil {
		if err := w.sorted.writeTo(w.manifest); err != nil {
			return err
		}
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
