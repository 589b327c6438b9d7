package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"tidemark/internal/exit"
	"tidemark/pkg/wal"
)

// WAL files are stored in blocks of walBlock bytes, a frame each, so that
// several processors work on one segment. Part of the format, do not change.
const (
	walBlock    = 1 << 20
	maxTextFile = 16 << 20 // .history and .backup files are a few lines
)

// ErrNotArchived is returned when the archive provably lacks a WAL file: the
// repository answered, and the file is not in it. Any other error is a fault.
var ErrNotArchived error = &kind{"not in the archive", ErrNotExist}

// WALConflictError says that the archive holds something else under a name.
type WALConflictError struct {
	Name   string
	Offset int64 // the first block that differs begins here; -1 when the sizes differ
}

func (e *WALConflictError) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("the archive holds a %s of another size", e.Name)
	}
	return fmt.Sprintf("the archive holds a %s with other content (from offset %d on)", e.Name, e.Offset)
}

// WALPush is what PushWAL did.
type WALPush struct {
	Existed bool  // the archive had it already, with the same content
	Size    int64 // of the file
	Stored  int64 // of the object; 0 when Existed
	Object  Hash  // which object this is, as WALObject tells it; zero when Existed
}

// walObject returns the header of the object that holds a WAL file.
func (c *Cluster) walObject(f wal.FileName) header {
	return header{Kind: kindWAL, SystemID: c.systemID, MaxBlock: walBlock,
		Name: fmt.Sprintf("%swal/%08X/%s.zst", c.prefix, uint32(f.Timeline), f)}
}

// WALName is the name of the object that holds a WAL file; "" for what is none.
func (c *Cluster) WALName(name string) string {
	f, ok := wal.ParseFileName(name)
	if !ok {
		return ""
	}
	return c.walObject(f).Name
}

func parseWALName(name string) (wal.FileName, error) {
	f, ok := wal.ParseFileName(name)
	if !ok {
		return f, exit.New(exit.Refused, "give the name of a segment, or of a .partial, .history or .backup file",
			"%q is not the name of a WAL file", name)
	}
	return f, nil
}

// PushWAL stores a WAL file: a segment, or a .partial, .history or .backup
// file. It is durable when PushWAL returns. A segment is checked first: it has
// to be of this cluster, and be the segment that its name says. What the
// archive holds already is compared: the same content is success, other
// content is a *WALConflictError, and nothing is ever replaced.
func (c *Cluster) PushWAL(ctx context.Context, name string, content io.ReaderAt, size int64) (WALPush, error) {
	f, err := parseWALName(name)
	if err != nil {
		return WALPush{}, err
	}
	check, err := c.checkWAL(f, content, size)
	if err != nil {
		return WALPush{}, err
	}
	file := walContent{content, size, check}
	h := c.walObject(f)
	push := WALPush{Size: size}
	var key *contentKey
	if c.repo.ring != nil {
		if key, err = c.repo.ring.newKey(ctx, nil); err != nil {
			return WALPush{}, err
		}
	}
	err = c.driver.Put(ctx, h.Name, func(w io.Writer) error {
		obj, err := newObjectWriter(w, h, key)
		if err != nil {
			return err
		}
		if err := file.write(ctx, obj); err != nil {
			return err
		}
		if err := obj.finish(); err != nil {
			return err
		}
		push.Stored, push.Object = obj.off, obj.sum
		return nil
	})
	if errors.Is(err, ErrExist) {
		return WALPush{Existed: true, Size: size}, c.compareWAL(ctx, h, name, file)
	}
	if exit.CodeOf(err) == exit.Refused {
		return WALPush{}, err
	}
	if err != nil {
		return WALPush{}, fmt.Errorf("storing %s in %s: %w", name, c.repo.Location(), err)
	}
	return push, nil
}

// walContent is a WAL file that is to be archived.
type walContent struct {
	io.ReaderAt
	size  int64
	check func(off int64, block []byte) error // what a block at an offset has to be
}

// block fills a buffer with the block at an offset and checks it.
func (w walContent) block(buf []byte, off int64) error {
	if _, err := w.ReadAt(buf, off); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading at %d: %w", off, err)
	}
	return w.check(off, buf)
}

// write compresses the blocks of the file in parallel and writes them in order.
func (w walContent) write(ctx context.Context, obj *objectWriter) error {
	type frame struct {
		stored *[]byte
		info   blockInfo
	}
	workers := runtime.GOMAXPROCS(0)
	queue := make(chan chan frame, workers)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(queue)
		for off := int64(0); off < w.size; off += walBlock {
			slot := make(chan frame, 1)
			select {
			case queue <- slot:
			case <-ctx.Done():
				return ctx.Err()
			}
			g.Go(func() error {
				defer close(slot)
				raw := getBuffer(int(min(walBlock, w.size-off)))
				defer putBuffer(raw)
				if err := w.block(*raw, off); err != nil {
					return err
				}
				z := getBuffer(0)
				*z = compress(LevelFast, *raw, (*z)[:0])
				slot <- frame{z, blockInfo{uint32(len(*raw)), HashBlock(*raw)}}
				return nil
			})
		}
		return nil
	})
	g.Go(func() error {
		for slot := range queue {
			fr, ok := <-slot
			if !ok {
				return nil // its maker returns the error
			}
			if err := obj.add(*fr.stored, []blockInfo{fr.info}); err != nil {
				return err
			}
			putBuffer(fr.stored)
		}
		return nil
	})
	return g.Wait()
}

// compareWAL compares a file with what the archive holds: the server deletes
// its copy when this succeeds. The blocks of the file are compared by their
// hashes, and what is stored by its checksums, so that nothing is decompressed
// but a block that differs.
func (c *Cluster) compareWAL(ctx context.Context, h header, name string, file walContent) error {
	idx, err := c.readIndex(ctx, h)
	if err != nil {
		return err
	}
	if idx.raw != file.size {
		return conflict(&WALConflictError{Name: name, Offset: -1})
	}
	if len(idx.frames) != len(idx.blocks) {
		return &CorruptError{Object: idx.path, Offset: -1, Part: "index", Reason: "its blocks are not those of a WAL file"}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	g.Go(func() error { return idx.checkStored(gctx, c.driver) })
	differs := make([]bool, len(idx.blocks))
	offsets := make([]int64, len(idx.blocks))
	for i, off := 0, int64(0); i < len(idx.blocks); i++ {
		b := idx.blocks[i]
		at := off
		off += int64(b.length)
		offsets[i] = at
		g.Go(func() error {
			ours := getBuffer(int(b.length))
			defer putBuffer(ours)
			if err := file.block(*ours, at); err != nil {
				return err
			}
			differs[i] = HashBlock(*ours) != b.hash
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if i := slices.Index(differs, true); i >= 0 {
		return c.conflictIn(ctx, idx, i, name, file, offsets[i])
	}
	return nil
}

// conflictIn finds the first byte that differs in a block whose hash does.
func (c *Cluster) conflictIn(ctx context.Context, idx *objectIndex, frame int, name string, content io.ReaderAt, at int64) error {
	if idx.encrypted() && !c.repo.Unlocked() {
		return conflict(&WALConflictError{Name: name, Offset: at})
	}
	stored, err := idx.readFrame(ctx, c.driver, frame, nil)
	if err != nil {
		return err
	}
	ours := make([]byte, len(stored))
	if _, err := content.ReadAt(ours, at); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for i := range stored {
		if ours[i] != stored[i] {
			return conflict(&WALConflictError{Name: name, Offset: at + int64(i)})
		}
	}
	return fmt.Errorf("%s changed while it was compared", name)
}

func conflict(err *WALConflictError) error {
	return exit.Hint(err, "two servers archive under one name: is this a clone, or a standby that was promoted by deleting its signal file? "+
		"Set archive_mode = off on the one that should not archive, or give it its own repository; nothing was changed\n"+
		"with archive_mode = always on standbys this happens at a failover: use archive_mode = on")
}

// WALFile is a WAL file in the archive, open for reading. Blocks are decoded
// and checked when they are read.
type WALFile struct {
	ctx    context.Context
	idx    *objectIndex
	frames *frameCache
}

// OpenWAL opens a WAL file of the archive; ErrNotArchived where there is none.
// ctx governs the reads as well.
func (c *Cluster) OpenWAL(ctx context.Context, name string) (*WALFile, error) {
	f, err := parseWALName(name)
	if err != nil {
		return nil, err
	}
	idx, err := c.readIndex(ctx, c.walObject(f))
	if errors.Is(err, ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", name, ErrNotArchived)
	}
	if err != nil {
		return nil, err
	}
	for i, fr := range idx.frames {
		if fr.blocks != 1 || fr.raw != walBlock && i != len(idx.frames)-1 {
			return nil, &CorruptError{Object: idx.path, Offset: fr.offset, Part: "index", Reason: "its blocks are not those of a WAL file"}
		}
	}
	return &WALFile{ctx: ctx, idx: idx, frames: newFrameCache(c.driver, 4*walBlock)}, nil
}

// Size is the file's size.
func (f *WALFile) Size() int64 { return f.idx.raw }

// Close does nothing.
func (f *WALFile) Close() error { return nil }

// ReadAt implements io.ReaderAt.
func (f *WALFile) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		if off >= f.idx.raw {
			return n, io.EOF
		}
		raw, err := f.frames.get(f.ctx, f.idx, int(off/walBlock))
		if err != nil {
			return n, err
		}
		k := copy(p[n:], raw[off%walBlock:])
		n, off = n+k, off+int64(k)
	}
	return n, nil
}

// FetchWAL writes a WAL file to w, each block after it was checked, and
// returns its size. ErrNotArchived means that the archive lacks it; with any
// other error w may have received a part.
func (c *Cluster) FetchWAL(ctx context.Context, name string, w io.Writer) (int64, error) {
	f, err := c.OpenWAL(ctx, name)
	if err != nil {
		return 0, err
	}
	var buf []byte
	for i := range f.idx.frames {
		if buf, err = f.idx.readFrame(ctx, c.driver, i, buf); err != nil {
			return 0, err
		}
		if _, err := w.Write(buf); err != nil {
			return 0, err
		}
	}
	return f.idx.raw, nil
}
