package backup_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"tidemark/internal/backup"
	"tidemark/internal/pgtest"
	"tidemark/internal/repo"
	"tidemark/pkg/volume"
)

// onlyCluster opens the one cluster of a repository.
func onlyCluster(t *testing.T, dir string) *repo.Cluster {
	t.Helper()
	r, err := repo.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	c, err := r.OnlyCluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// digests returns the digest of every relation file that a user made, by path.
func digests(t *testing.T, dir, id string) map[string]string {
	t.Helper()
	m, err := onlyCluster(t, dir).OpenManifest(t.Context(), id)
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
	pgtest.EachLong(t, func(t *testing.T, major int) { pageMap(t, major, backup.ProofWAL) })
}

func pageMap(t *testing.T, major int, proof string, config ...string) {
	dir := newRepo(t)
	n := pgtest.New(t, pgtest.Options{Major: major, Checksums: true, Config: append(append(archiving(dir), "autovacuum = off"), config...)})
	n.Exec("CREATE TABLE big AS SELECT g AS id, repeat('x', 500) AS t FROM generate_series(1, 40000) g")
	n.Exec("CREATE INDEX ON big (id)")
	n.Exec("CREATE TABLE tail AS SELECT g AS id, repeat('x', 500) AS t FROM generate_series(1, 5000) g")
	n.Exec("CREATE TABLE other AS SELECT g AS id FROM generate_series(1, 5000) g")
	n.Exec("VACUUM")
	create(t, dir, n)
	fileCopy, again := "CREATE DATABASE copied", "CREATE DATABASE copied"
	if major >= 15 { // earlier ones choose the number themselves, and a new one
		fileCopy += " STRATEGY FILE_COPY OID 90000"
		again += " OID 90000"
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
		{"relations made anew under a name", []string{"TRUNCATE other", "INSERT INTO other VALUES (1)", "DROP TABLE tail", "CREATE TABLE tail (id int)", "INSERT INTO tail VALUES (1)"}},
		{"a database by file copy", []string{fileCopy}},
		{"relfilenode reuse", []string{"DROP DATABASE copied", again}}, // the same paths, other contents
	} {
		t.Run(step.name, func(t *testing.T) {
			for _, s := range step.statements {
				n.Exec(s)
			}
			last = create(t, dir, n)
			whole := create(t, dir, n, "--rehash-every", "0")
			if last.Read >= whole.Read || last.Read > 60<<20 || last.Proof != proof || whole.Proof != "" {
				t.Errorf("%d bytes were read by %q, by a re-hash %d", last.Read, last.Proof, whole.Read)
			}
			sameContents(t, digests(t, dir, last.ID), digests(t, dir, whole.ID))
			t.Logf("%d bytes read of %d, %d new blocks", last.Read, whole.Read, last.NewBlocks)
		})
	}
	want := n.Digest()
	r := restore(t, dir, last.ID, n)
	sameContents(t, r.Digest(), want)
	sound(t, r)
}

// noted takes a backup and returns what it told people, too.
func noted(t *testing.T, dir string, n *pgtest.Node, args ...string) (created, string) {
	t.Helper()
	r := pgtest.Run(t, "dbbackup", append([]string{"create", "--json", "--repo", dir, "-d", n.ConnInfo()}, args...)...)
	var c created
	if err := json.Unmarshal([]byte(r.Stdout), &c); r.Code != 0 || err != nil {
		t.Fatalf("%v in %+v", err, r)
	}
	return c, r.Stderr
}

// TestPageMapUnproven: everything is read where the WAL proves nothing, and it
// is said why.
func TestPageMapUnproven(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		dir := newRepo(t)
		n := pgtest.New(t, pgtest.Options{Major: major, Checksums: true, WALSegMB: 1})
		n.Exec("CREATE TABLE big AS SELECT g AS id, repeat('x', 500) AS t FROM generate_series(1, 20000) g")
		n.Exec("VACUUM big")
		first := create(t, dir, n)
		// Without an archiver the WAL of the time between is gone from server
		// and repository alike, once the server has no use for it.
		gone := n.SQL("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
		n.Exec("UPDATE big SET t = 'changed' WHERE id % 1000 = 0")
		n.SwitchWAL()
		for n.SQL("SELECT count(*) FROM pg_ls_waldir() WHERE name = '"+gone+"'") != "0" {
			n.Exec("UPDATE big SET t = 'changed' WHERE id = 7")
			n.SwitchWAL()
			n.Exec("CHECKPOINT")
		}
		second, said := noted(t, dir, n)
		if second.Read < first.Read || !strings.Contains(said, "every block is read: WAL since backup "+first.ID) {
			t.Errorf("%d bytes were read, at first %d\n%s", second.Read, first.Read, said)
		}
		if second.OldBlocks == 0 {
			t.Error("unchanged blocks were stored again")
		}
		third, said := noted(t, dir, n)
		if third.Read >= first.Read/4 || strings.Contains(said, "every block") {
			t.Errorf("right after it %d bytes were read\n%s", third.Read, said)
		}
		if out := pgtest.MustRun(t, "dbbackup", "show", "--repo", dir, second.ID); !strings.Contains(out, "template1") || !strings.Contains(out, "postgres") {
			t.Errorf("no names of databases in\n%s", out)
		}
		want := n.Digest()
		sameContents(t, restore(t, dir, second.ID, n).Digest(), want)
	})
}

// TestPageMapTimelines: a backup of a promoted standby goes on from one of the
// primary that it replaced, by the WAL of both timelines; and not from one that
// the old primary made after the two had parted.
func TestPageMapTimelines(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) { pageMapTimelines(t, major, backup.ProofWAL) })
}

func pageMapTimelines(t *testing.T, major int, proof string, config ...string) {
	dir := newRepo(t)
	n := pgtest.New(t, pgtest.Options{Major: major, Checksums: true, Config: append(append(archiving(dir), "autovacuum = off"), config...)})
	n.Exec("CREATE TABLE big AS SELECT g AS id, repeat('x', 500) AS t FROM generate_series(1, 20000) g")
	n.Exec("VACUUM big") // hint bits are set, and logged, now
	standby := n.Standby(pgtest.StandbyOptions{})
	base := create(t, dir, n)
	n.Exec("UPDATE big SET t = 'on the first timeline' WHERE id = 7")
	standby.WaitFor(n)
	standby.Promote()
	// The old primary lives on, is backed up once more, and is lost.
	n.Exec("UPDATE big SET t = 'lost' WHERE id BETWEEN 9000 AND 9100")
	astray := create(t, dir, n)
	n.Stop()
	standby.Exec("UPDATE big SET t = 'on the second timeline' WHERE id = 15000")
	standby.SwitchWAL()

	refused, said := noted(t, dir, standby)
	if refused.Read < base.Read || !strings.Contains(said, "every block is read: backup "+astray.ID) || !strings.Contains(said, "does not come from") {
		t.Errorf("by a backup of another branch: %d bytes were read, at first %d\n%s", refused.Read, base.Read, said)
	}
	want := standby.Digest()
	sameContents(t, restore(t, dir, refused.ID, standby).Digest(), want)

	for _, id := range []string{astray.ID, refused.ID} {
		pgtest.MustRun(t, "dbbackup", "delete", "--repo", dir, "--yes", id)
	}
	across, said := noted(t, dir, standby)
	if across.Read >= base.Read/4 || strings.Contains(said, "every block") || across.Proof != proof {
		t.Errorf("across the switch: %d bytes were read by %q, at first %d\n%s", across.Read, across.Proof, base.Read, said)
	}
	whole := create(t, dir, standby, "--rehash-every", "0")
	sameContents(t, digests(t, dir, across.ID), digests(t, dir, whole.ID))
	r := restore(t, dir, across.ID, standby)
	sameContents(t, r.Digest(), want)
	sound(t, r)
}
