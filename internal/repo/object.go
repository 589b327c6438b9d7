package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sort"
)

// The object format, version 1. All integers are little-endian. Part of the
// format, do not change; docs/formats/repository.md describes it byte by byte.
//
//	header frame   zstd skippable frame, magic headerMagic, payload = header block
//	frames         zstd frames, each with its content size and checksum
//	index frame    zstd skippable frame, magic indexMagic, payload = index
//
// Every object (pack, WAL file, manifest) has this shape, so "zstd -dc" reads
// the content of any of them.
//
//	header block                          index
//	 0  8  "TIDEMARK"                      0  H   the header block again
//	 8  2  format version                  H  4   number of frames F
//	10  1  kind                           +4  4   number of blocks B
//	11  1  hash algorithm                 +8 12F  stored length, blocks, CRC-32C of the stored bytes
//	12  4  flags                          .. 20B  length, hash[16]
//	16  8  system identifier              .. 8    offset of the index frame in the object
//	24  4  largest length of a block      .. 16   hash of all of the index before this field
//	28  2  length n of the name           .. 8    "TMKINDEX"
//	30  2  length e of the key envelope
//	32  n  the object's name
//	..  e  the key envelope
const (
	headerMagic = 0x184D2A5D
	indexMagic  = 0x184D2A5E

	objectMagic   = "TIDEMARK"
	indexEnd      = "TMKINDEX"
	objectVersion = 1

	hashSHA256 = 1 // SHA-256, the first 16 bytes

	headerFixed   = 32
	skipHeader    = 8 // magic and length of a skippable frame
	frameEntry    = 12
	blockEntry    = 4 + HashSize
	trailerLength = 8 + HashSize + 8
)

// Kinds of objects.
const (
	kindPack     = 1
	kindWAL      = 2
	kindManifest = 3
)

// Limits that a reader holds an object to before it allocates anything.
const (
	maxBlocks      = 1 << 20
	maxFrames      = 1 << 20
	maxFrameStored = 80 << 20
	maxFrameRaw    = 64 << 20
	maxBlockLength = 4 << 20
	maxIndexSize   = maxBlocks*blockEntry + maxFrames*frameEntry + 1<<17
)

// tailGuess is how much of an object's end is read in the hope that the whole
// index lies in it.
const tailGuess = 64 << 10

// HashSize is the length of a Hash.
const HashSize = 16

// Hash identifies the content of a block: the first 16 bytes of its SHA-256.
type Hash [HashSize]byte

// HashBlock returns the hash of a block.
func HashBlock(b []byte) Hash {
	s := sha256.Sum256(b)
	return Hash(s[:HashSize])
}

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText writes hexadecimal digits.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (h *Hash) UnmarshalText(b []byte) error {
	if len(b) != 2*HashSize {
		return fmt.Errorf("a hash has %d digits, not %q", 2*HashSize, b)
	}
	_, err := hex.Decode(h[:], b)
	return err
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CorruptError says that an object does not hold what was written into it.
type CorruptError struct {
	Object string // its name in the repository
	Offset int64  // of the damaged part in the object, -1 where the whole is meant
	Part   string // "index", "frame 12", "block 1534 in frame 12"
	Reason string
	Err    error
}

func (e *CorruptError) Error() string {
	s := "corrupt object " + e.Object
	if e.Part != "" {
		s += ", " + e.Part
	}
	if e.Offset >= 0 {
		s += fmt.Sprintf(" at offset %d", e.Offset)
	}
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *CorruptError) Unwrap() error { return e.Err }

// ErrUnknownFormat is returned for an object that a later version wrote.
var ErrUnknownFormat = errors.New("written in a format that this version does not know")

// header is the header block.
type header struct {
	Kind     uint8
	SystemID uint64
	MaxBlock uint32
	Name     string
}

func (h header) append(b []byte) []byte {
	b = append(b, objectMagic...)
	b = binary.LittleEndian.AppendUint16(b, objectVersion)
	b = append(b, h.Kind, hashSHA256)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, h.SystemID)
	b = binary.LittleEndian.AppendUint32(b, h.MaxBlock)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(h.Name)))
	b = binary.LittleEndian.AppendUint16(b, 0)
	return append(b, h.Name...)
}

// parseHeader reads a header block and returns its length.
func parseHeader(b []byte) (header, int, error) {
	if len(b) < headerFixed || string(b[:8]) != objectMagic {
		return header{}, 0, errors.New("no object header")
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != objectVersion {
		return header{}, 0, fmt.Errorf("object version %d: %w", v, ErrUnknownFormat)
	}
	if b[11] != hashSHA256 {
		return header{}, 0, fmt.Errorf("hash algorithm %d: %w", b[11], ErrUnknownFormat)
	}
	if f := binary.LittleEndian.Uint32(b[12:]); f != 0 {
		return header{}, 0, fmt.Errorf("flags %#x: %w", f, ErrUnknownFormat)
	}
	h := header{
		Kind:     b[10],
		SystemID: binary.LittleEndian.Uint64(b[16:]),
		MaxBlock: binary.LittleEndian.Uint32(b[24:]),
	}
	n := int(binary.LittleEndian.Uint16(b[28:]))
	e := int(binary.LittleEndian.Uint16(b[30:]))
	if len(b) < headerFixed+n+e {
		return header{}, 0, errors.New("object header cut short")
	}
	h.Name = string(b[headerFixed : headerFixed+n])
	if h.MaxBlock == 0 || h.MaxBlock > maxBlockLength {
		return header{}, 0, fmt.Errorf("block length %d out of bounds", h.MaxBlock)
	}
	return h, headerFixed + n + e, nil
}

// frameInfo is one frame as the index knows it.
type frameInfo struct {
	offset int64  // in the object
	stored uint32 // length
	first  uint32 // number of its first block
	blocks uint32
	crc    uint32
	raw    uint32 // sum of the blocks' lengths
}

// blockInfo is one block as the index knows it.
type blockInfo struct {
	length uint32
	hash   Hash
}

// objectWriter writes one object front to back.
type objectWriter struct {
	w      io.Writer
	off    int64
	head   header
	frames []frameInfo
	blocks []blockInfo
}

func newObjectWriter(w io.Writer, h header) (*objectWriter, error) {
	o := &objectWriter{w: w, head: h}
	block := h.append(nil)
	b := binary.LittleEndian.AppendUint32(nil, headerMagic)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(block)))
	return o, o.write(append(b, block...))
}

func (o *objectWriter) write(b []byte) error {
	n, err := o.w.Write(b)
	o.off += int64(n)
	return err
}

// add appends a frame: the stored bytes and what they hold.
func (o *objectWriter) add(stored []byte, blocks []blockInfo) error {
	o.frames = append(o.frames, frameInfo{
		offset: o.off, stored: uint32(len(stored)), first: uint32(len(o.blocks)), blocks: uint32(len(blocks)),
		crc: crc32.Checksum(stored, castagnoli),
	})
	o.blocks = append(o.blocks, blocks...)
	return o.write(stored)
}

// finish writes the index.
func (o *objectWriter) finish() error {
	b := make([]byte, skipHeader, skipHeader+512+len(o.frames)*frameEntry+len(o.blocks)*blockEntry+trailerLength)
	b = o.head.append(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(o.frames)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(o.blocks)))
	for _, f := range o.frames {
		b = binary.LittleEndian.AppendUint32(b, f.stored)
		b = binary.LittleEndian.AppendUint32(b, f.blocks)
		b = binary.LittleEndian.AppendUint32(b, f.crc)
	}
	for i := range o.blocks {
		b = binary.LittleEndian.AppendUint32(b, o.blocks[i].length)
		b = append(b, o.blocks[i].hash[:]...)
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(o.off))
	sum := HashBlock(b[skipHeader:])
	b = append(b, sum[:]...)
	b = append(b, indexEnd...)
	binary.LittleEndian.PutUint32(b, indexMagic)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)-skipHeader))
	return o.write(b)
}

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
