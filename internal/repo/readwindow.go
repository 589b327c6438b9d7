package repo

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"tidemark/internal/blockcopy"
)

// readWindow reads what a Fetch asks for, some megabytes at a time. The blocks
// of a file that was backed up often lie in as many packs as there were backups,
// in turn: within a window they are read pack by pack, so that no index is
// looked for and no frame decoded more than once, however many there are.
//
//	file     |a|b|a|c|a|b|c|c|     ranges, in order
//	frames   a: 0 2 4   b: 1 5   c: 3 6 7
//	buffer   |a|b|a|c|a|b|c|c|     delivered, in order
type readWindow struct {
	s       *Source
	deliver blockcopy.Deliver

	items []windowItem
	wants []wanted
	size  int64 // of the buffer that the items need
	file  *File // of the last item
	cur   runCursor
}

const (
	windowBytes = 8 << 20
	sourcePiece = 1 << 20 // what is delivered at once
)

// windowItem is a piece to deliver: length bytes of the buffer, from an offset
// on.
type windowItem struct {
	piece      blockcopy.Range
	at, length int64
}

// wanted are blocks of a pack, one after another, and where they go.
type wanted struct {
	pack         int32
	first, count uint32
	file         *File
	n            int64 // the first one's number in the file
	at           int64 // its place in the buffer
}

// add takes a range of a file along. The window is read and delivered when it
// is full.
func (w *readWindow) add(ctx context.Context, f *File, r blockcopy.Range) error {
	if f != w.file {
		w.file, w.cur = f, runCursor{runs: f.Runs, marks: marksOf(f.Runs)}
	}
	bs := int64(w.s.m.BlockSize)
	end := min(r.End(), f.Size)
	pos := r.Offset
	for pos < end {
		next := min((pos/bs)*bs+sourcePiece, end)
		if w.size+next-pos > windowBytes {
			if err := w.flush(ctx); err != nil {
				return err
			}
		}
		w.piece(f, r, pos, next)
		pos = next
	}
	if pos == r.Offset && end < r.End() { // nothing of it is there: say so
		w.items = append(w.items, windowItem{piece: blockcopy.Range{Path: r.Path, Offset: pos, Length: r.End() - pos}})
	}
	return nil
}

// piece takes a part of a range along, from pos to before next. The last one of
// a file that ends inside the range has the range's end.
func (w *readWindow) piece(f *File, r blockcopy.Range, pos, next int64) {
	bs := int64(w.s.m.BlockSize)
	first := pos / bs
	item := windowItem{piece: blockcopy.Range{Path: r.Path, Offset: pos, Length: next - pos}, at: w.size + pos - first*bs, length: next - pos}
	if next == f.Size && next < r.End() {
		item.piece.Length = r.End() - pos
	}
	w.items = append(w.items, item)
	for n, last := first, blockCount(next, w.s.m.BlockSize); n < last; {
		run, skip := w.cur.seek(n)
		take := min(int64(run.Count)-skip, last-n)
		if run.Pack != ZeroPack {
			w.wants = append(w.wants, wanted{pack: run.Pack, first: run.First + uint32(skip), count: uint32(take), file: f, n: n, at: w.size})
		}
		length := min((n+take)*bs, f.Size) - n*bs
		w.size += length
		n += take
	}
}

// flush reads the window and delivers it.
func (w *readWindow) flush(ctx context.Context) error {
	buf := getBuffer(int(w.size))
	defer putBuffer(buf)
	clear(*buf) // what is wanted of no pack is zero
	slices.SortFunc(w.wants, func(a, b wanted) int { return cmp.Or(cmp.Compare(a.pack, b.pack), cmp.Compare(a.first, b.first)) })
	for i := range w.wants {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.read(ctx, &w.wants[i], *buf); err != nil {
			return err
		}
	}
	for _, item := range w.items {
		if err := w.deliver(item.piece, (*buf)[item.at:item.at+item.length], false); err != nil {
			return err
		}
	}
	w.items, w.wants, w.size = w.items[:0], w.wants[:0], 0
	return nil
}

// read puts blocks of a pack where they go.
func (w *readWindow) read(ctx context.Context, want *wanted, buf []byte) error {
	idx, err := w.s.m.packIndex(ctx, want.pack)
	if err != nil {
		return naming(err, want.file.Path, want.n)
	}
	bs := int64(w.s.m.BlockSize)
	at, n := want.at, want.n
	for b, end := want.first, want.first+want.count; b < end; {
		i := idx.frameOf(b)
		raw, err := w.s.frames.get(ctx, idx, i)
		if err != nil {
			return naming(err, want.file.Path, n)
		}
		fr := idx.frames[i]
		pos := 0
		for k := fr.first; k < b; k++ {
			pos += int(idx.blocks[k].length)
		}
		for ; b < end && b < fr.first+fr.blocks; b, n = b+1, n+1 {
			length := int(idx.blocks[b].length)
			if need := min(bs, want.file.Size-n*bs); int64(length) != need {
				return naming(&CorruptError{Object: idx.path, Offset: fr.offset, Part: fmt.Sprintf("block %d", b),
					Reason: fmt.Sprintf("it has %d bytes, the file needs %d", length, need)}, want.file.Path, n)
			}
			at += int64(copy(buf[at:at+int64(length)], raw[pos:]))
			pos += length
		}
	}
	return nil
}
