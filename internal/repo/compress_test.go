package repo

import (
	"bytes"
	"math/rand/v2"
	"os/exec"
	"testing"
)

// TestCompress: whatever the content is, what is stored is a zstd frame, no
// larger than it has to be.
func TestCompress(t *testing.T) {
	r := rand.NewChaCha8([32]byte{1})
	noise := func(n int) []byte {
		b := make([]byte, n)
		r.Read(b)
		return b
	}
	// A page of random bytes with what every page has besides.
	pages := noise(1 << 20)
	for at := 0; at < len(pages); at += 8192 {
		clear(pages[at : at+100])
	}
	half := append(noise(512<<10), make([]byte, 512<<10)...)
	for _, tt := range []struct {
		name string
		raw  []byte
		most int // bytes that are stored
	}{
		{"nothing", nil, 20},
		{"a byte", []byte{1}, 20},
		{"zeros", make([]byte, 1<<20), 300},
		{"noise", noise(1 << 20), 1<<20 + 64},
		{"noise, an odd length", noise(1<<20 - 4711), 1<<20 - 4711 + 64},
		{"a little noise", noise(3000), 3000 + 20},
		{"pages of noise", pages, 1<<20 + 64},
		{"half noise, half zeros", half, 514 << 10},
		{"text", bytes.Repeat([]byte("a row of a table, "), 50000), 10000},
	} {
		for _, l := range []Level{LevelDefault, LevelGood} {
			z := compress(l, tt.raw, []byte("front"))[5:]
			if len(z) > tt.most {
				t.Errorf("%s, level %d: %d bytes take %d", tt.name, l, len(tt.raw), len(z))
			}
			if len(tt.raw) > 0 && z[4]&4 == 0 {
				t.Errorf("%s, level %d: the frame has no checksum", tt.name, l)
			}
			got, err := decompress(z, nil)
			if err != nil || !bytes.Equal(got, tt.raw) {
				t.Errorf("%s, level %d: %v", tt.name, l, err)
			}
			if len(tt.raw) > 0 { // the checksum is looked at
				z[len(z)-1] ^= 1
				if _, err := decompress(z, nil); err == nil {
					t.Errorf("%s, level %d: a wrong checksum passes", tt.name, l)
				}
				z[len(z)-1] ^= 1
			}
			if _, err := exec.LookPath("zstd"); err != nil {
				continue
			}
			cmd := exec.Command("zstd", "-dc")
			cmd.Stdin = bytes.NewReader(z)
			if out, err := cmd.Output(); err != nil || !bytes.Equal(out, tt.raw) {
				t.Errorf("%s, level %d: zstd says %v", tt.name, l, err)
			}
		}
	}
}
