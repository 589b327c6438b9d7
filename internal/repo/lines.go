package repo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
)

// lineReader reads the lines in a range of a manifest's frames. Positions count
// bytes of text from the manifest's beginning.
type lineReader struct {
	br  *bufio.Reader
	pos int64
	buf []byte
}

func newLineReader(ctx context.Context, d Driver, idx *objectIndex, from, to int) *lineReader {
	return &lineReader{br: bufio.NewReaderSize(&frameReader{ctx: ctx, d: d, idx: idx, next: from, end: to}, 64<<10)}
}

// next returns the next line without its newline, valid until the next call,
// and where it begins (in text from the lineReader's start).
func (r *lineReader) next() ([]byte, int64, error) {
	at := r.pos
	r.buf = r.buf[:0]
	for {
		part, err := r.br.ReadSlice('\n')
		r.pos += int64(len(part))
		if err == nil && len(r.buf) == 0 {
			return part[:len(part)-1], at, nil
		}
		r.buf = append(r.buf, part...)
		switch {
		case err == nil:
			return r.buf[:len(r.buf)-1], at, nil
		case errors.Is(err, bufio.ErrBufferFull):
			if len(r.buf) > maxLine {
				return nil, 0, fmt.Errorf("a line is longer than %d bytes", maxLine)
			}
		case errors.Is(err, io.EOF) && len(r.buf) > 0:
			return nil, 0, io.ErrUnexpectedEOF
		default:
			return nil, 0, err
		}
	}
}

// frameReader reads the content of frames next to end-1 as a stream.
type frameReader struct {
	ctx       context.Context
	d         Driver
	idx       *objectIndex
	next, end int
	raw, rest []byte
}

func (r *frameReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.next >= r.end {
			return 0, io.EOF
		}
		raw, err := r.idx.readFrame(r.ctx, r.d, r.next, r.raw)
		if err != nil {
			return 0, err
		}
		r.next++
		r.raw, r.rest = raw, raw
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
