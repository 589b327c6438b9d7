package rewind

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/internal/postgres"
)

var rescueSeed = flag.Uint64("rescue.seed", 0, "seed of the workload in TestRescue; 0 picks one")

// client writes random rows to the old primary.
type client struct {
	t      testing.TB
	rnd    *rand.Rand
	node   *pgtest.Node
	tables []*clientTable
}

// clientTable has rows (id, values...) that the client knows as their text.
type clientTable struct {
	database, name string
	partitions     []string
	values         func(c *client, id int) string // SQL of the columns behind id
}

const rescueSchemaSQL = `
	CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
	CREATE TYPE pair AS (a int, b text);
	CREATE DOMAIN percent AS int CHECK (VALUE BETWEEN 0 AND 100);
	CREATE TABLE types (id int PRIMARY KEY, n numeric, f float8, t timestamptz, d date, iv interval, b bytea, j jsonb, x text, a int[],
		m mood, p pair, pct percent, u uuid, ip inet, r int4range, bits bit varying, pairs pair[], gen int GENERATED ALWAYS AS (id * 2) STORED);
	CREATE TABLE "Odd ""name" (id int PRIMARY KEY, "Some col" text, tab text);
	CREATE TABLE nokey (id int, v text);
	CREATE TABLE parts (id int, v text, PRIMARY KEY (id)) PARTITION BY HASH (id);
	CREATE TABLE parts_0 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
	CREATE TABLE parts_1 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 1);
	CREATE TABLE big (id int PRIMARY KEY, v text, fixed text);
	ALTER TABLE big ALTER COLUMN v SET STORAGE EXTERNAL, ALTER COLUMN fixed SET STORAGE EXTERNAL;
	CREATE SEQUENCE counter;
	CREATE TABLE emptied (id int PRIMARY KEY); INSERT INTO emptied SELECT generate_series(1, 50);
	CREATE TABLE dropped (id int PRIMARY KEY); INSERT INTO dropped SELECT generate_series(1, 50);
	CREATE UNLOGGED TABLE unlogged (id int);`

func (c *client) word(n int) string {
	const letters = "abcdefghijklmnopqrstuvwxyzäß☃\t\n\\' ,\""
	r := []rune(letters)
	var b strings.Builder
	for range n {
		b.WriteRune(r[c.rnd.IntN(len(r))])
	}
	return postgres.QuoteLiteral(b.String())
}

func typesRow(c *client, id int) string {
	r := c.rnd
	null := func(s string) string {
		if r.IntN(5) == 0 {
			return "NULL"
		}
		return s
	}
	return strings.Join([]string{
		null(fmt.Sprintf("%d.%09d", r.IntN(1e9), r.IntN(1e9))), null(fmt.Sprint(r.NormFloat64() * 1e10)),
		null(fmt.Sprintf("timestamptz '2020-01-01 UTC' + interval '%d ms'", r.IntN(1e9))), null(fmt.Sprintf("date '2000-01-01' + %d", r.IntN(9000))),
		null(fmt.Sprintf("interval '%d months %d us'", r.IntN(30), r.IntN(1e9))), null(fmt.Sprintf("sha256('%d')", r.Int())),
		null(fmt.Sprintf(`'{"k": [1, %d, null], "s": "x\ty"}'::jsonb`, r.IntN(100))), null(c.word(r.IntN(60))),
		null(fmt.Sprintf("ARRAY[%d, NULL, %d]", r.IntN(9), r.IntN(9))), null([]string{"'sad'", "'ok'", "'happy'"}[r.IntN(3)]),
		null(fmt.Sprintf("ROW(%d, %s)::pair", r.IntN(9), c.word(5))), null(fmt.Sprint(r.IntN(101))), null(fmt.Sprintf("md5('%d')::uuid", r.Int())),
		null(fmt.Sprintf("'10.0.%d.0/24'::inet", r.IntN(200))), null(fmt.Sprintf("int4range(%d, %d)", r.IntN(5), 5+r.IntN(5))), null("B'10110'"),
		null(fmt.Sprintf("ARRAY[ROW(1, %s)::pair, NULL]", c.word(8))),
	}, ", ")
}

func (c *client) bigValue() string {
	return fmt.Sprintf("(SELECT string_agg(md5((g * %d)::text), '') FROM generate_series(1, %d) g)", 1+c.rnd.IntN(1e6), 100+c.rnd.IntN(400))
}

func newClient(t testing.TB, n *pgtest.Node, seed uint64) *client {
	c := &client{t: t, rnd: rand.New(rand.NewPCG(seed, 3)), node: n}
	text := func(c *client, _ int) string { return c.word(c.rnd.IntN(40)) }
	c.tables = []*clientTable{
		{"postgres", "types", nil, typesRow},
		{"postgres", `"Odd ""name"`, nil, func(c *client, id int) string { return c.word(10) + ", " + c.word(3) }},
		{"postgres", "nokey", nil, text},
		{"postgres", "parts", []string{"parts_0", "parts_1"}, text},
		{"postgres", "big", nil, func(c *client, _ int) string { return c.bigValue() + ", " + c.bigValue() }},
		{"second", "far", nil, text},
		{"second", "spaced", nil, text},
	}
	return c
}

// columns are those that the client wrote: the generated one is left out.
func (t *clientTable) columns() string {
	if t.name == "types" {
		return "id, n, f, t, d, iv, b, j, x, a, m, p, pct, u, ip, r, bits, pairs"
	}
	return "*"
}

// state reads a table as text, a row by id. The client's own memory would say
// the same; asking the server spares it the formatting.
func state(n *pgtest.Node, t *clientTable) map[int]string {
	out := map[int]string{}
	lines := n.SQLIn(t.database, fmt.Sprintf("SELECT string_agg(id || ' ' || replace(replace(q::text, '%%', '%%%%'), chr(10), '%%n'), chr(10)) FROM (SELECT %s FROM %s) q", t.columns(), t.name))
	for line := range strings.Lines(lines) {
		id, row := 0, ""
		if _, err := fmt.Sscan(line, &id); err != nil {
			panic(err)
		}
		_, row, _ = strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		out[id] = row
	}
	return out
}

// insertSQL inserts rows with these ids.
func (c *client) insertSQL(t *clientTable, ids []int) string {
	var rows []string
	for _, id := range ids {
		rows = append(rows, fmt.Sprintf("(%d, %s)", id, t.values(c, id)))
	}
	return fmt.Sprintf("INSERT INTO %s VALUES %s", t.name, strings.Join(rows, ", "))
}

// statement is one random change.
func (c *client) statement(t *clientTable, next *int) string {
	ids := slices.Collect(func(yield func(int) bool) {
		for range 1 + c.rnd.IntN(4) {
			*next++
			if !yield(*next) {
				return
			}
		}
	})
	some := fmt.Sprintf("id %% 37 = %d", c.rnd.IntN(37))
	switch c.rnd.IntN(7) {
	case 0, 1, 2:
		return c.insertSQL(t, ids)
	case 3:
		return fmt.Sprintf("DELETE FROM %s WHERE %s", t.name, some)
	case 4:
		if t.name == "nokey" {
			return fmt.Sprintf("UPDATE nokey SET v = %s WHERE %s", c.word(20), some)
		}
		return fmt.Sprintf("%s ON CONFLICT (id) DO NOTHING", c.insertSQL(t, append(ids, 1+c.rnd.IntN(100))))
	}
	switch t.name {
	case "types":
		return fmt.Sprintf("UPDATE types SET x = %s, a = ARRAY[%d] WHERE %s", c.word(20), c.rnd.IntN(1000), some)
	case "big":
		return fmt.Sprintf("UPDATE big SET v = %s WHERE %s", c.bigValue(), some) // fixed keeps its place outside
	case `"Odd ""name"`:
		return fmt.Sprintf(`UPDATE "Odd ""name" SET "Some col" = %s WHERE %s`, c.word(20), some)
	}
	return fmt.Sprintf("UPDATE %s SET v = %s WHERE %s", t.name, c.word(20), some)
}

// work runs transactions: alone, with savepoints, aborted, prepared.
func (c *client) work(n int, next *int) {
	c.t.Helper()
	for range n {
		t := c.tables[c.rnd.IntN(len(c.tables))]
		s := func() string { return c.statement(t, next) }
		sql := s()
		switch c.rnd.IntN(8) {
		case 0:
			sql = "BEGIN; " + s() + "; SAVEPOINT a; " + s() + "; ROLLBACK TO a; SAVEPOINT b; " + s() + "; COMMIT"
		case 1:
			sql = "BEGIN; " + s() + "; ROLLBACK"
		case 2:
			c.node.ExecIn(t.database, "BEGIN; "+s()+"; "+s()+"; PREPARE TRANSACTION 'p'")
			sql = "COMMIT PREPARED 'p'"
		}
		c.node.ExecIn(t.database, sql)
	}
}

// TestRescue is the whole way: random work on an old primary after the fork,
// the rescue, the loader on the new one, and what it loaded against what the
// client knows.
func TestRescue(t *testing.T) {
	for _, how := range []string{"stopped", "crashed"} {
		t.Run(how, func(t *testing.T) {
			pgtest.EachLong(t, func(t *testing.T, major int) { testRescue(t, major, how == "crashed") })
		})
	}
}

func testRescue(t *testing.T, major int, crashed bool) {
	seed := *rescueSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-rescue.seed=%d", seed)
	p, c := rescuePair(t, major, seed)
	next := 100000
	begun := p.old.Conn()
	exec1 := func(sql string) {
		t.Helper()
		if _, err := begun.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec1("BEGIN")
	exec1("INSERT INTO public.nokey VALUES (90001, 'before the checkpoint')")
	p.old.Exec("CHECKPOINT")
	p.new.WaitFor(p.old)
	p.new.Exec("CHECKPOINT")
	p.new.WaitFor(p.old)
	p.new.Promote()

	atFork := map[string]map[int]string{}
	for _, tab := range c.tables {
		atFork[tab.name] = state(p.old, tab)
	}
	c.work(60, &next)
	exec1("INSERT INTO public.nokey VALUES (90002, 'after the fork')")
	exec1("COMMIT")
	if crashed {
		p.old.Exec("CHECKPOINT")
	}
	c.work(60, &next)
	p.old.Exec("CREATE TABLE fresh (id int, v text); INSERT INTO fresh SELECT g, 'fresh' FROM generate_series(1, 20) g")
	p.old.Exec("SELECT nextval('counter') FROM generate_series(1, 5)")
	p.old.Exec("SELECT lo_from_bytea(4242, 'a large object')")
	p.old.Exec("TRUNCATE emptied")
	p.old.Exec("DROP TABLE dropped")
	p.old.Exec("INSERT INTO unlogged VALUES (1)")
	p.old.Exec("BEGIN; INSERT INTO nokey VALUES (95000, 'prepared'); PREPARE TRANSACTION 'left'")
	now := map[string]map[int]string{}
	for _, tab := range c.tables {
		now[tab.name] = state(p.old, tab)
	}
	if crashed {
		p.old.Kill()
	} else {
		p.old.Stop()
	}
	before := tree(t, p.old.Dir)
	out := filepath.Join(p.old.TempDir("rescued"), "it's here")
	res, err := Rescue(t.Context(), p.options(), out)
	if err != nil {
		t.Fatal(err)
	}
	sameTree(t, before, p.old.Dir)
	psql, err := exec.LookPath("psql")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(psql, "-X", "-q", "-f", filepath.Join(out, rescueLoader), p.new.ConnInfo("dbname=postgres"))
	cmd.Dir = "/"
	if text, err := cmd.CombinedOutput(); err != nil {
		script, _ := os.ReadFile(filepath.Join(out, rescueLoader))
		t.Fatalf("load.sql: %v\n%s\n%s", err, text, script)
	}
	for _, tab := range c.tables {
		compareRescued(t, p.new, tab, atFork[tab.name], now[tab.name])
	}
	if got := p.new.SQL(`SELECT count(*) FROM tidemark_rescue."public.fresh inserted" WHERE v = 'fresh'`); got != "20" {
		t.Errorf("%s rows of the table made after the fork", got)
	}
	if got := p.new.SQL(`SELECT convert_from(data, 'UTF8') FROM tidemark_rescue."pg_catalog.pg_largeobject inserted" WHERE loid = 4242`); got != "a large object" {
		t.Errorf("large object: %q", got)
	}
	if len(res.Sequences) != 1 || res.Sequences[0].Name != "counter" || res.Sequences[0].Last < 5 {
		t.Errorf("sequences: %+v", res.Sequences)
	}
	var reasons []string
	for _, n := range res.NotSaved {
		reasons = append(reasons, n.Relation)
	}
	for _, want := range []string{"postgres.public.emptied", "postgres.public.dropped", "postgres.public.unlogged", "transaction left"} {
		if !slices.Contains(reasons, want) {
			t.Errorf("%s is not listed as lost: %+v", want, res.NotSaved)
		}
	}
	if _, err := Rescue(t.Context(), p.options(), out); exit.CodeOf(err) != exit.Refused {
		t.Errorf("a second rescue into the same directory: %v", err)
	}
	if _, err := os.Stat(filepath.Join(out, "server.tmp")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the scratch cluster is still there")
	}
}

// rescuePair is an old primary with rows of all kinds, and a standby.
func rescuePair(t *testing.T, major int, seed uint64) (*pair, *client) {
	o := pgtest.Options{Name: "old", Major: major, Checksums: true,
		Config: append([]string{"max_prepared_transactions = 5", "full_page_writes = on"}, config...)}
	p := &pair{t: t, old: pgtest.New(t, o)}
	p.old.Exec(rescueSchemaSQL)
	space := p.old.TempDir("space")
	p.old.Exec("CREATE TABLESPACE space LOCATION " + postgres.QuoteLiteral(space))
	p.old.Exec("CREATE DATABASE second")
	p.old.ExecIn("second", "CREATE TABLE far (id int PRIMARY KEY, v text); CREATE TABLE spaced (id int PRIMARY KEY, v text) TABLESPACE space")
	c := newClient(t, p.old, seed)
	for _, tab := range c.tables {
		ids := make([]int, 100)
		for i := range ids {
			ids[i] = i + 1
		}
		p.old.ExecIn(tab.database, c.insertSQL(tab, ids))
	}
	p.new = p.old.Standby(pgtest.StandbyOptions{Name: "new"})
	p.new.WaitFor(p.old)
	return p, c
}

// compareRescued compares the loaded rows of a table with the difference of
// its states at the fork and at the end.
func compareRescued(t *testing.T, n *pgtest.Node, tab *clientTable, atFork, now map[int]string) {
	t.Helper()
	want := map[string]map[int]string{"inserted": {}, "updated": {}, "deleted": {}}
	for id, row := range now {
		switch old, ok := atFork[id]; {
		case !ok:
			want["inserted"][id] = row
		case old != row:
			want["updated"][id] = row
		}
	}
	for id := range atFork {
		if _, ok := now[id]; !ok {
			want["deleted"][id] = ""
		}
	}
	names := tab.partitions
	if names == nil {
		names = []string{strings.ReplaceAll(strings.Trim(tab.name, `"`), `""`, `"`)}
	}
	all := map[string]map[int]string{}
	for change := range want {
		got := map[int]string{}
		all[change] = got
		for _, name := range names {
			staging := "tidemark_rescue." + postgres.QuoteIdent("public."+name+" "+change)
			if n.SQLIn(tab.database, "SELECT coalesce(to_regclass("+postgres.QuoteLiteral(staging)+")::text, '')") == "" {
				continue
			}
			st := &clientTable{database: tab.database, name: staging}
			for id, row := range state(n, st) {
				if change == "deleted" {
					row = ""
				}
				got[id] = row
			}
		}
	}
	for id, row := range all["inserted"] { // deleted, and inserted again under the same key
		if _, ok := all["deleted"][id]; ok && atFork[id] != "" {
			delete(all["inserted"], id)
			delete(all["deleted"], id)
			all["updated"][id] = row
		}
	}
	for id, row := range all["updated"] { // an update to the same value is one, too
		if atFork[id] == row && now[id] == row {
			delete(all["updated"], id)
		}
	}
	for change, rows := range want {
		if d := cmp.Diff(rows, all[change]); d != "" {
			t.Errorf("%s %s (-client +rescued):\n%.2000s", tab.name, change, d)
		}
	}
}
