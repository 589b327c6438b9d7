package backup_test

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"tidemark/internal/backup"
	"tidemark/internal/pgtest"
)

// eachSince is pgtest.EachLong for what only later versions have; unless
// versions are asked for it runs on the newest.
func eachSince(t *testing.T, least int, run func(t *testing.T, major int)) {
	all := pgtest.Majors(t)
	if newest := all[len(all)-1]; os.Getenv("TIDEMARK_PG_MAJORS") == "" && newest >= least {
		t.Run("pg"+strconv.Itoa(newest), func(t *testing.T) { run(t, newest) })
		return
	}
	pgtest.EachLong(t, func(t *testing.T, major int) {
		if major < least {
			t.Skipf("it came with version %d", least)
		}
		run(t, major)
	})
}

// TestSummaries: as TestPageMap, by what the server's summaries say.
func TestSummaries(t *testing.T) {
	eachSince(t, 17, func(t *testing.T, major int) { pageMap(t, major, backup.ProofSummaries, "summarize_wal = on") })
}

// TestSummariesTimelines: as TestPageMapTimelines.
func TestSummariesTimelines(t *testing.T) {
	eachSince(t, 17, func(t *testing.T, major int) {
		pageMapTimelines(t, major, backup.ProofSummaries, "summarize_wal = on")
	})
}

// TestSummariesWithoutWAL: the WAL since the previous backup is nowhere any
// more; the summaries say what changed. Where they have a gap, it is read.
func TestSummariesWithoutWAL(t *testing.T) {
	eachSince(t, 17, func(t *testing.T, major int) {
		dir := newRepo(t)
		n := pgtest.New(t, pgtest.Options{Major: major, Checksums: true, WALSegMB: 1, Config: []string{"summarize_wal = on", "autovacuum = off"}})
		n.Exec("CREATE TABLE big AS SELECT g AS id, repeat('x', 500) AS t FROM generate_series(1, 20000) g")
		n.Exec("VACUUM big")
		base := create(t, dir, n)
		lose := func() {
			gone := n.SQL("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
			n.Exec("UPDATE big SET t = 'changed' WHERE id % 1000 = 0")
			n.SwitchWAL()
			for n.SQL("SELECT count(*) FROM pg_ls_waldir() WHERE name = '"+gone+"'") != "0" {
				n.Exec("UPDATE big SET t = 'again' WHERE id = 7")
				n.SwitchWAL()
				n.Exec("CHECKPOINT")
			}
		}
		lose()
		second, said := noted(t, dir, n)
		if second.Proof != backup.ProofSummaries || second.Read > base.Read/2 || strings.Contains(said, "every block") {
			t.Errorf("%d bytes were read by %q, at first %d\n%s", second.Read, second.Proof, base.Read, said)
		}
		whole := create(t, dir, n, "--rehash-every", "0")
		sameContents(t, digests(t, dir, second.ID), digests(t, dir, whole.ID))
		sameContents(t, restore(t, dir, second.ID, n).Digest(), n.Digest())

		n.Exec("ALTER SYSTEM SET summarize_wal = off")
		n.Reload()
		n.WaitSQL("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsummarizer'", "0")
		lose()
		third, said := noted(t, dir, n)
		if third.Proof != "" || third.Read < whole.Read || !strings.Contains(said, "every block is read") {
			t.Errorf("with a gap %d bytes were read by %q, at first %d\n%s", third.Read, third.Proof, base.Read, said)
		}
	})
}
