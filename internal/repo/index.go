package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sort"
	"sync"
)

// objectIndex is an object's index, read and checked.
type objectIndex struct {
	header
	path   string // the object's name in the store
	size   int64
	raw    int64
	frames []frameInfo
	blocks []blockInfo

	// Of an encrypted object: the SHA-256 of the index, its seal, and who has
	// the keys. The index can be read without them.
	sum  [sha256.Size]byte
	seal [sealSize]byte
	ring *keyring
	once sync.Once
	open *sealer
	err  error
}

// encrypted tells whether frames need a key.
func (x *objectIndex) encrypted() bool { return len(x.Envelope) > 0 }

// opener returns what decrypts the frames, after the index has been proved to
// be what their writer wrote.
func (x *objectIndex) opener() (*sealer, error) {
	x.once.Do(func() {
		var key *contentKey
		if key, x.err = x.ring.content(x.Envelope); x.err != nil {
			return
		}
		if x.open, x.err = newSealer(key, x.header); x.err != nil {
			return
		}
		if x.open.sealIndex(x.sum) != x.seal {
			x.err = &CorruptError{Object: x.path, Offset: -1, Part: "index", Err: errNotAuthentic}
		}
	})
	return x.open, x.err
}

// readIndex reads the index of one of the cluster's objects.
func (c *Cluster) readIndex(ctx context.Context, want header) (*objectIndex, error) {
	idx, err := readIndex(ctx, c.driver, want, 0)
	if err == nil {
		idx.ring = c.repo.ring
	}
	return idx, err
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
	whole, end := body, len(body)-trailerLength
	idx := &objectIndex{header: h}
	if len(h.Envelope) > 0 {
		end -= sealSize
	}
	if end < n+8 {
		return nil, errors.New("cut short")
	}
	if len(h.Envelope) > 0 {
		idx.sum, idx.seal = sha256.Sum256(whole[:end]), [sealSize]byte(whole[end:])
	}
	body = body[n:end]
	nf, nb := int64(binary.LittleEndian.Uint32(body)), int64(binary.LittleEndian.Uint32(body[4:]))
	body = body[8:]
	if nf > maxFrames || nb > maxBlocks || nf*frameEntry+nb*blockEntry != int64(len(body)) {
		return nil, fmt.Errorf("%d frames and %d blocks do not fit %d bytes", nf, nb, len(body))
	}
	idx.frames, idx.blocks = make([]frameInfo, nf), make([]blockInfo, nb)
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
// The stored bytes are overwritten.
func (x *objectIndex) decodeFrame(i int, stored, buf []byte) ([]byte, error) {
	if err := x.checkBytes(i, stored); err != nil {
		return nil, err
	}
	f := x.frames[i]
	part := fmt.Sprintf("frame %d", i)
	corrupt := func(reason string, err error) error {
		return &CorruptError{Object: x.path, Offset: f.offset, Part: part, Reason: reason, Err: err}
	}
	if cap(buf) < int(f.raw) {
		buf = make([]byte, 0, f.raw)
	}
	hash := HashBlock
	if x.encrypted() {
		open, err := x.opener()
		if err != nil {
			return nil, err
		}
		if stored, err = open.open(i, int(f.blocks), stored); err != nil {
			return nil, corrupt("", err)
		}
		hash = open.hash
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
		if hash(raw[pos:pos+int(b.length)]) != b.hash {
			part = fmt.Sprintf("block %d in frame %d", n, i)
			return nil, corrupt("its hash does not match", nil)
		}
		pos += int(b.length)
	}
	return raw, nil
}

// checkFrame reads frame i and checks its stored bytes, which needs no key.
func (x *objectIndex) checkFrame(ctx context.Context, d Driver, i int) error {
	f := x.frames[i]
	buf := getBuffer(int(f.stored))
	defer putBuffer(buf)
	got, _, err := getBytes(ctx, d, x.path, f.offset, int64(f.stored), int64(f.stored), *buf)
	if err != nil {
		return err
	}
	return x.checkBytes(i, got)
}

// checkBytes checks the stored bytes of frame i, which needs no key.
func (x *objectIndex) checkBytes(i int, stored []byte) error {
	f, reason := x.frames[i], ""
	switch {
	case len(stored) != int(f.stored):
		reason = fmt.Sprintf("%d of %d bytes are there", len(stored), f.stored)
	case crc32.Checksum(stored, castagnoli) != f.crc:
		reason = "its checksum does not match"
	default:
		return nil
	}
	return &CorruptError{Object: x.path, Offset: f.offset, Part: fmt.Sprintf("frame %d", i), Reason: reason}
}

// checkHeader compares the header frame at the front with the index. Readers
// do without it; a deep verification does not.
func (x *objectIndex) checkHeader(ctx context.Context, d Driver) error {
	block := x.header.append(nil)
	b, _, err := getBytes(ctx, d, x.path, 0, int64(skipHeader+len(block)), int64(skipHeader+len(block)), nil)
	if err != nil {
		return err
	}
	if len(b) != skipHeader+len(block) || binary.LittleEndian.Uint32(b) != headerMagic ||
		int(binary.LittleEndian.Uint32(b[4:])) != len(block) || !bytes.Equal(b[skipHeader:], block) {
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
