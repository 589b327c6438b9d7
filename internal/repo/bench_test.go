package repo_test

import (
	"math/rand/v2"
	"testing"

	"tidemark/internal/blockcopy"
	"tidemark/internal/repo"
)

// BenchmarkBackup writes 64 MiB, a third of it incompressible, into a repository.
func BenchmarkBackup(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	data := text(r, 43<<20)
	data = append(data, noise(r, 21<<20)...)
	rp, _, err := repo.Init(b.Context(), b.TempDir()+"/r")
	if err != nil {
		b.Fatal(err)
	}
	c := rp.Cluster(testSystem)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		w, err := c.NewBackup(b.Context(), repo.WriterOptions{Tool: "bench", BlockSize: testBlock})
		if err != nil {
			b.Fatal(err)
		}
		f, err := w.File(blockcopy.Entry{Path: "x", Size: int64(len(data))})
		if err != nil {
			b.Fatal(err)
		}
		for off := 0; off < len(data); off += 1 << 20 {
			if err := f.Write(int64(off/testBlock), data[off:off+1<<20]); err != nil {
				b.Fatal(err)
			}
		}
		if err := f.Close(int64(len(data)), false); err != nil {
			b.Fatal(err)
		}
		if err := w.Abort(); err != nil {
			b.Fatal(err)
		}
	}
}
