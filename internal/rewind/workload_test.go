package rewind

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"tidemark/internal/pgtest"
)

// workload writes at random to one server: everything that changes files in a
// way of its own. Which statements it runs follows from its seed alone. One
// that fails is passed over: a table that is not there, a database in use.
type workload struct {
	t      testing.TB
	n      *pgtest.Node
	rng    *rand.Rand
	conns  map[string]*pgx.Conn
	said   []string // every statement, for the log of a test that failed
	failed int
	used   map[string]bool // kinds of steps that ran
	left   int             // databases that it may still create: they take their time
}

func newWorkload(t testing.TB, n *pgtest.Node, seed, stream uint64) *workload {
	w := &workload{t: t, n: n, rng: rand.New(rand.NewPCG(seed, stream)), conns: map[string]*pgx.Conn{}, used: map[string]bool{}, left: 2}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("what was done to %s (%d statements failed):\n  %s", n.Name, w.failed, strings.Join(w.said, "\n  "))
		}
	})
	return w
}

// run does n steps. It ends its sessions, so that the server can be stopped and
// databases dropped.
func (w *workload) run(n int) {
	for range n {
		w.step()
	}
	w.close()
}

func (w *workload) close() {
	for name, conn := range w.conns {
		conn.Close(context.Background())
		delete(w.conns, name)
	}
}

// in runs statements in a database, in one message each.
func (w *workload) in(database string, statements ...string) {
	for _, s := range statements {
		err := w.exec(database, s)
		w.said = append(w.said, fmt.Sprintf("%s: %s", database, strings.Join(strings.Fields(s), " ")))
		if err != nil {
			w.failed++
			w.said[len(w.said)-1] += "   -- " + err.Error()
		}
	}
}

func (w *workload) exec(database, sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn := w.conns[database]
	if conn == nil || conn.IsClosed() {
		var err error
		if conn, err = pgx.Connect(ctx, w.n.ConnInfo("dbname="+database, "default_query_exec_mode=exec")); err != nil {
			return err
		}
		w.conns[database] = conn
		if _, err := conn.Exec(ctx, "SET lock_timeout = '40ms'; SET jit = off"); err != nil {
			return err
		}
	}
	_, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	var pgErr *pgconn.PgError
	if conn.PgConn().TxStatus() != 'I' && !conn.IsClosed() {
		_, rollback := conn.PgConn().Exec(ctx, "ROLLBACK").ReadAll()
		err = errors.Join(err, rollback)
	}
	if err != nil && !errors.As(err, &pgErr) {
		conn.Close(ctx)
		delete(w.conns, database)
	}
	return err
}

func (w *workload) pick(of ...string) string { return of[w.rng.IntN(len(of))] }
func (w *workload) upTo(n int) int           { return 1 + w.rng.IntN(n) }

// table names one of the tables that every side knows.
func (w *workload) table() string { return fmt.Sprintf("t%d", w.rng.IntN(6)) }

// database names the one that most of the work goes to, or another.
func (w *workload) database() string {
	if w.rng.IntN(6) == 0 {
		return fmt.Sprintf("d%d", w.rng.IntN(3))
	}
	return "postgres"
}

// step is one kind of change, the common ones more often.
func (w *workload) step() {
	kinds := workloadSteps
	total := 0
	for _, k := range kinds {
		total += k.weight
	}
	at := w.rng.IntN(total)
	for _, k := range kinds {
		if at -= k.weight; at < 0 {
			w.used[k.name] = true
			k.do(w)
			return
		}
	}
}

// workloadSteps are the kinds of changes and how often each comes.
var workloadSteps = []struct {
	name   string
	weight int
	do     func(*workload)
}{
	{"insert", 12, (*workload).insert},
	{"update", 12, (*workload).update},
	{"delete", 5, (*workload).remove},
	{"rolled back", 5, (*workload).rolledBack},
	{"long values", 4, (*workload).longValues},
	{"shrink", 5, (*workload).shrink},
	{"truncate", 6, (*workload).truncate},
	{"create table", 6, (*workload).createTable},
	{"drop table", 5, (*workload).dropTable},
	{"alter table", 5, (*workload).alterTable},
	{"rewrite", 4, (*workload).rewrite},
	{"vacuum", 6, (*workload).vacuum},
	{"vacuum full", 4, (*workload).vacuumFull},
	{"index", 5, (*workload).index},
	{"database", 3, (*workload).createDatabase},
	{"drop database", 2, (*workload).dropDatabase},
	{"tablespace", 5, (*workload).tablespace},
	{"tablespace in place", 1, (*workload).tablespaceInPlace},
	{"large object", 5, (*workload).largeObject},
	{"sequence", 6, (*workload).sequence},
	{"unlogged", 6, (*workload).unlogged},
	{"prepared", 6, (*workload).prepared},
	{"row locks", 3, (*workload).rowLocks},
	{"hint bits", 8, (*workload).hintBits},
	{"catalog", 4, (*workload).catalog},
	{"checkpoint", 4, (*workload).checkpoint},
	{"switch", 3, (*workload).switchSegment},
}

func (w *workload) insert() {
	w.in(w.database(), fmt.Sprintf("INSERT INTO %s (v) SELECT md5(g::text) || repeat('%s', %d) FROM generate_series(1, %d) g",
		w.table(), w.pick("a", "b", "c"), w.upTo(100), w.upTo(1500)))
}

func (w *workload) update() {
	w.in(w.database(), fmt.Sprintf("UPDATE %s SET v = '%d' || v WHERE id %% %d = 0", w.table(), w.rng.IntN(1000), w.upTo(50)))
}

func (w *workload) remove() {
	w.in(w.database(), fmt.Sprintf("DELETE FROM %s WHERE id %% %d = 0", w.table(), 1+w.upTo(9)))
}

func (w *workload) rolledBack() {
	t, sub := w.table(), "ROLLBACK TO a"
	w.in(w.database(), fmt.Sprintf("BEGIN; INSERT INTO %s (v) SELECT 'never' FROM generate_series(1, %d); SAVEPOINT a; UPDATE %s SET v = 'never' WHERE id < 200; %s; CREATE TABLE never AS SELECT * FROM %s; %s",
		t, w.upTo(500), t, w.pick(sub, "RELEASE a"), t, w.pick("ROLLBACK", "DROP TABLE never; COMMIT")))
}

func (w *workload) longValues() {
	w.in(w.database(), fmt.Sprintf("INSERT INTO %s (v) SELECT string_agg(md5(g::text || s), '') FROM generate_series(1, %d) s, generate_series(1, 300) g GROUP BY s", w.table(), w.upTo(20)))
}

// shrink makes files shorter: rows at the end go, and VACUUM gives the space back.
func (w *workload) shrink() {
	db, t := w.database(), w.table()
	w.in(db, fmt.Sprintf("DELETE FROM %s WHERE id > (SELECT max(id) * %d / 10 FROM %s)", t, w.rng.IntN(10), t), "VACUUM "+t)
	if w.rng.IntN(2) == 0 {
		w.in(db, fmt.Sprintf("INSERT INTO %s (v) SELECT repeat('again', 20) FROM generate_series(1, %d)", t, w.upTo(2000)))
	}
}

func (w *workload) truncate() {
	db, t := w.database(), w.table()
	switch w.rng.IntN(4) {
	case 0:
		w.in(db, fmt.Sprintf("BEGIN; TRUNCATE %s; INSERT INTO %s (v) SELECT 'gone' FROM generate_series(1, 500); %s", t, t, w.pick("COMMIT", "ROLLBACK")))
	case 1:
		w.in(db, "TRUNCATE "+t+" RESTART IDENTITY")
	default:
		w.in(db, "TRUNCATE "+t, fmt.Sprintf("INSERT INTO %s (v) SELECT 'new' || g FROM generate_series(1, %d) g", t, w.upTo(300)))
	}
}

const columns = "(id bigserial PRIMARY KEY, v text)"

func (w *workload) createTable() {
	db := w.database()
	switch t := w.table(); w.rng.IntN(3) {
	case 0:
		w.in(db, "CREATE TABLE IF NOT EXISTS "+t+" "+columns)
	case 1:
		w.in(db, fmt.Sprintf("CREATE TABLE c%d AS SELECT g AS id, md5(g::text) AS v FROM generate_series(1, %d) g", w.rng.IntN(4), w.upTo(3000)))
	default:
		w.in(db, "CREATE MATERIALIZED VIEW m AS SELECT id, length(v) AS l FROM "+t, "REFRESH MATERIALIZED VIEW m")
	}
}

func (w *workload) dropTable() {
	db := w.database()
	switch w.rng.IntN(3) {
	case 0:
		t := w.table()
		w.in(db, "DROP TABLE IF EXISTS "+t+" CASCADE", "CREATE TABLE "+t+" "+columns)
	case 1:
		w.in(db, fmt.Sprintf("DROP TABLE IF EXISTS c%d", w.rng.IntN(4)))
	default:
		w.in(db, "DROP MATERIALIZED VIEW IF EXISTS m")
	}
}

func (w *workload) alterTable() {
	t := w.table()
	w.in(w.database(), w.pick("ALTER TABLE "+t+" ADD COLUMN IF NOT EXISTS extra int DEFAULT 7", "ALTER TABLE "+t+" DROP COLUMN IF EXISTS extra",
		"ALTER TABLE "+t+" SET (fillfactor = 60)", "ALTER TABLE "+t+" ALTER v SET STORAGE external"))
}

func (w *workload) rewrite() {
	t := w.table()
	w.in(w.database(), w.pick("ALTER TABLE "+t+" ALTER id TYPE numeric, ALTER id TYPE bigint", "CLUSTER "+t+" USING "+t+"_pkey", "REINDEX TABLE "+t))
}

func (w *workload) vacuum() {
	w.in(w.database(), w.pick("VACUUM ", "VACUUM ANALYZE ", "VACUUM FREEZE ")+w.pick(w.table(), w.table(), ""))
}

// vacuumFull rewrites tables of the user's and of the catalog: mapped ones too.
func (w *workload) vacuumFull() {
	w.in(w.database(), "VACUUM FULL "+w.pick(w.table(), w.table(), "pg_class", "pg_attribute", "pg_authid"))
}

func (w *workload) index() {
	t := w.table()
	w.in(w.database(), w.pick("CREATE INDEX IF NOT EXISTS i_"+t+" ON "+t+" (left(v, 40))", "CREATE INDEX IF NOT EXISTS h_"+t+" ON "+t+" USING hash (id)",
		"CREATE INDEX IF NOT EXISTS b_"+t+" ON "+t+" USING brin (id)", "CREATE INDEX IF NOT EXISTS g_"+t+" ON "+t+" USING gin (to_tsvector('simple', left(v, 20)))",
		"DROP INDEX IF EXISTS i_"+t, "REINDEX TABLE pg_class"))
}

// createDatabase makes a database from the ones that nobody changes, or a copy
// of another one, in both ways where the server knows two.
func (w *workload) createDatabase() {
	if w.left--; w.left < 0 {
		return
	}
	w.close() // a template must not be in use
	sql := fmt.Sprintf("CREATE DATABASE d%d TEMPLATE %s", w.rng.IntN(3), w.pick("template0", "template1", "template1", "d0", "d1"))
	if w.n.Major >= 15 {
		sql += " STRATEGY " + w.pick("wal_log", "file_copy")
	}
	w.in("postgres", sql)
	for i := range 3 {
		w.in(fmt.Sprintf("d%d", i), fmt.Sprintf("CREATE TABLE IF NOT EXISTS t%d %s", w.rng.IntN(6), columns))
	}
	w.close()
}

func (w *workload) dropDatabase() {
	w.close()
	w.in("postgres", fmt.Sprintf("DROP DATABASE IF EXISTS d%d", w.rng.IntN(3)))
}

// tablespace moves tables between the default tablespace and one that was there
// before the fork.
func (w *workload) tablespace() {
	t := w.table()
	w.in("postgres", w.pick("ALTER TABLE "+t+" SET TABLESPACE sp", "ALTER TABLE "+t+" SET TABLESPACE pg_default",
		"CREATE TABLE IF NOT EXISTS far TABLESPACE sp AS SELECT generate_series(1, 1000) AS id", "DROP TABLE IF EXISTS far",
		"INSERT INTO far SELECT generate_series(1, 500)"))
}

func (w *workload) tablespaceInPlace() {
	name := w.pick("here", "there")
	if w.rng.IntN(4) == 0 {
		w.in("postgres", "DROP TABLE IF EXISTS in_"+name, "DROP TABLESPACE IF EXISTS "+name)
		return
	}
	w.in("postgres", "CREATE TABLESPACE "+name+" LOCATION ''",
		"CREATE TABLE IF NOT EXISTS in_"+name+" TABLESPACE "+name+" AS SELECT generate_series(1, 2000) AS id")
}

func (w *workload) largeObject() {
	w.in("postgres", w.pick(fmt.Sprintf("SELECT lo_from_bytea(0, decode(repeat('%02x', %d), 'hex'))", w.rng.IntN(256), w.upTo(60000)),
		"SELECT lo_put(oid, 1000, '\\x0102030405') FROM pg_largeobject_metadata WHERE oid % 2 = 0", "SELECT lo_unlink(max(oid)) FROM pg_largeobject_metadata"))
}

func (w *workload) sequence() {
	s := fmt.Sprintf("s%d", w.rng.IntN(3))
	w.in("postgres", w.pick("CREATE SEQUENCE IF NOT EXISTS "+s, fmt.Sprintf("SELECT nextval('%s') FROM generate_series(1, %d)", s, w.upTo(200)),
		fmt.Sprintf("SELECT setval('%s', %d)", s, w.upTo(9999)), "ALTER SEQUENCE "+s+" INCREMENT BY 3 CACHE 20", "DROP SEQUENCE IF EXISTS "+s))
}

func (w *workload) unlogged() {
	u, t := fmt.Sprintf("u%d", w.rng.IntN(3)), w.table()
	w.in("postgres", w.pick("CREATE UNLOGGED TABLE IF NOT EXISTS "+u+" "+columns, fmt.Sprintf("INSERT INTO %s (v) SELECT 'u' FROM generate_series(1, %d)", u, w.upTo(3000)),
		"ALTER TABLE "+u+" SET LOGGED", "ALTER TABLE "+u+" SET UNLOGGED", "DROP TABLE IF EXISTS "+u, "TRUNCATE "+u, "ALTER TABLE "+t+" SET UNLOGGED", "ALTER TABLE "+t+" SET LOGGED"))
}

func (w *workload) prepared() {
	id, t := fmt.Sprintf("p%d", w.rng.IntN(3)), w.table()
	switch w.rng.IntN(4) {
	case 0:
		w.in("postgres", "COMMIT PREPARED '"+id+"'")
	case 1:
		w.in("postgres", "ROLLBACK PREPARED '"+id+"'")
	default:
		w.in("postgres", fmt.Sprintf("BEGIN; INSERT INTO %s (v) VALUES ('prepared'); CREATE TABLE of_%s_%d (i int); PREPARE TRANSACTION '%s'", t, id, w.rng.IntN(1000), id))
	}
}

// rowLocks makes multixacts.
func (w *workload) rowLocks() {
	t := w.table()
	w.in(w.database(), fmt.Sprintf("BEGIN; SELECT count(*) FROM (SELECT FROM %s WHERE id < %d FOR KEY SHARE) x; SAVEPOINT a; UPDATE %s SET v = v || 'm' WHERE id < %d; COMMIT", t, w.upTo(300), t, w.upTo(300)))
}

// hintBits only reads: the server notes in the pages what it learned of their
// transactions, and in the WAL only once a checkpoint (or not at all).
func (w *workload) hintBits() {
	w.in(w.database(), fmt.Sprintf("SELECT count(v) FROM %s; SELECT count(*) FROM %s", w.table(), w.table()))
}

func (w *workload) catalog() {
	r, t := fmt.Sprintf("r%d", w.rng.IntN(4)), w.table()
	w.in("postgres", w.pick("CREATE ROLE "+r, "DROP ROLE IF EXISTS "+r, "COMMENT ON DATABASE postgres IS '"+r+"'", "GRANT SELECT ON "+t+" TO "+r,
		"ALTER ROLE postgres SET work_mem = '5MB'", "COMMENT ON TABLE "+t+" IS '"+r+"'"))
}

func (w *workload) checkpoint()    { w.in("postgres", "CHECKPOINT") }
func (w *workload) switchSegment() { w.in("postgres", "SELECT pg_switch_wal()") }
