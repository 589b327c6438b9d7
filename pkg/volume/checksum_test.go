package volume

import (
	"math/rand/v2"
	"testing"
)

func BenchmarkChecksum(b *testing.B) {
	// More than the caches hold, so that memory is part of the picture.
	data := make([]byte, 64<<20)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(data)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		for n := 0; n < len(data)/8192; n++ {
			Checksum(data[n*8192:][:8192], uint32(n))
		}
	}
}
