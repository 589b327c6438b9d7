package rewind

import (
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/internal/pgtest"
	"tidemark/pkg/volume"
)

func TestMain(m *testing.M) { pgtest.Main(m, "dbrewind", "dbrecover") }

// pair is an old primary that is stopped and a new one that was promoted.
type pair struct {
	t         testing.TB
	old, new  *pgtest.Node
	followers []*pgtest.Node // of new: it keeps WAL until they have it
}

// config keeps servers quick to set up and their WAL at hand.
var config = []string{"wal_keep_size = 256MB", "max_wal_size = 512MB", "autovacuum = off", "hot_standby = on"}

// newPair makes a primary with some tables, and a standby that has caught up.
func newPair(t testing.TB, o pgtest.Options) *pair {
	t.Helper()
	o.Name, o.Config = "old", append(append([]string{}, config...), o.Config...)
	if !strings.Contains(strings.Join(o.Config, " "), "wal_log_hints") {
		o.Checksums = true
	}
	p := &pair{t: t, old: pgtest.New(t, o)}
	p.old.Exec(`CREATE TABLE t (i int PRIMARY KEY, v text);
		INSERT INTO t SELECT g, repeat('x', 200) FROM generate_series(1, 20000) g;
		CREATE TABLE both_truncate AS SELECT * FROM t; CREATE TABLE old_drops AS SELECT * FROM t; CREATE TABLE new_drops AS SELECT * FROM t;
		CREATE TABLE rewritten AS SELECT * FROM t; CREATE TABLE grows (i int); CREATE UNLOGGED TABLE unlogged AS SELECT * FROM t;
		CREATE SEQUENCE s; CREATE EXTENSION amcheck; CHECKPOINT`)
	p.new = p.old.Standby(pgtest.StandbyOptions{Name: "new"})
	p.new.WaitFor(p.old)
	return p
}

// diverge promotes the new one and lets both write; then the old one stops.
func (p *pair) diverge() {
	p.t.Helper()
	p.new.Promote()
	p.write()
}

// write lets both sides go their ways.
func (p *pair) write() {
	p.t.Helper()
	execEach(p.old, `UPDATE t SET v = 'lost' WHERE i % 100 = 0; INSERT INTO t SELECT g, 'lost' FROM generate_series(20001, 30000) g;
		TRUNCATE both_truncate; DROP TABLE old_drops; CREATE TABLE only_old AS SELECT * FROM t; VACUUM FULL rewritten;
		INSERT INTO grows SELECT generate_series(1, 50000); DELETE FROM new_drops WHERE i > 100; VACUUM new_drops; SELECT nextval('s')`)
	p.old.Exec("CREATE DATABASE only_old_db")
	p.old.ExecIn("only_old_db", "CREATE TABLE x AS SELECT generate_series(1, 1000) AS i")
	execEach(p.new, `UPDATE t SET v = 'kept' WHERE i % 70 = 0; INSERT INTO t SELECT g, 'kept' FROM generate_series(20001, 21000) g;
		TRUNCATE both_truncate; INSERT INTO both_truncate SELECT 1, 'kept'; DROP TABLE new_drops; CREATE TABLE only_new AS SELECT * FROM t;
		INSERT INTO rewritten SELECT g, 'more' FROM generate_series(20001, 40000) g; INSERT INTO grows SELECT generate_series(1, 100)`)
	p.new.Exec("CREATE DATABASE only_new_db")
	p.new.ExecIn("only_new_db", "CREATE TABLE x AS SELECT generate_series(1, 1000) AS i")
}

// execEach runs statements one by one, as VACUUM wants it.
func execEach(n *pgtest.Node, statements string) {
	for _, s := range strings.Split(statements, ";") {
		n.Exec(s)
	}
}

func (p *pair) options() Options {
	return Options{Target: p.old.Dir, SourceConn: p.new.ConnInfo(), WriteRecoveryConf: true, Command: "dbrewind ..."}
}

// proveEqual starts the old one as a standby of its source and proves that it
// has become a copy: contents, b-trees and heaps, page checksums.
func (p *pair) proveEqual(source *pgtest.Node) {
	t := p.t
	t.Helper()
	p.old.Start()
	source.Exec("CREATE TABLE after_rewind AS SELECT 1 AS i")
	p.old.WaitFor(p.new)
	want, got := p.new.Digest(), p.old.Digest()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("contents differ:\n%s", d)
	}
	amcheck(t, p.old)
	p.old.Stop()
	checksums(t, p.old)
}

// amcheck checks every b-tree against its heap, and every heap, in every database.
func amcheck(t testing.TB, n *pgtest.Node) {
	t.Helper()
	for _, db := range strings.Fields(n.SQL("SELECT string_agg(datname, ' ') FROM pg_database WHERE datallowconn AND datname <> 'template1'")) {
		if n.SQLIn(db, "SELECT count(*) FROM pg_extension WHERE extname = 'amcheck'") == "0" {
			continue
		}
		n.SQLIn(db, `SELECT count(bt_index_check(c.oid, true)) FROM pg_class c JOIN pg_am a ON a.oid = relam WHERE amname = 'btree' AND relkind = 'i' AND relpersistence = 'p'`)
		if n.Major >= 14 {
			if bad := n.SQLIn(db, `SELECT c.relname, v.* FROM pg_class c, LATERAL verify_heapam(c.oid) v WHERE relkind IN ('r', 't', 'm') AND relpersistence = 'p'`); bad != "" {
				t.Errorf("%s: %s", db, bad)
			}
		}
	}
}

// checksums checks every page of a stopped cluster, and asks pg_checksums too
// where it is of the same version.
func checksums(t testing.TB, n *pgtest.Node) {
	t.Helper()
	c, err := volume.ReadControl(n.Dir)
	if err != nil || !c.Checksums() {
		return
	}
	for name, data := range tree(t, n.Dir) {
		rel, ok := volume.ParseRelPath(name)
		if !ok {
			continue
		}
		for i, page := range slices.Collect(slices.Chunk([]byte(data[len(fs.FileMode(0o600).String()):]), int(c.BlockSize))) {
			if s := volume.CheckPage(page, rel.FirstBlock(c.RelSegSize)+uint32(i)); s != volume.PageValid && s != volume.PageNew {
				t.Errorf("%s, block %d: %v", name, i, s)
			}
		}
	}
	if tool := n.Server.Bin.Path("pg_checksums"); n.Server.Bin.Has("pg_checksums") {
		if out, err := exec.Command(tool, "--check", "-D", n.Dir).CombinedOutput(); err != nil {
			t.Errorf("pg_checksums: %v\n%s", err, out)
		}
	}
}

func mustRun(t testing.TB, o Options) *Result {
	t.Helper()
	res, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// tree is every file of a data directory with its content.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := volume.Walk(volume.OS, dir, func(e volume.WalkEntry) error {
		out[e.Path] = e.Info.Mode().String()
		if e.IsRegular() {
			data, err := os.ReadFile(dir + "/" + e.Path)
			out[e.Path] += string(data)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// sameTree complains about a directory that changed.
func sameTree(t testing.TB, before map[string]string, dir string) {
	t.Helper()
	after := tree(t, dir)
	for name, data := range before {
		if after[name] != data {
			t.Errorf("%s changed or is gone", name)
		}
	}
	for name := range after {
		if _, ok := before[name]; !ok {
			t.Errorf("%s is new", name)
		}
	}
}
