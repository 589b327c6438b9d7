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
func compress(l Level, raw, dst []byte) []byte {
	if l <= LevelGood && dense(raw) {
		return matcher().EncodeAll(raw, dst)
	}
	return encoder(l).EncodeAll(raw, dst)
}

// matcher is a compressor that looks for repetitions only and spends nothing on
// the frequency of bytes. Where that gains nothing, as in random or compressed
// values between page headers, it is more than twice as fast, and no larger.
var matcher = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(true), zstd.WithNoEntropyCompression(true),
		zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)), zstd.WithSingleSegment(true))
	if err != nil {
		panic(err) // the options are constants
	}
	return e
})

// By which samples a frame counts as dense: each of them would shrink by less
// than a twentieth.
const (
	sampleBytes = 32 << 10
	samples     = 2
	denseShare  = 0.95
)

// dense tells by samples whether bytes are hard to compress.
func dense(raw []byte) bool {
	if len(raw) < 8*samples*sampleBytes {
		return false
	}
	z := getBuffer(0)
	defer putBuffer(z)
	for i := range samples {
		at := len(raw) * (i + 1) / (samples + 1)
		*z = encoder(LevelFast).EncodeAll(raw[at:at+sampleBytes], (*z)[:0])
		if float64(len(*z)) < denseShare*sampleBytes {
			return false
		}
	}
	return true
}

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
