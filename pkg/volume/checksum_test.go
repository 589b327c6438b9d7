package volume

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// slowChecksum is the algorithm word by word, as it is described.
func slowChecksum(page []byte, block uint32) uint16 {
	if len(page) < PageHeaderSize || len(page)%128 != 0 {
		return 0
	}
	copied := bytes.Clone(page)
	copied[8], copied[9] = 0, 0
	sums := checksumBasis
	step := func(lane int, word uint32) {
		x := sums[lane] ^ word
		sums[lane] = x*checksumPrime ^ x>>17
	}
	for i := 0; i < len(copied); i += 4 {
		step(i/4%32, binary.LittleEndian.Uint32(copied[i:]))
	}
	var sum uint32
	for lane := range sums {
		step(lane, 0)
		step(lane, 0)
		sum ^= sums[lane]
	}
	return uint16((sum^block)%65535 + 1)
}

func TestChecksum(t *testing.T) {
	rng := rand.NewChaCha8([32]byte{1})
	for _, size := range []int{1024, 2048, 4096, 8192, 16384, 32768} {
		page := make([]byte, size)
		for block := range uint32(64) {
			if got, want := Checksum(page, block), slowChecksum(page, block); got != want {
				t.Fatalf("%d bytes, block %d: %#x, want %#x", size, block, got, want)
			}
			before := Checksum(page, block)
			page[8]++ // the field itself does not count
			if Checksum(page, block) != before {
				t.Fatal("the checksum depends on itself")
			}
			_, _ = rng.Read(page)
		}
	}
	for _, size := range []int{0, 1, 24, 127, 129, 8191} {
		if Checksum(make([]byte, size), 0) != 0 {
			t.Errorf("%d bytes have a checksum", size)
		}
	}
}

// BenchmarkChecksum also reports the rate per second of processor time, which
// other work on the machine does not lower.
func BenchmarkChecksum(b *testing.B) {
	// More than the caches hold, so that memory is part of the picture.
	data := make([]byte, 64<<20)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(data)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b.SetBytes(int64(len(data)))
	began, rounds := threadTime(b), 0
	for b.Loop() {
		for n := 0; n < len(data)/8192; n++ {
			Checksum(data[n*8192:][:8192], uint32(n))
		}
		rounds++
	}
	spent := threadTime(b) - began
	b.ReportMetric(float64(rounds)*float64(len(data))/1e9/spent.Seconds(), "GB/cpu-s")
}

// threadTime is the processor time that this thread has used.
func threadTime(b *testing.B) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ts.Nano())
}
