package rewind

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/internal/pgtest"
)

// TestRescueAfterVacuum: deleted rows that VACUUM removed come from the WAL's
// page images, compressed ones too; a table that was rewritten is read whole;
// a table without a key gives whole rows, one with a replica identity its columns.
func TestRescueAfterVacuum(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		p := newPair(t, pgtest.Options{Major: major, Config: []string{"wal_compression = on"}})
		p.old.Exec(`CREATE TABLE nokey (i int, v text); INSERT INTO nokey SELECT g, 'row ' || g FROM generate_series(1, 300) g;
			CREATE TABLE ident (a int NOT NULL, b text, c int NOT NULL); CREATE UNIQUE INDEX ident_key ON ident (c, a);
			ALTER TABLE ident REPLICA IDENTITY USING INDEX ident_key; INSERT INTO ident SELECT g, 'x', -g FROM generate_series(1, 300) g;
			CREATE TABLE altered (i int PRIMARY KEY, v text); INSERT INTO altered SELECT g, 'x' FROM generate_series(1, 10) g;
			CREATE TABLE vacuumed (i int PRIMARY KEY, v text); INSERT INTO vacuumed SELECT g, 'x' FROM generate_series(1, 10) g`)
		p.old.Exec("CREATE TABLE twice (i int PRIMARY KEY); INSERT INTO twice SELECT generate_series(1, 10)")
		p.old.Exec("CHECKPOINT")
		// The image of this insertion shows row 1 in the place that row 100 takes.
		execEach(p.old, "INSERT INTO twice VALUES (11); DELETE FROM twice WHERE i = 1; VACUUM twice; INSERT INTO twice VALUES (100)")
		p.new.WaitFor(p.old)
		p.new.Exec("CHECKPOINT")
		p.new.Promote()
		execEach(p.old, `DELETE FROM nokey WHERE i IN (10, 20); DELETE FROM ident WHERE a = 7; VACUUM nokey; VACUUM ident; DELETE FROM twice WHERE i IN (2, 100); VACUUM twice;
			INSERT INTO nokey SELECT 1000 + g, 'reused' FROM generate_series(1, 10) g;
			UPDATE vacuumed SET v = 'updated' WHERE i = 3; INSERT INTO vacuumed VALUES (11, 'new'); DELETE FROM vacuumed WHERE i = 5; VACUUM FULL vacuumed;
			ALTER TABLE altered ALTER COLUMN i TYPE bigint; CREATE TABLE gone (i int); INSERT INTO gone VALUES (1); DROP TABLE gone`)
		p.old.Stop()
		out := filepath.Join(p.old.TempDir("out"), "rescued")
		res, err := Rescue(t.Context(), p.options(), out)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, x := range res.Tables {
			for _, f := range x.Files {
				rows, err := os.ReadFile(filepath.Join(out, f.Path))
				if err != nil {
					t.Fatal(err)
				}
				got[x.Name+" "+f.Change+" "+strings.Join(x.Key, ",")] = string(rows)
			}
		}
		for name, want := range map[string]string{
			"nokey deleted ":     "10\trow 10\n20\trow 20\n",
			"ident deleted a,c":  "7\t-7\n",
			"vacuumed written i": "3\tupdated\n11\tnew\n",
			"altered written i":  "1\tx\n2\tx\n3\tx\n4\tx\n5\tx\n6\tx\n7\tx\n8\tx\n9\tx\n10\tx\n",
			"twice deleted i":    "2\n",
			"gone inserted ":     "",
			"nokey written ":     "",
			"vacuumed deleted i": "",
		} {
			if got[name] != want {
				t.Errorf("%s: %q, want %q", name, got[name], want)
			}
		}
		if rows := got["nokey inserted "]; strings.Count(rows, "reused") != 10 || strings.Count(rows, "\n") != 10 {
			t.Errorf("inserted into nokey: %q", rows)
		}
		var reasons strings.Builder
		for _, n := range res.NotSaved {
			if strings.Contains(n.Reason, "no image") && n.Rows != 1 {
				t.Errorf("%+v", n)
			}
			reasons.WriteString(n.Relation + ": " + n.Reason + "\n")
		}
		for _, want := range []string{"postgres.public.twice: deleted rows", "postgres.public.vacuumed: transaction", "postgres.public.altered: transaction", "postgres.public.vacuumed: rows were deleted"} {
			if !strings.Contains(reasons.String(), want) {
				t.Errorf("no %q in\n%s", want, reasons.String())
			}
		}
	})
}
