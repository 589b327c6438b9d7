package backup_test

import (
	"sync"
	"testing"

	"tidemark/internal/pgtest"
)

// TestTwoCreatesAndExpire: two backups of one cluster are taken at the same
// time, and meanwhile the ones before them expire, again and again. Both are
// whole, and what only the expired ones needed is gone.
func TestTwoCreatesAndExpire(t *testing.T) {
	dir := newRepo(t)
	n := pgtest.New(t, pgtest.Options{Checksums: true, Config: archiving(dir)})
	n.Exec("CREATE TABLE t AS SELECT g AS id, md5(g::text) AS x FROM generate_series(1, 100000) g")
	create(t, dir, n)
	n.Exec("UPDATE t SET x = 'changed' WHERE id % 10 = 0")
	create(t, dir, n)
	n.Exec("DELETE FROM t WHERE id % 7 = 0")
	want := n.Digest()

	var both sync.WaitGroup
	results := make([]pgtest.Result, 2)
	for i := range results {
		both.Go(func() {
			results[i] = pgtest.Run(t, "dbbackup", "create", "--json", "--repo", dir, "-d", n.ConnInfo(), "--rate", "40MB", "--full")
		})
	}
	done := make(chan struct{})
	go func() { both.Wait(); close(done) }()
	expire := func() { pgtest.MustRun(t, "dbbackup", "expire", "--repo", dir, "--keep-last", "2") }
	times := 0
	for running := true; running; times++ {
		expire()
		select {
		case <-done:
			running = false
		default:
		}
	}
	for _, r := range results {
		if r.Code != 0 {
			t.Fatalf("%+v", r)
		}
	}
	expire()
	l := listing(t, dir)
	if len(l.Backups) != 2 || len(l.Started) != 0 {
		t.Fatalf("after %d expiries: %+v", times, l)
	}
	pgtest.MustRun(t, "dbbackup", "verify", "--deep", "--repo", dir)
	for _, b := range l.Backups {
		sameContents(t, restore(t, dir, b.ID, n).Digest(), want)
	}
	packs := packsOf(t, dir)
	for _, b := range l.Backups {
		delete(packs, b.ID)
	}
	if len(packs) != 0 {
		t.Errorf("packs of expired backups: %v", packs)
	}
	t.Logf("%d expiries", times)
}
