//go:build !cgo

package repo

import (
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Compressors are shared by everything in the process: each keeps some
// megabytes of tables, and EncodeAll may be called from several goroutines.
var (
	fast  = sync.OnceValue(func() *zstd.Encoder { return newEncoder(zstd.WithEncoderLevel(zstd.SpeedFastest)) })
	good  = sync.OnceValue(func() *zstd.Encoder { return newEncoder(zstd.WithEncoderLevel(zstd.SpeedDefault)) })
	plain = sync.OnceValue(func() *zstd.Encoder {
		return newEncoder(zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithNoEntropyCompression(true))
	})
)

func newEncoder(options ...zstd.EOption) *zstd.Encoder {
	e, err := zstd.NewWriter(nil, append(options, zstd.WithEncoderCRC(true),
		zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)), zstd.WithSingleSegment(true))...)
	if err != nil {
		panic(err) // the options are constants
	}
	return e
}

// encode appends one zstd frame that holds raw to dst.
func encode(l Level, raw, dst []byte) []byte {
	e := fast
	switch l {
	case LevelGood:
		e = good
	case levelDense:
		e = plain
	}
	return e().EncodeAll(raw, dst)
}
