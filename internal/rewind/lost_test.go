package rewind

import (
	"fmt"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/internal/pgtest"
	"tidemark/internal/postgres"
)

// TestLostTransactions compares the list with what the clients recorded.
func TestLostTransactions(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		p := newPair(t, pgtest.Options{Major: major, Config: []string{"max_prepared_transactions = 5"}})
		conn := p.old.Conn()
		var open uint32 // begins before the fork, commits after it
		for _, s := range []string{"BEGIN", "INSERT INTO public.grows VALUES (1)"} {
			if _, err := conn.Exec(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}
		if err := postgres.Query(t.Context(), conn, "SELECT pg_current_xact_id()::xid::text::int", nil, &open); err != nil {
			t.Fatal(err)
		}
		p.new.WaitFor(p.old)
		p.new.Promote()
		want := []uint32{}
		for range 20 {
			want = append(want, xid(t, p.old.SQL("INSERT INTO t SELECT max(i) + 1, 'x' FROM t RETURNING xmin")))
		}
		if _, err := conn.Exec(t.Context(), "SAVEPOINT a"); err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{"UPDATE rewritten SET v = 'sub' WHERE i = 1", "RELEASE a", "COMMIT"} {
			if _, err := conn.Exec(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}
		want = append(want, open)
		p.old.Exec("BEGIN; INSERT INTO grows VALUES (2); ROLLBACK")
		want = append(want, xid(t, p.old.SQL("DELETE FROM t WHERE i = 5 RETURNING xmax")))
		dropped := p.old.SQL("SELECT '1663/' || (SELECT oid FROM pg_database WHERE datname = 'postgres') || '/' || relfilenode FROM pg_class WHERE relname = 'old_drops'")
		p.old.Exec("DROP TABLE old_drops")
		relation := p.old.SQL("SELECT '1663/' || (SELECT oid FROM pg_database WHERE datname = 'postgres') || '/' || relfilenode FROM pg_class WHERE relname = 'rewritten'")
		p.old.Stop()
		rep, err := Check(t.Context(), p.options())
		if err != nil {
			t.Fatal(err)
		}
		var got []uint32
		lost := slices.Collect(rep.Lost.All())
		for _, l := range lost {
			got = append(got, l.XID)
			if l.XID == open && (!slices.Contains(l.Relations, relation) || l.Subxacts != 1) {
				t.Errorf("%+v does not show the subtransaction's change of %s", l, relation)
			}
			if l.Time.IsZero() || l.LSN <= rep.Fork.LSN {
				t.Errorf("%+v", l)
			}
		}
		last := lost[len(lost)-1]
		if !slices.Contains(last.Dropped, dropped) {
			t.Errorf("%+v does not show the drop of %s", last, dropped)
		}
		want = append(want, last.XID) // the drop
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		if !slices.Contains(rep.RelationFiles, relation) || rep.LostBytes == 0 || rep.Plan.Bytes == 0 || rep.Blocks == 0 {
			t.Errorf("%+v", rep)
		}
	})
}

func xid(t testing.TB, text string) uint32 {
	t.Helper()
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

// TestLostRows compares rows per transaction and table with what the client
// did, from before the fork on and through subtransactions, COPY, upserts, two
// databases, prepared transactions, TRUNCATE, rewriting and dropping.
func TestLostRows(t *testing.T) {
	for _, crashed := range []bool{false, true} {
		t.Run(map[bool]string{false: "stopped", true: "crashed"}[crashed], func(t *testing.T) {
			pgtest.EachLong(t, func(t *testing.T, major int) { testLostRows(t, major, crashed) })
		})
	}
}

func testLostRows(t *testing.T, major int, crashed bool) {
	p := newPair(t, pgtest.Options{Major: major, Config: []string{"max_prepared_transactions = 5"}})
	p.old.Exec("CREATE TABLE u (i int PRIMARY KEY, v text); INSERT INTO u VALUES (1, 'x')")
	p.old.Exec("CREATE DATABASE other")
	p.old.ExecIn("other", "CREATE TABLE far (i int)")
	begun := p.old.Conn() // writes before the checkpoint that will be common
	run := func(s string) {
		t.Helper()
		if _, err := begun.Exec(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	run("BEGIN")
	run("INSERT INTO u SELECT g, 'before' FROM generate_series(100, 104) g")
	p.old.Exec("CHECKPOINT")
	p.new.WaitFor(p.old)
	p.new.Exec("CHECKPOINT")
	p.new.Promote()
	want := map[string]int{"postgres.public.u +6 ~0 -0": 1}
	for _, x := range []struct{ sql, rows string }{
		{"INSERT INTO u SELECT g, 'new' FROM generate_series(200, 209) g", "postgres.public.u +10 ~0 -0"},
		{"UPDATE u SET v = repeat('long', 10000) WHERE i BETWEEN 200 AND 202", "postgres.public.u +0 ~3 -0"},
		{"DELETE FROM u WHERE i BETWEEN 200 AND 201", "postgres.public.u +0 ~0 -2"},
		{"INSERT INTO u VALUES (1, 'up'), (300, 'x') ON CONFLICT (i) DO UPDATE SET v = 'upserted'", "postgres.public.u +1 ~1 -0"},
		{"BEGIN; INSERT INTO u VALUES (301); SAVEPOINT a; INSERT INTO u VALUES (302); ROLLBACK TO a; SAVEPOINT b; DELETE FROM u WHERE i = 300; COMMIT", "postgres.public.u +1 ~0 -1"},
		{"BEGIN; INSERT INTO u VALUES (400), (401); PREPARE TRANSACTION 'one'", ""},
		{"COMMIT PREPARED 'one'", "postgres.public.u +2 ~0 -0"},
	} {
		p.old.Exec(x.sql)
		if x.rows != "" {
			want[x.rows]++
		}
	}
	p.old.ExecIn("other", "INSERT INTO far SELECT generate_series(1, 1000)")
	want["other.public.far +1000 ~0 -0"]++
	run("INSERT INTO u VALUES (105, 'after')")
	run("COMMIT")
	p.old.Exec("BEGIN; INSERT INTO u VALUES (500); ROLLBACK")
	p.old.Exec("BEGIN; INSERT INTO u VALUES (600); PREPARE TRANSACTION 'two'")
	execEach(p.old, "TRUNCATE both_truncate; DROP TABLE old_drops; VACUUM FULL rewritten; CREATE TABLE fresh (i int)")
	if crashed {
		p.old.Kill()
	} else {
		p.old.Stop()
	}
	before := tree(t, p.old.Dir)
	rep, err := Check(t.Context(), p.options())
	if err != nil {
		t.Fatal(err)
	}
	sameTree(t, before, p.old.Dir)
	got, deeds := map[string]int{}, map[string]int{}
	for l := range rep.Lost.All() {
		for _, c := range l.Changes {
			if c.Kind == "table" {
				got[fmt.Sprintf("%s +%d ~%d -%d", c.Relation, c.Inserted, c.Updated, c.Deleted)]++
			} else if c.Kind == "unknown" {
				t.Errorf("transaction %d: %+v", l.XID, c)
			}
		}
		for word, list := range map[string][]string{"created": l.Created, "truncated": l.Truncated, "rewritten": l.Rewritten, "removed": l.Removed} {
			for _, name := range list {
				deeds[word+" "+name]++
			}
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("rows (-client +WAL):\n%s", d)
	}
	wantDeeds := map[string]int{"truncated postgres.public.both_truncate": 1, "removed postgres.public.old_drops": 1,
		"rewritten postgres.public.rewritten": 1, "created postgres.public.fresh": 1}
	if crashed { // the pages of pg_class may be as of the last checkpoint
		return
	}
	if d := cmp.Diff(wantDeeds, deeds); d != "" {
		t.Errorf("relations (-client +WAL):\n%s", d)
	}
	if len(rep.Prepared) != 1 || rep.Prepared[0].GID != "two" {
		t.Errorf("prepared: %+v", rep.Prepared)
	}
}
