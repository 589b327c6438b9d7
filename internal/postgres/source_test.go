package postgres_test

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tidemark/internal/blockcopy"
	"tidemark/internal/pgtest"
	"tidemark/internal/postgres"
)

func openSource(t *testing.T, conninfo string) *postgres.ServerSource {
	t.Helper()
	src, err := postgres.OpenSource(t.Context(), conninfo)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

func TestServerSource(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		t.Parallel()
		n := pgtest.New(t, pgtest.Options{Major: major})
		space := n.TempDir("a spaced dir")
		n.Exec("CREATE TABLESPACE ts LOCATION " + postgres.QuoteLiteral(space))
		n.Exec("CREATE TABLE t TABLESPACE ts AS SELECT generate_series(1, 100000) AS i")
		n.Exec("CHECKPOINT")
		n.Exec(`CREATE ROLE reader LOGIN;
			GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(text, boolean, boolean), pg_catalog.pg_stat_file(text, boolean),
				pg_catalog.pg_read_binary_file(text), pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean) TO reader`)
		odd := filepath.Join(n.Dir, "odd 'name\".txt")
		if err := os.WriteFile(odd, []byte("odd"), 0o600); err != nil {
			t.Fatal(err)
		}
		src := openSource(t, n.ConnInfo("user=reader"))
		entries, err := src.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		byPath := map[string]blockcopy.Entry{}
		var ranges []blockcopy.Range
		for _, e := range entries {
			if dir := filepath.Dir(e.Path); dir != "." {
				if _, ok := byPath[dir]; !ok {
					t.Errorf("%s comes before its directory", e.Path)
				}
			}
			byPath[e.Path] = e
			if e.Type == blockcopy.File && e.Size > 0 && strings.HasPrefix(e.Path, "pg_tblspc/") {
				ranges = append(ranges, blockcopy.Range{Path: e.Path, Length: e.Size + 100})
			}
		}
		link := byPath["pg_tblspc/"+n.SQL("SELECT oid FROM pg_tablespace WHERE spcname = 'ts'")]
		if link.Type != blockcopy.Link || link.LinkTarget != space {
			t.Errorf("tablespace is listed as %+v", link)
		}
		if e := byPath["odd 'name\".txt"]; e.Size != 3 || e.ModTime.IsZero() {
			t.Errorf("odd name is listed as %+v", e)
		}
		ranges = append(ranges, blockcopy.Range{Path: "base/1/0", Length: 10}, blockcopy.Range{Path: "PG_VERSION", Offset: 1, Length: 1})
		got := map[string][]byte{}
		gone := 0
		err = src.Fetch(t.Context(), ranges, func(p blockcopy.Range, data []byte, missing bool) error {
			if missing {
				gone++
				return nil
			}
			if int64(len(got[p.Path])) != p.Offset && p.Path != "PG_VERSION" {
				t.Errorf("%s: a gap before it", p)
			}
			got[p.Path] = append(got[p.Path], data...)
			return nil
		})
		if err != nil || gone != 1 {
			t.Fatalf("fetch: %v, %d gone", err, gone)
		}
		for path, data := range got {
			want, err := os.ReadFile(filepath.Join(n.Dir, path))
			if path == "PG_VERSION" {
				want = want[1:2]
			}
			if err != nil || string(want) != string(data) {
				t.Errorf("%s: other content (%v), %d bytes of %d", path, err, len(data), len(want))
			}
		}
		scattered(t, src, n.Dir, ranges[0])
		if _, err := src.ReadFile(t.Context(), "no/such/file"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a missing file: %v", err)
		}
		if c, err := postgres.ReadControl(t.Context(), src); err != nil || c.Major() != major {
			t.Errorf("control file: %v", err)
		}
		stop := errors.New("stop")
		if err := src.Fetch(t.Context(), ranges, func(blockcopy.Range, []byte, bool) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("an error of the receiver: %v", err)
		}
		if _, err := src.ReadFile(t.Context(), "PG_VERSION"); err != nil {
			t.Errorf("after an abandoned fetch: %v", err)
		}
		if _, err := src.ReadFile(t.Context(), "../etc/passwd"); err == nil {
			t.Error("a name outside the data directory was read")
		}
		n.Exec("REVOKE ALL ON FUNCTION pg_ls_dir(text, boolean, boolean) FROM reader")
		if _, err := src.List(t.Context()); !errors.Is(err, postgres.ErrPrivilege) {
			t.Errorf("without privilege: %v", err)
		}
	})
}

// scattered fetches blocks of a file that lie near each other and far apart,
// the last of them behind its end, and compares them with the file.
func scattered(t *testing.T, src *postgres.ServerSource, dir string, whole blockcopy.Range) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, whole.Path))
	if err != nil {
		t.Fatal(err)
	}
	var ranges []blockcopy.Range
	for at := int64(0); at < int64(len(data))+20*8192; {
		r := blockcopy.Range{Path: whole.Path, Offset: at, Length: 8192 * (1 + rand.Int64N(3)*rand.Int64N(9))}
		ranges = append(ranges, r, blockcopy.Range{Path: "base/1/0", Offset: at, Length: 1})
		at = r.End() + 8192*(1+rand.Int64N(3)*rand.Int64N(6))
	}
	ranges = slices.DeleteFunc(ranges, func(r blockcopy.Range) bool { return r.Path != whole.Path && rand.IntN(10) > 0 })
	got := map[string]int{}
	err = src.Fetch(t.Context(), ranges, func(p blockcopy.Range, content []byte, missing bool) error {
		got[p.Path]++
		from, to := min(p.Offset, int64(len(data))), min(p.End(), int64(len(data)))
		if p.Path == whole.Path && (missing || !bytes.Equal(content, data[from:to])) || p.Path != whole.Path && !missing {
			t.Errorf("%s: missing %v, %d bytes; the file has %d", p, missing, len(content), len(data))
		}
		return nil
	})
	if err != nil || got[whole.Path] < len(ranges)/2 {
		t.Errorf("%v, pieces %v of %d ranges", err, got, len(ranges))
	}
}
