package repo

import (
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Compressors and decompressors are shared by everything in the process: each
// keeps some megabytes of tables, and EncodeAll and DecodeAll of one instance
// may be called from several goroutines.

// Level is how hard the compressor tries.
type Level int

// The levels. The zero value stands for the default.
const (
	LevelDefault Level = iota // LevelFast
	LevelFast
	LevelGood
	LevelBest
)

var encoders [LevelBest + 1]struct {
	once sync.Once
	enc  *zstd.Encoder
}

func encoder(l Level) *zstd.Encoder {
	if l <= LevelDefault || l > LevelBest {
		l = LevelFast
	}
	e := &encoders[l]
	e.once.Do(func() {
		level := map[Level]zstd.EncoderLevel{
			LevelFast: zstd.SpeedFastest, LevelGood: zstd.SpeedDefault, LevelBest: zstd.SpeedBetterCompression,
		}[l]
		var err error
		e.enc, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderCRC(true),
			zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)), zstd.WithSingleSegment(true))
		if err != nil {
			panic(err) // the options are constants
		}
	})
	return e.enc
}

var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxFrameRaw))
	if err != nil {
		panic(err) // the options are constants
	}
	return d
})

// compress appends one zstd frame that holds raw to dst.
func compress(l Level, raw, dst []byte) []byte { return encoder(l).EncodeAll(raw, dst) }

// decompress appends the content of one zstd frame to dst.
func decompress(stored, dst []byte) ([]byte, error) { return decoder().DecodeAll(stored, dst) }

// buffers are reused between frames; a pool keeps what is in use bounded by
// the number of goroutines at work.
var buffers sync.Pool

func getBuffer(n int) *[]byte {
	if p, ok := buffers.Get().(*[]byte); ok && cap(*p) >= n {
		*p = (*p)[:n]
		return p
	}
	b := make([]byte, n)
	return &b
}

func putBuffer(p *[]byte) { buffers.Put(p) }
