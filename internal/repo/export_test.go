package repo

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// ForgeFrame changes a bit in the first frame of a pack and makes all checksums
// that need no key right again.
func ForgeFrame(b []byte) {
	off, body, n := indexOf(b)
	first := binary.LittleEndian.Uint32(body[n+8:])
	start := skipHeader + n
	b[start+100] ^= 1
	crc := crc32.Checksum(b[start:start+int(first)], castagnoli)
	binary.LittleEndian.PutUint32(body[n+16:], crc)
	resum(b, off)
}

// ForgeIndex changes the hash of a block and makes the index's own right again.
func ForgeIndex(b []byte) {
	off, body, _ := indexOf(b)
	body[len(body)-trailerLength-sealSize-1] ^= 1
	resum(b, off)
}

func indexOf(b []byte) (off int, body []byte, header int) {
	off = int(binary.LittleEndian.Uint64(b[len(b)-trailerLength:]))
	body = b[off+skipHeader:]
	_, header, err := parseHeader(body)
	if err != nil {
		panic(err)
	}
	return off, body, header
}

func resum(b []byte, off int) {
	sum := HashBlock(b[off+skipHeader : len(b)-8-HashSize])
	copy(b[len(b)-8-HashSize:], sum[:])
}

// Aged returns a note "started" as if its process had been another one, that is
// gone.
func Aged(note []byte) []byte {
	var s Started
	if err := decodeNote("started", note, &s); err != nil {
		panic(err)
	}
	s.Tick += "1"
	out, err := encodeNote(&s)
	if err != nil {
		panic(err)
	}
	return out
}

// PackNames lists the packs in the store, in order.
func (c *Cluster) PackNames(ctx context.Context) ([]string, error) {
	packs, err := c.listPacks(ctx, "")
	return slices.Sorted(maps.Keys(packs)), err
}

// Tick makes the cluster's clock go on by a second with every backup, as if the
// test took as long as what it plays: identifiers of removed backups do not
// come again.
func (c *Cluster) Tick() { c.TickFrom(now().Add(-time.Hour)) }

// TickFrom is Tick from a time on.
func (c *Cluster) TickFrom(begin time.Time) {
	ticks := new(atomic.Int64)
	c.clock = func() time.Time { return begin.Add(time.Duration(ticks.Add(1)) * time.Second) }
}

// Forget makes the cluster remember one index at a time.
func (c *Cluster) Forget() { c.indexes.most = 1 }

// Forget makes the source remember one frame at a time.
func (s *Source) Forget() { s.frames.budget = 1 }

// Seeds returns those that a random test runs with: TIDEMARK_SEED names one,
// TIDEMARK_SEEDS says how many where there are several.
func Seeds(t testing.TB, count uint64) (out []uint64) {
	t.Helper()
	if s := os.Getenv("TIDEMARK_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return []uint64{n}
	}
	if s := os.Getenv("TIDEMARK_SEEDS"); s != "" && count > 1 {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		count = n
	}
	first := rand.Uint64N(1e9)
	for i := range count {
		out = append(out, first+i)
	}
	return out
}
