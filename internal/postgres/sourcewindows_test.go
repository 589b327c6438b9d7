package postgres

import (
	"math/rand/v2"
	"testing"

	"tidemark/internal/blockcopy"
)

// TestWindows cuts random ranges, near each other and far apart, backwards and
// in several files, and looks each row up in its window.
func TestWindows(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		var ranges []blockcopy.Range
		at := int64(0)
		for range rng.IntN(40) {
			if rng.IntN(10) == 0 {
				at = rng.Int64N(1 << 30)
			}
			at += int64(rng.IntN(3)*rng.IntN(8)) * 8192
			r := blockcopy.Range{Path: []string{"base/1/2", "base/1/3"}[rng.IntN(12)/11], Offset: at, Length: 1 + rng.Int64N(1<<(3+rng.IntN(18)))}
			ranges = append(ranges, r)
			at = r.End()
		}
		pieces, err := fetchPieces(ranges)
		if err != nil {
			t.Fatal(err)
		}
		w := cutWindows(pieces)
		next := int32(1)
		for n, path := range w.paths {
			if w.firsts[n] != next || w.lasts[n] < next || w.lengths[n] > windowBytes {
				t.Fatalf("window %d has the rows %d to %d and %d bytes; row %d comes next", n, w.firsts[n], w.lasts[n], w.lengths[n], next)
			}
			for ; next <= w.lasts[n]; next++ {
				p, from, size := pieces[next-1], w.from[next-1], w.size[next-1]
				if p.Path != path || w.starts[n]+int64(from)-1 != p.Offset || int64(size) != p.Length || int64(from)-1+int64(size) > w.lengths[n] {
					t.Fatalf("%v: row %d of window %d, from %d on, %d bytes", p, next, n, from, size)
				}
			}
		}
		if int(next) != len(pieces)+1 {
			t.Fatalf("%d rows of %d are in windows", next-1, len(pieces))
		}
	}
}
