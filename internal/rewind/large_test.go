package rewind

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tidemark/internal/pgtest"
)

var largeWanted = os.Getenv("TIDEMARK_LARGE") != "" // read before pgtest clears the environment

// TestOverOneGigabyte rewinds, rescues and verifies a table of more than one
// segment file: both sides change blocks of either, the old one grows, the new
// one shrinks it to its first segment.
func TestOverOneGigabyte(t *testing.T) {
	if !largeWanted {
		t.Skip("needs several GB and minutes: make test-rewind-long")
	}
	old := pgtest.New(t, pgtest.Options{Name: "old", Checksums: true, Config: append(slices.Clone(config), "checkpoint_timeout = 1h", "max_wal_size = 16GB", "wal_keep_size = 8GB", "synchronous_commit = off")})
	old.Exec(`CREATE EXTENSION amcheck; CREATE TABLE wide (i int PRIMARY KEY, v text); ALTER TABLE wide ALTER v SET STORAGE PLAIN;
		CREATE TABLE other (i int PRIMARY KEY, v text); ALTER TABLE other ALTER v SET STORAGE PLAIN`)
	for _, name := range []string{"wide", "other"} {
		old.Exec("INSERT INTO " + name + " SELECT g, repeat('w', 7000) FROM generate_series(1, 133000) g")
	}
	old.Exec("CHECKPOINT")
	p := &pair{t: t, old: old, new: old.Standby(pgtest.StandbyOptions{Name: "new"})}
	p.new.WaitFor(p.old)
	p.new.Promote()
	for _, name := range []string{"wide", "other"} {
		segment := filepath.Join(p.old.Dir, p.old.SQL("SELECT pg_relation_filepath('"+name+"')")+".1")
		if fi, err := os.Stat(segment); err != nil || fi.Size() == 0 {
			t.Fatal("there is no second segment", err)
		}
	}
	p.old.Exec("UPDATE wide SET v = 'lost' WHERE i IN (5, 70000, 132000); DELETE FROM wide WHERE i IN (7, 132500)")
	p.old.Exec("INSERT INTO wide SELECT g, repeat('l', 7000) FROM generate_series(133001, 133500) g")
	p.old.Exec("UPDATE other SET v = 'lost' WHERE i IN (6, 132001)")
	p.new.Exec("UPDATE wide SET v = 'kept' WHERE i IN (6, 70001, 132001); INSERT INTO wide SELECT g, repeat('k', 7000) FROM generate_series(133001, 133200) g")
	execEach(p.new, "DELETE FROM other WHERE i > 100000; VACUUM other")
	p.old.Stop()

	out := filepath.Join(p.old.TempDir("rescued"), "out")
	res, err := Rescue(t.Context(), p.options(), out)
	if err != nil {
		t.Fatal(err)
	}
	if deleted := readFile(t, filepath.Join(out, rescuePath("postgres", "public", "wide", "deleted"))); deleted != "7\n132500\n" {
		t.Errorf("deleted: %q", deleted)
	}
	if updated := readFile(t, filepath.Join(out, rescuePath("postgres", "public", "wide", "updated"))); strings.Count(updated, "\tlost\n") != 3 || !strings.Contains(updated, "132000\tlost") {
		t.Errorf("updated: %q", updated)
	}
	if res.Rows != 3+2+500+2 {
		t.Errorf("%d rows rescued", res.Rows)
	}
	run := mustRun(t, p.options())
	t.Logf("moved %d bytes, rescued %d rows by copying %d bytes", run.Bytes, res.Rows, res.CopiedBytes)
	p.proveEqual(p.new)
}
