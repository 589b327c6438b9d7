package wal

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// ErrNoImage is returned by RestoreImage for a block reference without one.
var ErrNoImage = errors.New("no page image")

// RestoreImage writes the page of the block's image to page, whose length is
// the block size: it is decompressed, and its hole filled with zeros. An image
// shows the page as it is after the record.
func (b *BlockRef) RestoreImage(page []byte) error {
	if !b.HasImage {
		return ErrNoImage
	}
	m := &b.Image
	before, hole := int(m.HoleOffset), int(m.HoleLength)
	if before+hole > len(page) {
		return fmt.Errorf("%w: the hole does not lie in a page of %d bytes", ErrRecordContent, len(page))
	}
	data, want := m.Data, len(page)-hole
	if m.Compression != NotCompressed {
		var err error
		if data, err = m.decompress(want); err != nil {
			return fmt.Errorf("%w: page image compressed by %s: %w", ErrRecordContent, m.Compression, err)
		}
	}
	if len(data) != want {
		return fmt.Errorf("%w: page image of %d bytes, expected %d", ErrRecordContent, len(data), want)
	}
	copy(page, data[:before])
	clear(page[before : before+hole])
	copy(page[before+hole:], data[before:])
	return nil
}

func (m *BlockImage) decompress(size int) ([]byte, error) {
	switch m.Compression {
	case PGLZ:
		return pglz(m.Data, size)
	case LZ4:
		out := make([]byte, size)
		n, err := lz4.UncompressBlock(m.Data, out)
		return out[:max(n, 0)], err
	}
	r, err := zstd.NewReader(bytes.NewReader(m.Data), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<20))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var out bytes.Buffer
	_, err = r.WriteTo(&out)
	return out.Bytes(), err
}

// pglz decompresses the server's own format (common/pg_lzcompress.c): groups of
// a control byte and eight items, by its bits from the lowest on either a byte
// that stands for itself or a copy of what came before:
//
//	byte 0   length - 3 in the lower half (15: byte 2 is to be added),
//	         upper bits of the distance in the other
//	byte 1   lower bits of the distance
//	byte 2   only for long copies
func pglz(src []byte, size int) ([]byte, error) {
	errShort := errors.New("it ends early")
	out := make([]byte, 0, size)
	for at := 0; at < len(src) && len(out) < size; {
		control := src[at]
		at++
		for bit := 0; bit < 8 && at < len(src) && len(out) < size; bit++ {
			if control>>bit&1 == 0 {
				out = append(out, src[at])
				at++
				continue
			}
			if at+1 >= len(src) {
				return nil, errShort
			}
			length, distance := int(src[at]&0x0F)+3, int(src[at]&0xF0)<<4|int(src[at+1])
			at += 2
			if length == 18 {
				if at >= len(src) {
					return nil, errShort
				}
				length += int(src[at])
				at++
			}
			if distance == 0 || distance > len(out) {
				return nil, fmt.Errorf("a copy from %d bytes back at %d", distance, len(out))
			}
			for length = min(length, size-len(out)); length > 0; length-- {
				out = append(out, out[len(out)-distance])
			}
		}
	}
	if len(out) != size {
		return nil, errShort
	}
	return out, nil
}
