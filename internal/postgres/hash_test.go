package postgres_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"tidemark/internal/blockcopy"
	"tidemark/internal/pgtest"
)

// TestServerHash: a server's digests are those of its files, with the
// privileges of a source and no more.
func TestServerHash(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		t.Parallel()
		n := pgtest.New(t, pgtest.Options{Major: major})
		n.Exec(`CREATE ROLE reader LOGIN;
			GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(text, boolean, boolean), pg_catalog.pg_stat_file(text, boolean),
				pg_catalog.pg_read_binary_file(text), pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean) TO reader`)
		data := make([]byte, 5<<20+12345)
		rnd := rand.New(rand.NewPCG(1, 2))
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		for name, content := range map[string][]byte{"odd 'name": data, "empty": nil} {
			if err := os.WriteFile(filepath.Join(n.Dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		ranges := []blockcopy.Range{{Path: "odd 'name", Length: int64(len(data))}, {Path: "missing", Length: 10}, {Path: "empty", Length: 8192},
			{Path: "odd 'name", Offset: 4 << 20, Length: 4 << 20}, {Path: "odd 'name", Offset: 9 << 20, Length: 2 << 20},
			{Path: "odd 'name", Offset: 8192, Length: 0}, {Path: "odd 'name", Offset: 8192 * 3, Length: 8192*200 + 100}, {Path: "PG_VERSION", Length: 3}}
		for _, bs := range []int64{8192, 1 << 20, 4096, 3000} {
			want := hash(t, blockcopy.NewDirSource(n.Dir, false), ranges, bs)
			got := hash(t, openSource(t, n.ConnInfo("user=reader")), ranges, bs)
			for i, r := range ranges {
				if !slices.Equal(got[i], want[i]) {
					t.Errorf("blocks of %d: %s: %d digests, want %d", bs, r, len(got[i]), len(want[i]))
				}
			}
			if len(want[0]) != (len(data)+int(bs)-1)/int(bs) || want[0][1] != blockcopy.NewDigest(data[bs:2*bs]) {
				t.Errorf("blocks of %d: %d digests", bs, len(want[0]))
			}
		}
		src := openSource(t, n.ConnInfo("user=reader"))
		for _, bad := range []blockcopy.Range{{Path: "../x", Length: 1}, {Path: "base", Length: 1}} {
			err := src.Hash(t.Context(), []blockcopy.Range{bad}, 8192, func(blockcopy.Range, []blockcopy.Digest) error { return nil })
			if err == nil {
				t.Errorf("%s: no error", bad)
			}
		}
	})
}

func hash(t *testing.T, h blockcopy.Hasher, ranges []blockcopy.Range, blockSize int64) [][]blockcopy.Digest {
	t.Helper()
	var out [][]blockcopy.Digest
	err := h.Hash(t.Context(), ranges, blockSize, func(r blockcopy.Range, d []blockcopy.Digest) error {
		if r != ranges[len(out)] {
			t.Errorf("%s came instead of %s", r, ranges[len(out)])
		}
		out = append(out, slices.Clone(d))
		return nil
	})
	if err != nil || len(out) != len(ranges) {
		t.Fatal(len(out), err)
	}
	return out
}
