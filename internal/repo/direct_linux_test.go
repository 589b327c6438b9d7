package repo

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDirectWriter writes in odd lengths what fills no buffer, or several to
// the last byte or not, past the cache and where that is refused.
func TestDirectWriter(t *testing.T) {
	seed := Seeds(t, 1)[0]
	t.Logf("TIDEMARK_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	dir := t.TempDir()
	for _, size := range []int{0, 1, directBytes - 1, directBytes, directBytes + 1, 3 * directBytes, 7*directBytes + 12345} {
		for _, refused := range []bool{false, true} {
			data := make([]byte, size)
			for i := range data {
				data[i] = byte(rng.Uint32())
			}
			f, err := os.Create(filepath.Join(dir, "file"))
			if err != nil {
				t.Fatal(err)
			}
			w := newDirectWriter(f)
			w.refused = refused
			for rest := data; len(rest) > 0; {
				n := min(1+rng.IntN(directBytes*3/2), len(rest))
				if _, err := w.Write(rest[:n]); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if err := errors.Join(w.finish(), w.finish(), f.Sync(), f.Close()); err != nil {
				t.Fatalf("%d bytes: %v", size, err)
			}
			if got, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, refused %t: the file holds something else (%v)", size, refused, err)
			}
		}
	}
}

// TestDirectWriterFails has every write fail: who writes on is told, and the
// end of it too.
func TestDirectWriterFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := newDirectWriter(f)
	for range 5 {
		if _, err = w.Write(make([]byte, directBytes)); err != nil {
			break
		}
	}
	if !errors.Is(err, unix.EBADF) {
		t.Errorf("writing on: %v", err)
	}
	if err := w.finish(); !errors.Is(err, unix.EBADF) {
		t.Errorf("at the end: %v", err)
	}
}
