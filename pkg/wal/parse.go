package wal

import (
	"encoding/binary"
	"fmt"
)

// parse decodes the record header and the block references of a record of which
// raw holds at least the headers. Where raw is the whole record the data slices
// are set, too; otherwise they are nil and only the lengths have been checked.
//
// What the server would refuse is an error. Nothing is allocated unless there
// is one.
func (r *Record) parse(raw []byte, blockSize uint32) error {
	r.TotalLen = binary.LittleEndian.Uint32(raw)
	r.XID = binary.LittleEndian.Uint32(raw[4:])
	r.Prev = LSN(binary.LittleEndian.Uint64(raw[8:]))
	r.Info = raw[16]
	r.RMID = RMID(raw[17])
	r.CRC = binary.LittleEndian.Uint32(raw[20:])
	r.Origin, r.ToplevelXID, r.Main = 0, 0, nil
	r.Blocks = r.blocks[:0]

	p := parser{rec: r, raw: raw, pos: RecordHeaderSize, blockSize: blockSize}
	if err := p.headers(); err != nil {
		return err
	}
	if len(raw) >= int(r.TotalLen) {
		p.attach()
	}
	return nil
}

// parser walks over the headers that follow the record header.
type parser struct {
	rec       *Record
	raw       []byte
	pos       int    // of the next header byte
	data      uint64 // length of all data announced so far
	mainLen   uint32
	lens      [maxBlockID + 1]dataLens
	blockSize uint32
}

type dataLens struct{ image, data uint16 }

// headers reads until the announced data fills the rest of the record.
func (p *parser) headers() error {
	total := uint64(p.rec.TotalLen)
	for total-uint64(p.pos) > p.data {
		if !p.have(1) {
			return errTruncated
		}
		id := p.raw[p.pos]
		p.pos++
		var err error
		switch {
		case id <= maxBlockID:
			err = p.block(id)
		case id == idDataShort || id == idDataLong:
			if err = p.main(id); err == nil {
				return p.finish() // main data comes last by convention
			}
		case id == idOrigin:
			err = p.origin()
		case id == idToplevelXID && p.rec.format.toplevelXID:
			err = p.toplevelXID()
		default:
			err = fmt.Errorf("invalid block number %d", id)
		}
		if err != nil {
			return err
		}
		if uint64(p.pos) > total {
			return errTruncated
		}
	}
	return p.finish()
}

var errTruncated = fmt.Errorf("headers exceed the record")

func (p *parser) have(n int) bool { return len(p.raw)-p.pos >= n }

// finish checks that headers and data add up to the record's length.
func (p *parser) finish() error {
	if rest := uint64(p.rec.TotalLen) - uint64(p.pos); rest != p.data {
		return fmt.Errorf("%d bytes of data announced, %d present", p.data, rest)
	}
	return nil
}

func (p *parser) main(id uint8) error {
	if id == idDataShort {
		if !p.have(1) {
			return errTruncated
		}
		p.mainLen = uint32(p.raw[p.pos])
		p.pos++
	} else {
		if !p.have(4) {
			return errTruncated
		}
		p.mainLen = binary.LittleEndian.Uint32(p.raw[p.pos:])
		p.pos += 4
	}
	p.data += uint64(p.mainLen)
	return nil
}

func (p *parser) origin() error {
	if !p.have(2) {
		return errTruncated
	}
	p.rec.Origin = binary.LittleEndian.Uint16(p.raw[p.pos:])
	p.pos += 2
	return nil
}

func (p *parser) toplevelXID() error {
	if !p.have(4) {
		return errTruncated
	}
	p.rec.ToplevelXID = binary.LittleEndian.Uint32(p.raw[p.pos:])
	p.pos += 4
	return nil
}

// block reads one XLogRecordBlockHeader and what may follow it.
func (p *parser) block(id uint8) error {
	r := p.rec
	n := len(r.Blocks)
	if n > 0 && id <= r.Blocks[n-1].ID {
		return fmt.Errorf("block number %d out of order", id)
	}
	if !p.have(3) {
		return errTruncated
	}
	flags := p.raw[p.pos]
	dataLen := binary.LittleEndian.Uint16(p.raw[p.pos+1:])
	p.pos += 3

	r.Blocks = r.blocks[:n+1]
	b := &r.blocks[n]
	*b = BlockRef{
		ID:       id,
		WillInit: flags&blockWillInit != 0,
		SameRel:  flags&blockSameRel != 0,
		HasData:  flags&blockHasData != 0,
		HasImage: flags&blockHasImage != 0,
	}
	b.File.Fork = Fork(flags & blockForkMask)
	if b.File.Fork > MaxFork {
		return fmt.Errorf("block %d is of unknown fork %d", id, b.File.Fork)
	}
	if b.HasData != (dataLen > 0) {
		return fmt.Errorf("block %d has data of length %d against its flag", id, dataLen)
	}
	p.lens[n] = dataLens{data: dataLen}
	p.data += uint64(dataLen)
	if b.HasImage {
		if err := p.image(b, n); err != nil {
			return fmt.Errorf("block %d: %w", id, err)
		}
	}
	return p.location(b, n)
}

// location reads the relation, unless it is the previous block's, and the block number.
func (p *parser) location(b *BlockRef, n int) error {
	if b.SameRel {
		if n == 0 {
			return fmt.Errorf("block %d refers to a relation before it, but there is none", b.ID)
		}
		fork := b.File.Fork
		b.File = p.rec.blocks[n-1].File
		b.File.Fork = fork
	} else {
		if !p.have(12) {
			return errTruncated
		}
		h := p.raw[p.pos : p.pos+12]
		b.File.Tablespace = binary.LittleEndian.Uint32(h)
		b.File.Database = binary.LittleEndian.Uint32(h[4:])
		b.File.Relation = binary.LittleEndian.Uint32(h[8:])
		p.pos += 12
	}
	if !p.have(4) {
		return errTruncated
	}
	b.Block = binary.LittleEndian.Uint32(p.raw[p.pos:])
	p.pos += 4
	return nil
}

// image reads an XLogRecordBlockImageHeader and, for a compressed image with a
// hole, the length of the hole.
func (p *parser) image(b *BlockRef, n int) error {
	if !p.have(5) {
		return errTruncated
	}
	length := binary.LittleEndian.Uint16(p.raw[p.pos:])
	b.Image.HoleOffset = binary.LittleEndian.Uint16(p.raw[p.pos+2:])
	info := p.raw[p.pos+4]
	p.pos += 5

	bits := &p.rec.format.imageBits
	hole := info&bits.hole != 0
	b.Image.Apply = info&bits.apply != 0
	if info&bits.compressed != 0 {
		b.Image.Compression = bits.method(info)
		if hole {
			if !p.have(2) {
				return errTruncated
			}
			b.Image.HoleLength = binary.LittleEndian.Uint16(p.raw[p.pos:])
			p.pos += 2
		}
	} else if uint32(length) <= p.blockSize {
		b.Image.HoleLength = uint16(p.blockSize - uint32(length))
	}
	p.lens[n].image = length
	p.data += uint64(length)
	return p.checkImage(&b.Image, uint32(length), hole)
}

// checkImage applies the server's rules for the parts of an image header.
func (p *parser) checkImage(m *BlockImage, length uint32, hole bool) error {
	compressed := m.Compression != NotCompressed
	switch {
	case hole && (m.HoleOffset == 0 || m.HoleLength == 0 || length == p.blockSize):
	case hole && uint32(m.HoleOffset)+uint32(m.HoleLength) > p.blockSize:
	case !hole && (m.HoleOffset != 0 || m.HoleLength != 0):
	case compressed && length >= p.blockSize:
	case !hole && !compressed && length != p.blockSize:
	default:
		return nil
	}
	return fmt.Errorf("page image of %d bytes with a hole of %d at %d", length, m.HoleLength, m.HoleOffset)
}

func (b *imageBits) method(info uint8) Compression {
	switch {
	case info&b.pglz != 0:
		return PGLZ
	case info&b.lz4 != 0:
		return LZ4
	}
	return Zstd
}

// attach sets the data slices: per block its image, then its data; then the main data.
func (p *parser) attach() {
	at := p.pos
	take := func(n int) []byte {
		at += n
		return p.raw[at-n : at : at]
	}
	for i := range p.rec.Blocks {
		b := &p.rec.blocks[i]
		if b.HasImage {
			b.Image.Data = take(int(p.lens[i].image))
		}
		if b.HasData {
			b.Data = take(int(p.lens[i].data))
		}
	}
	p.rec.Main = take(int(p.mainLen))
}
