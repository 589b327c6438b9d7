//go:build cgo

package repo

import (
	"encoding/binary"
	"slices"
	"sync"

	"github.com/DataDog/zstd"
	"github.com/cespare/xxhash/v2"
)

// contexts are reused: each keeps some megabytes of tables, and works for one
// goroutine at a time.
var contexts = sync.Pool{New: func() any { return zstd.NewCtx() }}

// libLevel is what libzstd calls a level.
func libLevel(l Level) int {
	switch l {
	case LevelGood:
		return 3
	case levelDense:
		return -1
	}
	return 1
}

// encode appends one zstd frame that holds raw to dst.
func encode(l Level, raw, dst []byte) []byte {
	c := contexts.Get().(zstd.Ctx)
	defer contexts.Put(c)
	dst = slices.Grow(dst, zstd.CompressBound(len(raw))+checksumBytes)
	at := len(dst)
	z, err := c.CompressLevel(dst[at:cap(dst)], raw, libLevel(l))
	if err != nil {
		panic(err) // there is room, and that is all it asks for
	}
	return addChecksum(dst[:at+len(z)], at, raw)
}

// addChecksum ends the frame that begins at a place of dst in its checksum,
// which the library's simple call leaves out: a bit of the frame's descriptor,
// the byte behind the magic, says that the lower half of XXH64 of the content
// stands behind the last block (RFC 8878, 3.1.1).
func addChecksum(dst []byte, at int, raw []byte) []byte {
	dst[at+descriptorAt] |= checksumFlag
	return binary.LittleEndian.AppendUint32(dst, uint32(xxhash.Sum64(raw)))
}

const (
	descriptorAt  = 4
	checksumFlag  = 1 << 2
	checksumBytes = 4
)
