package repo

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// TestSteadyWriter writes more than several pieces, in odd lengths, to a file,
// and to a pipe, where nothing can be handed to a disk.
func TestSteadyWriter(t *testing.T) {
	seed := Seeds(t, 1)[0]
	t.Logf("TIDEMARK_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	data := make([]byte, 3*steadyBytes+12345)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	write := func(f *os.File) {
		w := &steadyWriter{f: f}
		for rest := data; len(rest) > 0; {
			n := min(1+rng.IntN(steadyBytes/3), len(rest))
			if _, err := w.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if w.at != int64(len(data)) || w.on < w.at-steadyBytes {
			t.Errorf("of %d bytes the disk was given %d", w.at, w.on)
		}
	}
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write(f)
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the file holds something else (%v)", err)
	}
	r, pipe, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan []byte)
	go func() {
		all, _ := io.ReadAll(r)
		got <- all
	}()
	write(pipe)
	pipe.Close()
	if !bytes.Equal(<-got, data) {
		t.Error("something else came out of the pipe")
	}
}
