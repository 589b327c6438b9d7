package backup_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"tidemark/internal/pgtest"
	"tidemark/internal/repo"
	"tidemark/pkg/volume"
)

// digests returns the digest of every relation file that a user made, by path.
func digests(t *testing.T, dir, id string) map[string]string {
	t.Helper()
	r, err := repo.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	c, err := r.OnlyCluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.OpenManifest(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for files := m.Files(t.Context()); ; {
		f, err := files.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if seg, ok := volume.ParseRelPath(f.Path); ok && (seg.Relation >= 16384 || seg.Database >= 16384) {
			out[f.Path] = fmt.Sprintf("%d bytes, %s", f.Size, f.Digest)
		}
	}
}

// TestPageMap: what an incremental backup takes over unread is what reading it
// would have given, through everything that the WAL does not tell block by block.
func TestPageMap(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		dir := newRepo(t)
		n := pgtest.New(t, pgtest.Options{Major: major, Checksums: true, Config: append(archiving(dir), "autovacuum = off")})
		n.Exec("CREATE TABLE big AS SELECT g AS id, repeat('x', 500) AS t FROM generate_series(1, 40000) g")
		n.Exec("CREATE INDEX ON big (id)")
		n.Exec("CREATE TABLE tail AS SELECT g AS id, repeat('x', 500) AS t FROM generate_series(1, 5000) g")
		n.Exec("CREATE TABLE other AS SELECT g AS id FROM generate_series(1, 5000) g")
		n.Exec("VACUUM")
		create(t, dir, n)
		fileCopy := "CREATE DATABASE copied"
		if major >= 15 {
			fileCopy += " STRATEGY FILE_COPY"
		}
		var last created
		for _, step := range []struct {
			name       string
			statements []string
		}{
			{"nothing", nil},
			{"rows here and there", []string{"UPDATE big SET t = 'changed' WHERE id % 1000 = 0"}},
			{"truncate then extend", []string{"DELETE FROM tail WHERE id > 1000", "VACUUM tail", "INSERT INTO tail SELECT g, repeat('z', 500) FROM generate_series(1, 9000) g"}},
			{"a file that shrinks", []string{"DELETE FROM tail WHERE id > 500", "VACUUM tail"}},
			{"VM and FSM", []string{"DELETE FROM big WHERE id BETWEEN 20000 AND 21000", "VACUUM (FREEZE) big", "UPDATE big SET t = 'again' WHERE id < 5"}},
			{"a relation made anew", []string{"TRUNCATE other", "INSERT INTO other VALUES (1)", "DROP TABLE tail", "CREATE TABLE tail (id int)", "INSERT INTO tail VALUES (1)"}},
			{"a database by file copy", []string{fileCopy}},
			{"a database dropped and made", []string{"DROP DATABASE copied", "CREATE DATABASE copied"}},
		} {
			for _, s := range step.statements {
				n.Exec(s)
			}
			last = create(t, dir, n)
			whole := create(t, dir, n, "--rehash-every", "0")
			if last.Read >= whole.Read || last.Read > 60<<20 {
				t.Errorf("%s: %d bytes were read, by a re-hash %d", step.name, last.Read, whole.Read)
			}
			sameContents(t, digests(t, dir, last.ID), digests(t, dir, whole.ID))
			t.Logf("%s: %d bytes read of %d, %d new blocks", step.name, last.Read, whole.Read, last.NewBlocks)
		}
		want := n.Digest()
		r := restore(t, dir, last.ID, n)
		sameContents(t, r.Digest(), want)
		sound(t, r)
	})
}

// TestPageMapUnproven: everything is read where the WAL proves nothing, and it
// is said why.
func TestPageMapUnproven(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		dir := newRepo(t)
		n := pgtest.New(t, pgtest.Options{Major: major, Checksums: true})
		n.Exec("CREATE TABLE big AS SELECT g AS id, repeat('x', 500) AS t FROM generate_series(1, 20000) g")
		whole := create(t, dir, n)
		// Without an archiver the WAL of the time between is gone from server
		// and repository alike.
		for range 4 {
			n.Exec("UPDATE big SET t = 'changed' WHERE id % 1000 = 0")
			n.SwitchWAL()
			n.Exec("CHECKPOINT")
		}
		out := pgtest.MustRun(t, "dbbackup", "create", "--repo", dir, "-d", n.ConnInfo())
		second := create(t, dir, n)
		if second.Read >= whole.Read {
			t.Errorf("%d bytes were read, at first %d\n%s", second.Read, whole.Read, out)
		}
		if !strings.Contains(out, "is complete") {
			t.Errorf("%s", out)
		}
		// A promoted standby goes on from a backup of its primary.
		standby := n.Standby(pgtest.StandbyOptions{})
		standby.WaitFor(n)
		n.Stop()
		standby.Promote()
		standby.Exec("UPDATE big SET t = 'again' WHERE id = 7")
		after := create(t, dir, standby)
		check := create(t, dir, standby, "--rehash-every", "0")
		t.Logf("after a promotion %d of %d bytes are read", after.Read, check.Read)
		sameContents(t, digests(t, dir, after.ID), digests(t, dir, check.ID))
		want := standby.Digest()
		sameContents(t, restore(t, dir, after.ID, standby).Digest(), want)
	})
}
