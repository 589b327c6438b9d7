package blockcopy

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"tidemark/pkg/volume"
)

// writesSeen is a file that tells where it was written to.
type writesSeen struct {
	volume.File
	blocks map[int64]bool
}

func (w *writesSeen) WriteAt(p []byte, off int64) (int, error) {
	for at := off; at < off+int64(len(p)); at += compareBytes {
		w.blocks[at/compareBytes] = true
	}
	return w.File.WriteAt(p, off)
}

// TestOnlyWhatDiffersIsWritten: of blocks that differ in their head, behind it
// or not at all, and of those behind the old end, in pieces of odd sizes.
func TestOnlyWhatDiffersIsWritten(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	const blocks, old = 40, 30 // the last of the old ones is short
	was := make([]byte, old*compareBytes-100)
	for i := range was {
		was[i] = byte(rng.Uint32())
	}
	now := append(bytes.Clone(was), make([]byte, blocks*compareBytes-len(was))...)
	differs := map[int64]bool{}
	for b := range int64(blocks) {
		switch at := b * compareBytes; {
		case b >= old-1:
			differs[b] = true
		case rng.IntN(3) == 0:
			now[at]++
			differs[b] = true
		case rng.IntN(2) == 0:
			now[at+compareBytes-1]++
			differs[b] = true
		}
	}
	for _, known := range []bool{true, false} {
		name := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(name, was, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := volume.OS.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var o *overwritten
		if known {
			o = newOverwritten()
			for at := 0; at < len(was); at += 4 * compareBytes {
				o.note("p", int64(at), was[at:min(at+4*compareBytes, len(was))])
			}
		}
		seen := &writesSeen{f, map[int64]bool{}}
		for at := 0; at < len(now); {
			n := min((1+rng.IntN(5))*compareBytes, len(now)-at)
			if err := o.write(&batchFile{File: seen}, "p", now[at:at+n], int64(at)); err != nil {
				t.Fatal(err)
			}
			at += n
		}
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, now) {
			t.Errorf("known %v: the file is not what was written: %v", known, err)
		}
		for b := range int64(blocks) {
			if known && seen.blocks[b] != differs[b] || !known && !seen.blocks[b] {
				t.Errorf("known %v: block %d differs %v, was written %v", known, b, differs[b], seen.blocks[b])
			}
		}
	}
}

// TestOverwrittenWithHoles: what was not read was not there, and a head is
// compared only where a grain begins.
func TestOverwrittenWithHoles(t *testing.T) {
	o := newOverwritten()
	grain := bytes.Repeat([]byte{7}, compareBytes)
	o.note("p", compareBytes, grain)
	o.note("p", 4*compareBytes, grain)
	for _, c := range []struct {
		path string
		off  int64
		data []byte
		want bool
	}{
		{"p", 0, grain, true},
		{"p", compareBytes, grain, false},
		{"p", compareBytes, bytes.Repeat([]byte{8}, compareBytes), true},
		{"p", compareBytes / 2, grain, false},
		{"p", compareBytes + 512, bytes.Repeat([]byte{8}, compareBytes), false},
		{"p", 2 * compareBytes, grain, true},
		{"p", 4 * compareBytes, grain[:4], false},
		{"p", 9 * compareBytes, grain, true},
		{"other", 0, grain, true},
	} {
		if got := o.differs(c.path, c.off, c.data); got != c.want {
			t.Errorf("%s at %d: differs %v, want %v", c.path, c.off, got, c.want)
		}
	}
}
