package repo

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sort"
)

// objectIndex is an object's index, read and checked.
type objectIndex struct {
	header
	path   string // the object's name in the store
	size   int64
	raw    int64
	frames []frameInfo
	blocks []blockInfo
}

// readIndex reads the index of an object and checks that the object is what
// its name says. tail is how much of the end to read first, 0 for a guess.
func readIndex(ctx context.Context, d Driver, want header, tail int64) (*objectIndex, error) {
	if tail <= 0 {
		tail = tailGuess
	}
	buf, size, err := getBytes(ctx, d, want.Name, -tail, -1, tail, nil)
	if err != nil {
		return nil, err
	}
	corrupt := func(off int64, reason string, err error) error {
		return &CorruptError{Object: want.Name, Offset: off, Part: "index", Reason: reason, Err: err}
	}
	if len(buf) < trailerLength || string(buf[len(buf)-8:]) != indexEnd {
		return nil, corrupt(size, "the end of the object is missing or damaged", nil)
	}
	off := int64(binary.LittleEndian.Uint64(buf[len(buf)-trailerLength:]))
	if off < 0 || off > size-skipHeader-headerFixed-trailerLength || size-off > maxIndexSize {
		return nil, corrupt(size-trailerLength, "the index's place is out of bounds", nil)
	}
	if need := size - off; need > int64(len(buf)) {
		buf, _, err = getBytes(ctx, d, want.Name, off, need, need, nil)
		if err != nil {
			return nil, err
		}
		if int64(len(buf)) != need {
			return nil, corrupt(off, "cut short", nil)
		}
	} else {
		buf = buf[int64(len(buf))-need:]
	}
	idx, err := parseIndex(buf, off)
	if err != nil {
		return nil, corrupt(off, "", err)
	}
	if idx.Kind != want.Kind || idx.SystemID != want.SystemID || idx.Name != want.Name {
		return nil, &CorruptError{Object: want.Name, Offset: -1, Reason: fmt.Sprintf(
			"it holds another object: %s of system %d", idx.Name, idx.SystemID)}
	}
	idx.path, idx.size = want.Name, size
	return idx, nil
}

// parseIndex decodes the index frame b, which lies at offset off of its object.
func parseIndex(b []byte, off int64) (*objectIndex, error) {
	if len(b) < skipHeader+headerFixed+8+trailerLength {
		return nil, errors.New("cut short")
	}
	if binary.LittleEndian.Uint32(b) != indexMagic || int64(binary.LittleEndian.Uint32(b[4:])) != int64(len(b)-skipHeader) {
		return nil, errors.New("not an index frame")
	}
	body := b[skipHeader:]
	sum := Hash(body[len(body)-8-HashSize : len(body)-8])
	if HashBlock(body[:len(body)-8-HashSize]) != sum || string(body[len(body)-8:]) != indexEnd {
		return nil, errors.New("its hash does not match")
	}
	h, n, err := parseHeader(body)
	if err != nil {
		return nil, err
	}
	if len(body) < n+8+trailerLength {
		return nil, errors.New("cut short")
	}
	body = body[n : len(body)-trailerLength]
	nf, nb := int64(binary.LittleEndian.Uint32(body)), int64(binary.LittleEndian.Uint32(body[4:]))
	body = body[8:]
	if nf > maxFrames || nb > maxBlocks || nf*frameEntry+nb*blockEntry != int64(len(body)) {
		return nil, fmt.Errorf("%d frames and %d blocks do not fit %d bytes", nf, nb, len(body))
	}
	idx := &objectIndex{header: h, frames: make([]frameInfo, nf), blocks: make([]blockInfo, nb)}
	table := body[nf*frameEntry:]
	for i := range idx.blocks {
		e := table[i*blockEntry:]
		idx.blocks[i] = blockInfo{binary.LittleEndian.Uint32(e), Hash(e[4 : 4+HashSize])}
		if idx.blocks[i].length == 0 || idx.blocks[i].length > h.MaxBlock {
			return nil, fmt.Errorf("block %d has %d bytes", i, idx.blocks[i].length)
		}
	}
	pos, first := int64(skipHeader+n), int64(0)
	for i := range idx.frames {
		e := body[i*frameEntry:]
		f := frameInfo{
			offset: pos, first: uint32(first),
			stored: binary.LittleEndian.Uint32(e), blocks: binary.LittleEndian.Uint32(e[4:]), crc: binary.LittleEndian.Uint32(e[8:]),
		}
		pos += int64(f.stored)
		first += int64(f.blocks)
		if f.stored > maxFrameStored || first > nb || f.blocks == 0 {
			return nil, fmt.Errorf("frame %d is out of bounds", i)
		}
		raw := int64(0)
		for _, b := range idx.blocks[f.first:first] {
			raw += int64(b.length)
		}
		if raw > maxFrameRaw {
			return nil, fmt.Errorf("frame %d has %d bytes", i, raw)
		}
		f.raw = uint32(raw)
		idx.raw += raw
		idx.frames[i] = f
	}
	if first != nb || pos != off {
		return nil, errors.New("the frames do not fill the object")
	}
	return idx, nil
}

// frameOf returns the number of the frame that holds a block.
func (x *objectIndex) frameOf(block uint32) int {
	return sort.Search(len(x.frames), func(i int) bool { return x.frames[i].first > block }) - 1
}

// readFrame reads, checks and decodes frame i into buf, which it may replace.
func (x *objectIndex) readFrame(ctx context.Context, d Driver, i int, buf []byte) ([]byte, error) {
	f := x.frames[i]
	stored := getBuffer(int(f.stored))
	defer putBuffer(stored)
	got, _, err := getBytes(ctx, d, x.path, f.offset, int64(f.stored), int64(f.stored), *stored)
	if err != nil {
		return nil, err
	}
	return x.decodeFrame(i, got, buf)
}

// decodeFrame checks and decodes the stored bytes of frame i. Every block is
// compared with its hash: what comes out is what went in.
func (x *objectIndex) decodeFrame(i int, stored, buf []byte) ([]byte, error) {
	f := x.frames[i]
	part := fmt.Sprintf("frame %d", i)
	corrupt := func(reason string, err error) error {
		return &CorruptError{Object: x.path, Offset: f.offset, Part: part, Reason: reason, Err: err}
	}
	if len(stored) != int(f.stored) {
		return nil, corrupt(fmt.Sprintf("%d of %d bytes are there", len(stored), f.stored), nil)
	}
	if crc32.Checksum(stored, castagnoli) != f.crc {
		return nil, corrupt("its checksum does not match", nil)
	}
	if cap(buf) < int(f.raw) {
		buf = make([]byte, 0, f.raw)
	}
	raw, err := decompress(stored, buf[:0])
	if err != nil {
		return nil, corrupt("cannot be decompressed", err)
	}
	if len(raw) != int(f.raw) {
		return nil, corrupt(fmt.Sprintf("holds %d bytes instead of %d", len(raw), f.raw), nil)
	}
	pos := 0
	for n := f.first; n < f.first+f.blocks; n++ {
		b := &x.blocks[n]
		if HashBlock(raw[pos:pos+int(b.length)]) != b.hash {
			part = fmt.Sprintf("block %d in frame %d", n, i)
			return nil, corrupt("its hash does not match", nil)
		}
		pos += int(b.length)
	}
	return raw, nil
}

// checkHeader compares the header frame at the front with the index. Readers
// do without it; a deep verification does not.
func (x *objectIndex) checkHeader(ctx context.Context, d Driver) error {
	block := x.header.append(nil)
	b, _, err := getBytes(ctx, d, x.path, 0, int64(skipHeader+len(block)), int64(skipHeader+len(block)), nil)
	if err != nil {
		return err
	}
	if len(b) != skipHeader+len(block) || binary.LittleEndian.Uint32(b) != headerMagic || !bytes.Equal(b[skipHeader:], block) {
		return &CorruptError{Object: x.path, Offset: 0, Part: "header", Reason: "it differs from the index"}
	}
	return nil
}

// checkAll reads the object whole and checks every byte of it.
func (x *objectIndex) checkAll(ctx context.Context, d Driver, each func(raw []byte) error) error {
	if err := x.checkHeader(ctx, d); err != nil {
		return err
	}
	var buf []byte
	for i := range x.frames {
		raw, err := x.readFrame(ctx, d, i, buf)
		if err != nil {
			return err
		}
		buf = raw
		if each != nil {
			if err := each(raw); err != nil {
				return err
			}
		}
	}
	return nil
}
