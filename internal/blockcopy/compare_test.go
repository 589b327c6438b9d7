package blockcopy

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestCompare changes random blocks and compares with what a byte-wise
// comparison says.
func TestCompare(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	here, there := t.TempDir(), t.TempDir()
	var ranges []Range
	want := map[string][]Span{}
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		size := rnd.Int64N(5<<20) + 1
		mine := make([]byte, size)
		for i := range mine {
			mine[i] = byte(rnd.Uint32())
		}
		theirs := slices.Clone(mine)
		for range rnd.IntN(6) {
			theirs[rnd.Int64N(size)]++
		}
		if rnd.IntN(3) == 0 {
			theirs = theirs[:rnd.Int64N(size)]
		}
		writeFile(t, here, name, mine)
		writeFile(t, there, name, theirs)
		ranges = append(ranges, Range{name, 0, size})
		for off := int64(0); off < size; off += DefaultHashUnit {
			end := min(off+DefaultHashUnit, size)
			if end > int64(len(theirs)) || !slices.Equal(mine[off:end], theirs[off:end]) {
				want[name] = appendSpan(want[name], Span{off, end - off})
			}
		}
	}
	for _, jobs := range []int{1, 4} {
		c := &Comparer{Source: NewDirSource(there, false), Target: here, Jobs: jobs}
		got, err := c.Compare(t.Context(), ranges)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range ranges {
			if !slices.Equal(got.Spans[r.Path], want[r.Path]) {
				t.Errorf("%s of %d bytes: %v, want %v", r.Path, r.Length, got.Spans[r.Path], want[r.Path])
			}
		}
	}
}

func TestCompareMissingFile(t *testing.T) {
	here, there := t.TempDir(), t.TempDir()
	writeFile(t, here, "x", make([]byte, 20000))
	c := &Comparer{Source: NewDirSource(there, false), Target: here}
	got, err := c.Compare(t.Context(), []Range{{"x", 0, 20000}})
	if err != nil || !slices.Equal(got.Spans["x"], []Span{{0, 20000}}) {
		t.Error(got, err)
	}
}

func TestEqualFiles(t *testing.T) {
	here, there := t.TempDir(), t.TempDir()
	for name, pair := range map[string][2]string{"same": {"abc", "abc"}, "other": {"abc", "abd"}, "longer here": {"abcd", "abc"}, "empty": {"", ""}} {
		writeFile(t, here, name, []byte(pair[0]))
		writeFile(t, there, name, []byte(pair[1]))
	}
	writeFile(t, there, "only there", []byte("x"))
	src := NewDirSource(there, false)
	entries, err := src.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := EqualFiles(t.Context(), src, here, entries, 2)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"same": true, "empty": true, "other": false, "longer here": false, "only there": false} {
		if got[name] != want {
			t.Errorf("%s: %v", name, got[name])
		}
	}
}

// TestStableSourceChanged: what must not change is watched while it is hashed.
func TestStableSourceChanged(t *testing.T) {
	here, there := t.TempDir(), t.TempDir()
	writeFile(t, here, "x", []byte("abc"))
	writeFile(t, there, "x", []byte("abc"))
	src := NewDirSource(there, true)
	if _, err := src.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	writeFile(t, there, "x", []byte("abcd"))
	c := &Comparer{Source: src, Target: here}
	if _, err := c.Compare(t.Context(), []Range{{"x", 0, 3}}); err == nil {
		t.Error("no error")
	}
}

// plainSource cannot hash.
type plainSource struct{ Source }

func TestNoHasher(t *testing.T) {
	src := plainSource{NewDirSource(t.TempDir(), false)}
	if _, err := (&Comparer{Source: src, Target: t.TempDir()}).Compare(t.Context(), nil); !errors.Is(err, ErrNoHashes) {
		t.Error(err)
	}
	if equal, err := EqualFiles(t.Context(), src, t.TempDir(), []Entry{{Path: "x"}}, 1); len(equal) > 0 || err != nil {
		t.Error(equal, err)
	}
}

func writeFile(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}
