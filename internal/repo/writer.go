package repo

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
