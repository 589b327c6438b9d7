package repo

import (
	"math/rand/v2"
	"testing"
)

// TestRunCursor looks blocks up in any order, with marks and without, in files
// of few runs and of many.
func TestRunCursor(t *testing.T) {
	seed := Seeds(t, 1)[0]
	t.Logf("TIDEMARK_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for _, n := range []int{1, markEvery, markEvery + 1, 5*markEvery + 7} {
		var runs []Run
		var of, skip []int
		for i := range n {
			count := 1 + rng.IntN(5)
			runs = append(runs, Run{Count: uint32(count), First: uint32(i)})
			for k := range count {
				of, skip = append(of, i), append(skip, k)
			}
		}
		plain, marked := runCursor{runs: runs}, runCursor{runs: runs, marks: marksOf(runs)}
		if n > markEvery && marked.marks == nil {
			t.Fatalf("%d runs are not marked", n)
		}
		at := 0
		for range 2000 {
			if at++; at >= len(of) || rng.IntN(3) == 0 {
				at = rng.IntN(len(of))
			}
			for _, c := range []*runCursor{&plain, &marked} {
				if r, into := c.seek(int64(at)); int(r.First) != of[at] || int(into) != skip[at] {
					t.Fatalf("block %d of %d runs: run %d, block %d, expected %d, %d", at, n, r.First, into, of[at], skip[at])
				}
			}
		}
	}
}
