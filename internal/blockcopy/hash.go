package blockcopy

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// DigestSize is the size of a Digest in bytes.
const DigestSize = 16

// Digest is the first half of a block's SHA-256: 128 bits tell blocks apart,
// also such as somebody made to look alike.
type Digest [DigestSize]byte

// NewDigest hashes a block.
func NewDigest(block []byte) Digest {
	sum := sha256.Sum256(block)
	return Digest(sum[:DigestSize])
}

// Hasher is implemented by a Source that can hash its blocks where they are,
// so that only digests travel.
type Hasher interface {
	// Hash hands over the digests of the ranges' blocks, range by range and
	// in order. A block is blockSize bytes (at most MaxHashBlock) and counts
	// from the range's begin; the last may be shorter. Where the file ends
	// inside the range, the block with its end counts with what it holds, and
	// the blocks behind have no digest; a file that does not exist has none at
	// all. digests is valid during the call of deliver only. An error from
	// deliver ends the Hash. It may be called by several goroutines at once.
	Hash(ctx context.Context, ranges []Range, blockSize int64, deliver HashDeliver) error
}

// HashDeliver takes the digests of one range.
type HashDeliver func(r Range, digests []Digest) error

// MaxHashBlock is the largest block that a Hasher takes, in bytes.
const MaxHashBlock = pieceBytes

var _ Hasher = (*DirSource)(nil)

// checkHash refuses block sizes that a Hasher does not take.
func checkHash(blockSize int64) error {
	if blockSize <= 0 || blockSize > MaxHashBlock {
		return fmt.Errorf("hashing blocks of %d bytes is not possible", blockSize)
	}
	return nil
}

// Hash reads the files and hashes them here.
func (s *DirSource) Hash(ctx context.Context, ranges []Range, blockSize int64, deliver HashDeliver) error {
	if err := checkHash(blockSize); err != nil {
		return err
	}
	buf := pieces.Get().(*[pieceBytes]byte)
	defer pieces.Put(buf)
	h := hashReader{s: s, buf: buf[:pieceBytes/blockSize*blockSize], blockSize: blockSize}
	defer h.close()
	for _, r := range ranges {
		if err := h.open(r.Path); err != nil {
			return err
		}
		digests, err := h.hash(ctx, r)
		if err != nil {
			return err
		}
		if err := deliver(r, digests); err != nil {
			return err
		}
	}
	return h.close()
}

// hashReader hashes ranges of one file after the other.
type hashReader struct {
	s         *DirSource
	buf       []byte // a whole number of blocks
	blockSize int64
	name      string
	file      *os.File // nil where there is no such file
	digests   []Digest
}

// open goes over to a file; the same one stays open.
func (h *hashReader) open(name string) error {
	if h.name == name {
		return nil
	}
	if err := h.close(); err != nil {
		return err
	}
	f, err := os.Open(h.s.path(name))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		if h.s.stable {
			return h.s.changed(name, "it is gone")
		}
		f, err = nil, nil
	}
	h.name, h.file = name, f
	return err
}

func (h *hashReader) close() error {
	f := h.file
	if f == nil {
		return nil
	}
	h.file = nil
	return errors.Join(h.s.checkUnchanged(f, h.name), f.Close())
}

func (h *hashReader) hash(ctx context.Context, r Range) ([]Digest, error) {
	h.digests = h.digests[:0]
	if h.file == nil {
		return nil, nil
	}
	for off := r.Offset; off < r.End(); {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		part := h.buf[:min(int64(len(h.buf)), r.End()-off)]
		n, err := h.file.ReadAt(part, off)
		if err != nil && err != io.EOF {
			return nil, err
		}
		h.digests = appendDigests(h.digests, part[:n], h.blockSize)
		if n < len(part) {
			break
		}
		off += int64(n)
	}
	return h.digests, nil
}

// appendDigests hashes the blocks of data.
func appendDigests(digests []Digest, data []byte, blockSize int64) []Digest {
	for len(data) > 0 {
		n := min(int64(len(data)), blockSize)
		digests = append(digests, NewDigest(data[:n]))
		data = data[n:]
	}
	return digests
}
