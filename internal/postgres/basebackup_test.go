package postgres_test

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/internal/pgtest"
	"tidemark/internal/postgres"
)

// readBackup reads a base backup to its end. It returns the sizes of the files
// by their paths, those of a tablespace below its link.
func readBackup(t *testing.T, c *postgres.ReplConn, o postgres.BaseBackupOptions) (b *postgres.BaseBackup, files map[string]int64, damaged bool) {
	t.Helper()
	b, err := c.BaseBackup(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]int64{}
	for {
		a, err := b.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		prefix := ""
		if a.OID != 0 {
			prefix = "space/"
		}
		for in := tar.NewReader(b); ; {
			h, err := in.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Typeflag != tar.TypeReg {
				continue
			}
			n, err := io.Copy(io.Discard, in)
			if err != nil || n != h.Size {
				t.Fatalf("%s: %d bytes of %d: %v", h.Name, n, h.Size, err)
			}
			files[prefix+strings.TrimPrefix(h.Name, "./")] = n
		}
	}
	stop, damaged, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if stop.LSN <= b.Start.LSN || stop.Timeline != b.Start.Timeline {
		t.Errorf("from %v to %v", b.Start, stop)
	}
	return b, files, damaged
}

// TestBaseBackup: a role with nothing but REPLICATION reads every file, with and
// without a tablespace, with and without a damaged page, and the session is good
// for another command afterwards.
func TestBaseBackup(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		t.Parallel()
		n := pgtest.New(t, pgtest.Options{Major: major, Checksums: true})
		n.Exec("CREATE ROLE reader LOGIN REPLICATION")
		n.Exec("CREATE TABLE t AS SELECT g AS id, repeat('x', 500) AS t FROM generate_series(1, 1000) g")
		file := n.SQL("SELECT pg_relation_filepath('t')")
		n.Exec("CHECKPOINT")
		c, err := postgres.ConnectReplication(t.Context(), n.ConnInfo("user=reader"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		b, files, damaged := readBackup(t, c, postgres.BaseBackupOptions{Label: "it's"})
		if damaged || len(b.Archives) != 1 || files["backup_label"] == 0 || files["global/pg_control"] != 8192 {
			t.Errorf("%+v, damaged %t, %d files", b.Archives, damaged, len(files))
		}
		if st, err := os.Stat(filepath.Join(n.Dir, file)); err != nil || files[file] != st.Size() {
			t.Errorf("%s: %d bytes: %v", file, files[file], err)
		}

		n.Exec("CREATE TABLESPACE ts LOCATION " + postgres.QuoteLiteral(n.TempDir("a spaced dir")))
		n.Exec("CREATE TABLE u TABLESPACE ts AS SELECT generate_series(1, 1000) AS id")
		in := n.SQL("SELECT regexp_replace(pg_relation_filepath('u'), '^pg_tblspc/[0-9]+/', 'space/')")
		n.Stop()
		f, err := os.OpenFile(filepath.Join(n.Dir, file), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte("damaged"), 3*8192+5000); err != nil {
			t.Fatal(err)
		}
		n.Start()
		if c, err = postgres.ConnectReplication(t.Context(), n.ConnInfo("user=reader")); err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		b, files, damaged = readBackup(t, c, postgres.BaseBackupOptions{Rate: 1 << 40})
		if !damaged || len(b.Archives) != 2 || b.Archives[1].OID != 0 || b.Archives[1].Size < 1<<20 || files[in] == 0 || files[file] == 0 || files["global/pg_control"] != 8192 {
			t.Errorf("%+v, damaged %t, %d bytes in the tablespace, %d beside it", b.Archives, damaged, files[in], files[file])
		}
		if _, err := c.IdentifySystem(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
