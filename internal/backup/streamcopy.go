package backup

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/internal/repo"
	"tidemark/pkg/volume"
)

// pieceBytes is what one worker checks, hashes and compresses at once: blocks of
// any legal size are whole in it.
const pieceBytes = 256 << 10

// maxSmallFile bounds the files that are read into memory: the label and the
// control file.
const maxSmallFile = 64 << 10

// receive takes the files as the server sends them, with the WAL keepers beside it.
func (j *job) receive(ctx context.Context, ds destinations) error {
	total := int64(0)
	for _, a := range j.stream.backup.Archives {
		total += a.Size
	}
	j.Progress.Phase("copying", total, progress.Bytes)
	p := &incoming{packing: newPacking(j, ds), pieces: make(chan piece)}
	p.buffers.New = func() any { return new([pieceBytes]byte) }
	g, ctx := errgroup.WithContext(ctx)
	copied := make(chan struct{})
	g.Go(func() error { return ds.watch(ctx, copied, j.server.current) })
	g.Go(func() error {
		defer close(copied)
		return p.archives(ctx)
	})
	if err := g.Wait(); err != nil {
		return err
	}
	return j.sent(ds)
}

// incoming takes a base backup apart: one goroutine reads the archives, several
// take the pieces.
type incoming struct {
	*packing
	pieces  chan piece
	buffers sync.Pool // of *[pieceBytes]byte
}

// sentFile is a file of which the server sends the pieces.
type sentFile struct {
	openFile
	path string
	open atomic.Int64 // pieces at work, and one while more may come
}

// piece is a part of a file.
type piece struct {
	f      *sentFile
	offset int64
	buf    *[pieceBytes]byte
	length int
}

func (p *incoming) archives(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for range p.j.Jobs {
		g.Go(func() error {
			for piece := range p.pieces {
				if err := p.take(ctx, piece); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(p.pieces)
		defer context.AfterFunc(ctx, p.j.stream.cancel)() // the backup's session knows another context
		b := p.j.stream.backup
		for {
			a, err := b.Next()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err == nil {
				err = p.archive(ctx, a, tar.NewReader(b))
			}
			if err != nil {
				return err
			}
		}
	})
	return g.Wait()
}

// archive takes one archive.
func (p *incoming) archive(ctx context.Context, a *postgres.BackupArchive, in *tar.Reader) error {
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading what the server sends: %w", err)
		}
		e, ok, err := sentEntry(a, h)
		if err == nil && ok {
			err = p.entry(ctx, e, in)
		}
		if err != nil {
			return err
		}
	}
}

// sentEntry is the entry of a tar header; ok is false where it is none of a
// data directory.
func sentEntry(a *postgres.BackupArchive, h *tar.Header) (e blockcopy.Entry, ok bool, err error) {
	name := path.Clean(strings.TrimPrefix(h.Name, "./"))
	if name == "." {
		return e, false, nil
	}
	if a.OID != 0 {
		name = fmt.Sprintf("pg_tblspc/%d/%s", a.OID, name)
	}
	e = blockcopy.Entry{Path: name, Mode: h.FileInfo().Mode().Perm(), ModTime: h.ModTime}
	switch h.Typeflag {
	case tar.TypeReg:
		e.Size = h.Size
	case tar.TypeDir:
		e.Type = blockcopy.Dir
	case tar.TypeSymlink:
		if path.Dir(name) != "pg_tblspc" {
			return e, false, nil
		}
		e.Type, e.LinkTarget = blockcopy.Link, h.Linkname
	default:
		return e, false, nil
	}
	return e, true, blockcopy.CheckPath(name)
}

// entry takes a file, a directory or a link.
func (p *incoming) entry(ctx context.Context, e blockcopy.Entry, content io.Reader) error {
	if e.Type == blockcopy.File && (e.Path == volume.ControlPath || e.Path == volume.BackupLabelFile) {
		return p.special(e, content)
	}
	if !wanted(e) {
		return nil
	}
	if e.Type == blockcopy.Link {
		if err := p.j.files.tablespace(e); err != nil {
			return err
		}
	}
	w, err := p.openSinks(e)
	if err != nil || e.Type != blockcopy.File {
		return err
	}
	_, rel := volume.ParseRelPath(e.Path)
	f := &sentFile{openFile: openFile{w: w, rel: rel, cut: -1}, path: e.Path}
	f.open.Store(1)
	if err := p.send(ctx, f, e.Size, content); err != nil {
		return err
	}
	p.j.files.bytes += e.Size
	return p.release(f)
}

// special keeps the files that a copy gets from elsewhere.
func (p *incoming) special(e blockcopy.Entry, content io.Reader) error {
	data, err := io.ReadAll(io.LimitReader(content, maxSmallFile))
	if err != nil {
		return err
	}
	if e.Path == volume.BackupLabelFile {
		p.j.stream.label, err = volume.ParseBackupLabel(data)
	} else if p.j.stream.control, err = volume.ParseControl(data); err != nil {
		err = exit.Wrap(err, exit.Failed, "run the command again; if that does not help, the server's %s is damaged", "reading %s as the server sent it", e.Path)
	}
	return err
}

// send cuts a file into pieces.
func (p *incoming) send(ctx context.Context, f *sentFile, size int64, content io.Reader) error {
	for off := int64(0); off < size; {
		buf := p.buffers.Get().(*[pieceBytes]byte)
		n := int(min(pieceBytes, size-off))
		if _, err := io.ReadFull(content, buf[:n]); err != nil {
			return fmt.Errorf("reading %s as the server sends it: %w", f.path, err)
		}
		f.open.Add(1)
		select {
		case p.pieces <- piece{f, off, buf, n}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		off += int64(n)
	}
	return nil
}

// take stores a piece.
func (p *incoming) take(ctx context.Context, c piece) error {
	r := blockcopy.Range{Path: c.f.path, Offset: c.offset, Length: int64(c.length)}
	if err := p.put(ctx, &c.f.openFile, r, c.buf[:c.length]); err != nil {
		return err
	}
	p.buffers.Put(c.buf)
	p.j.Progress.Add(int64(c.length))
	return p.release(c.f)
}

// release closes a file of which everything was stored.
func (p *incoming) release(f *sentFile) error {
	if f.open.Add(-1) > 0 {
		return nil
	}
	p.mu.Lock()
	size := f.size
	p.mu.Unlock()
	return p.eachSink(f.w, func(w *repo.FileWriter) error { return w.Close(size, false) })
}
