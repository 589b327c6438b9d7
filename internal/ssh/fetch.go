package ssh

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"sync"

	"github.com/pkg/sftp"

	"tidemark/internal/blockcopy"
)

// What one Fetch has asked for and not yet handed on is bounded by these two:
// pieces of large files by their bytes, small files by their number.
const (
	pieceBytes  = 512 << 10
	aheadPieces = 8
	aheadFiles  = 64
)

// receiverError is the receiver's own error: nothing of the connection's.
type receiverError struct{ error }

func (e *receiverError) Unwrap() error { return e.error }

// piece is a part of a range.
type piece struct {
	blockcopy.Range
	of int // index of its range
}

// Fetch implements blockcopy.Source.
func (s *Source) Fetch(ctx context.Context, ranges []blockcopy.Range, deliver blockcopy.Deliver) error {
	pieces, err := cut(ranges)
	if err != nil {
		return err
	}
	f := fetch{s: s, left: pieces, deliver: deliver, done: -1}
	for len(f.left) > 0 && err == nil {
		err = s.do(ctx, func(c *Session) error {
			before := len(f.left)
			err := f.run(ctx, c)
			if err != nil && len(f.left) < before {
				err = progress{err}
			}
			return err
		})
	}
	if err != nil {
		return s.fault("reading", f.at(), err)
	}
	return nil
}

func cut(ranges []blockcopy.Range) ([]piece, error) {
	pieces := make([]piece, 0, len(ranges))
	for i, r := range ranges {
		if err := blockcopy.CheckPath(r.Path); err != nil {
			return nil, err
		}
		for r.Length > 0 {
			n := min(r.Length, pieceBytes)
			pieces = append(pieces, piece{blockcopy.Range{Path: r.Path, Offset: r.Offset, Length: n}, i})
			r.Offset += n
			r.Length -= n
		}
	}
	return pieces, nil
}

// fetch is a Fetch at work. It outlives its connections.
type fetch struct {
	s       *Source
	left    []piece // not handed on yet
	deliver blockcopy.Deliver
	done    int // the range that needs nothing more
}

// at is the file that is read.
func (f *fetch) at() string {
	if len(f.left) == 0 {
		return ""
	}
	return f.left[0].Path
}

// answer is what came of a piece.
type answer struct {
	data []byte
	buf  *[]byte
	gone bool
	err  error
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, pieceBytes); return &b }}

// run reads what is left over one connection.
func (f *fetch) run(ctx context.Context, c *Session) error {
	ctx, cancel := context.WithCancel(ctx)
	asked := make(chan chan answer, aheadFiles)
	room := make(chan struct{}, aheadPieces*pieceBytes/minPiece)
	go f.ask(ctx, c, f.left, asked, room)
	defer func() { // what was asked for comes, or the connection ends
		cancel()
		for a := range asked {
			put(<-a)
		}
	}()
	for len(f.left) > 0 {
		a, ok := <-asked
		if !ok {
			return context.Cause(ctx)
		}
		got := <-a
		err := f.hand(f.left[0], got)
		put(got)
		if err != nil {
			return err
		}
		for range weight(f.left[0]) {
			<-room
		}
		f.left = f.left[1:]
	}
	return nil
}

// minPiece is the least that a piece counts for.
const minPiece = aheadPieces * pieceBytes / aheadFiles

func weight(p piece) int { return int((p.Length + minPiece - 1) / minPiece) }

func put(a answer) {
	if a.buf != nil {
		buffers.Put(a.buf)
	}
}

// ask asks for pieces, in their order, as far ahead as there is room.
func (f *fetch) ask(ctx context.Context, c *Session, pieces []piece, asked chan<- chan answer, room chan<- struct{}) {
	defer close(asked)
	var h *handle
	for i, p := range pieces {
		for range weight(p) {
			select {
			case room <- struct{}{}:
			case <-ctx.Done():
				return
			}
		}
		if h == nil || h.path != p.Path {
			h = &handle{c: c, path: p.Path, at: f.s.path(p.Path)}
			for k := i; k < len(pieces) && pieces[k].Path == p.Path; k++ {
				h.users++
			}
		}
		a, h := make(chan answer, 1), h
		go func() { a <- h.read(p) }()
		select {
		case asked <- a:
		case <-ctx.Done():
			put(<-a)
			return
		}
	}
}

// hand hands a piece on.
func (f *fetch) hand(p piece, got answer) error {
	switch {
	case f.done == p.of:
		return nil
	case got.err != nil:
		return got.err
	}
	if got.gone || int64(len(got.data)) < p.Length {
		f.done = p.of
	}
	if err := f.deliver(p.Range, got.data, got.gone); err != nil {
		return &receiverError{err}
	}
	return nil
}

// handle is a file that is opened at its first use and closed after its last.
type handle struct {
	c    *Session
	path string
	at   string

	open sync.Once
	file *sftp.File
	err  error

	mu    sync.Mutex
	users int // pieces that are not read yet
}

func (h *handle) read(p piece) answer {
	var a answer
	a.err = h.c.Watch(func() error {
		h.open.Do(func() { h.file, h.err = h.c.Client.Open(h.at) })
		if h.err != nil {
			return h.err
		}
		a.buf = buffers.Get().(*[]byte)
		n, err := h.file.ReadAt((*a.buf)[:p.Length], p.Offset)
		a.data = (*a.buf)[:n]
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return err
	})
	if errors.Is(a.err, fs.ErrNotExist) {
		a.gone, a.err = true, nil
	}
	h.mu.Lock()
	h.users--
	last := h.users == 0
	h.mu.Unlock()
	if last && h.file != nil {
		h.file.Close()
	}
	return a
}
