package repo

import (
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
	"io"
)

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
	seal   *sealer // nil for an object in the clear
	frames []frameInfo
	blocks []blockInfo
	sum    Hash // of the index, once it is written
}

// newObjectWriter begins an object, encrypted where key is not nil.
func newObjectWriter(w io.Writer, h header, key *contentKey) (*objectWriter, error) {
	o := &objectWriter{w: w, head: h}
	if key != nil {
		var err error
		if o.head.Envelope, err = key.envelope(); err != nil {
			return nil, err
		}
		if o.seal, err = newSealer(key, o.head); err != nil {
			return nil, err
		}
	}
	h = o.head
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

// add appends a frame: a zstd frame, which is encrypted in place, and what it
// holds.
func (o *objectWriter) add(stored []byte, blocks []blockInfo) error {
	if o.seal != nil {
		stored = o.seal.seal(len(o.frames), len(blocks), stored)
	}
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
	if o.seal != nil {
		seal := o.seal.sealIndex(sha256.Sum256(b[skipHeader:]))
		b = append(b, seal[:]...)
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(o.off))
	o.sum = HashBlock(b[skipHeader:])
	b = append(b, o.sum[:]...)
	b = append(b, indexEnd...)
	binary.LittleEndian.PutUint32(b, indexMagic)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)-skipHeader))
	return o.write(b)
}
