package repo

import (
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Frames are compressed by libzstd where the program was built with a C
// compiler (compress_libzstd.go), and else in Go, at half the speed and in the
// same format (compress_go.go). What is read may have been damaged on purpose:
// decompressing is Go's in every build.

// Level is how hard the compressor tries.
type Level int

// The levels. The zero value stands for the default.
const (
	LevelDefault Level = iota // LevelFast
	LevelFast
	LevelGood
)

// levelDense is for bytes that are hard to compress: it looks for repetitions
// and spends little on the frequency of bytes. Where that gains nothing, as in
// random or compressed values between page headers, it is up to four times as
// fast, and no larger.
const levelDense Level = -1

// compress appends one zstd frame that holds raw to dst.
func compress(l Level, raw, dst []byte) []byte {
	if l == LevelDefault {
		l = LevelFast
	}
	if dense(raw) {
		l = levelDense
	}
	return encode(l, raw, dst)
}

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
		*z = encode(LevelFast, raw[at:at+sampleBytes], (*z)[:0])
		if float64(len(*z)) < denseShare*sampleBytes {
			return false
		}
	}
	return true
}

// decoder is shared by everything in the process: it keeps some megabytes of
// tables, and DecodeAll may be called from several goroutines.
var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxFrameRaw))
	if err != nil {
		panic(err) // the options are constants
	}
	return d
})

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
