package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
)

// Every image of the fixtures, by whatever method it is compressed, becomes a
// page whose header fits: sizes, bounds, and the version of the layout.
func TestRestoreImages(t *testing.T) {
	for _, major := range testMajors {
		f := loadFixture(t, major)
		seen := map[string]int{}
		r := newTestReader(t, f.sources[0], f.options(0))
		page := make([]byte, 8192)
		for r.Next() {
			rec := r.Record()
			for i := range rec.Blocks {
				b := &rec.Blocks[i]
				err := b.RestoreImage(page)
				if !b.HasImage {
					if !errors.Is(err, ErrNoImage) {
						t.Fatal(err)
					}
					continue
				}
				if err != nil {
					t.Fatalf("PostgreSQL %d, %s, block %d: %v", major, rec.LSN, i, err)
				}
				seen[b.Image.Compression.String()]++
				lower, upper, special := binary.LittleEndian.Uint16(page[12:]), binary.LittleEndian.Uint16(page[14:]), binary.LittleEndian.Uint16(page[16:])
				size := binary.LittleEndian.Uint16(page[18:])
				isNew := size == 0 && upper == 0
				if !isNew && (size != 8192|4 || lower < 24 || lower > upper || upper > special || special > 8192) {
					t.Fatalf("PostgreSQL %d, %s, block %d (%s): lower %d, upper %d, special %d, size %d", major, rec.LSN, i, b.Image.Compression, lower, upper, special, size)
				}
			}
		}
		want := []string{"none", "pglz"}
		if major == 15 {
			want = append(want, "lz4", "zstd")
		}
		for _, w := range want {
			if seen[w] == 0 {
				t.Errorf("PostgreSQL %d: %v", major, seen)
			}
		}
		t.Log(fmt.Sprint("PostgreSQL ", major, ": ", seen))
	}
}

// Damaged compressed data is an error, never a panic.
func TestRestoreDamagedImage(t *testing.T) {
	f := loadFixture(t, 15)
	r := newTestReader(t, f.sources[0], f.options(0))
	page := make([]byte, 8192)
	tried := 0
	for r.Next() && tried < 200 {
		rec := r.Record()
		for i := range rec.Blocks {
			b := rec.Blocks[i]
			if !b.HasImage || b.Image.Compression == NotCompressed {
				continue
			}
			tried++
			full := b.Image.Data
			for n := 0; n < len(full); n += 1 + len(full)/13 {
				b.Image.Data = full[:n]
				_ = b.RestoreImage(page)
				broken := append([]byte{}, full...)
				broken[n] ^= 0x5A
				b.Image.Data = broken
				_ = b.RestoreImage(page)
			}
		}
	}
}
