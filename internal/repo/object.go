package repo

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
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
//	16  8  system identifier
//	24  4  largest length of a block      .. 16   seal, in encrypted objects only
//	28  2  length n of the name           .. 8    offset of the index frame in the object
//	30  2  length e of the key envelope   .. 16   hash of all of the index before this field
//	32  n  the object's name              .. 8    "TMKINDEX"
//	..  e  the key envelope (seal.go)
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
	Hash     uint8  // algorithm of the block hashes, hashSHA256 where 0
	Envelope []byte // of an encrypted object
}

func (h header) append(b []byte) []byte {
	b = append(b, objectMagic...)
	b = binary.LittleEndian.AppendUint16(b, objectVersion)
	b = append(b, h.Kind, max(h.Hash, hashSHA256))
	flags := uint32(0)
	if len(h.Envelope) > 0 {
		flags = flagEncrypted
	}
	b = binary.LittleEndian.AppendUint32(b, flags)
	b = binary.LittleEndian.AppendUint64(b, h.SystemID)
	b = binary.LittleEndian.AppendUint32(b, h.MaxBlock)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(h.Name)))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(h.Envelope)))
	b = append(b, h.Name...)
	return append(b, h.Envelope...)
}

// parseHeader reads a header block and returns its length.
func parseHeader(b []byte) (header, int, error) {
	if len(b) < headerFixed || string(b[:8]) != objectMagic {
		return header{}, 0, errors.New("no object header")
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != objectVersion {
		return header{}, 0, fmt.Errorf("object version %d: %w", v, ErrUnknownFormat)
	}
	flags := binary.LittleEndian.Uint32(b[12:])
	if flags&^flagEncrypted != 0 {
		return header{}, 0, fmt.Errorf("flags %#x: %w", flags, ErrUnknownFormat)
	}
	if b[11] != hashSHA256 && (b[11] != hashHMAC || flags == 0) {
		return header{}, 0, fmt.Errorf("hash algorithm %d: %w", b[11], ErrUnknownFormat)
	}
	h := header{
		Kind:     b[10],
		Hash:     b[11],
		SystemID: binary.LittleEndian.Uint64(b[16:]),
		MaxBlock: binary.LittleEndian.Uint32(b[24:]),
	}
	n := int(binary.LittleEndian.Uint16(b[28:]))
	e := int(binary.LittleEndian.Uint16(b[30:]))
	if len(b) < headerFixed+n+e {
		return header{}, 0, errors.New("object header cut short")
	}
	if encrypted := flags != 0; encrypted != (e > 0) || encrypted && (e <= envelopeFixed || e > maxEnvelope) {
		return header{}, 0, fmt.Errorf("a key envelope of %d bytes", e)
	}
	h.Name = string(b[headerFixed : headerFixed+n])
	if e > 0 {
		h.Envelope = bytes.Clone(b[headerFixed+n : headerFixed+n+e])
	}
	if h.MaxBlock == 0 || h.MaxBlock > maxBlockLength {
		return header{}, 0, fmt.Errorf("block length %d out of bounds", h.MaxBlock)
	}
	return h, headerFixed + n + e, nil
}
