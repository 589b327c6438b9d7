package rewind

import (
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/internal/pgtest"
	"tidemark/internal/postgres"
)

// TestLostTransactions compares the list with what the clients recorded.
func TestLostTransactions(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
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
		for _, l := range rep.Lost {
			got = append(got, l.XID)
			if l.XID == open && (!slices.Contains(l.Relations, relation) || l.Subxacts != 1) {
				t.Errorf("%+v does not show the subtransaction's change of %s", l, relation)
			}
			if l.Time.IsZero() || l.LSN <= rep.Fork.LSN {
				t.Errorf("%+v", l)
			}
		}
		last := rep.Lost[len(rep.Lost)-1]
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
