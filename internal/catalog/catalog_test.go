package catalog_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/internal/catalog"
	"tidemark/internal/pgtest"
	"tidemark/internal/postgres"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// What the files of a stopped cluster say is what its server said.
func TestNamesEqualServer(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		n := pgtest.New(t, pgtest.Options{Major: major, Config: []string{"autovacuum = off"}})
		n.Exec(`CREATE SCHEMA "odd Schema"; CREATE TABLE "odd Schema"."Tab.le" (i int PRIMARY KEY, v text); CREATE TABLE gone (i int);
			CREATE SEQUENCE s; CREATE UNLOGGED TABLE unlogged (i int); CREATE MATERIALIZED VIEW mat AS SELECT 1 AS i`)
		n.Exec("ALTER TABLE gone RENAME TO renamed")
		n.Exec("VACUUM FULL pg_class")
		n.Exec("CREATE DATABASE \"Other-db\"")
		n.ExecIn("Other-db", "CREATE TABLE there (i int); CREATE TABLE dropped (i int); DROP TABLE dropped")
		space := n.TempDir("space")
		n.Exec("CREATE TABLESPACE space LOCATION " + postgres.QuoteLiteral(space))
		n.Exec("CREATE DATABASE moved TABLESPACE space")
		n.ExecIn("moved", "CREATE TABLE in_space (i int); CREATE TABLE in_default (i int) TABLESPACE pg_default")
		n.ExecIn("moved", "VACUUM FULL pg_namespace")
		want := map[string]string{}
		for _, db := range []string{"postgres", "Other-db", "moved", "template1"} {
			want[db] = n.SQLIn(db, `SELECT string_agg(concat_ws('|', c.oid, nspname, relname, relkind, relpersistence, reltoastrelid,
				coalesce(nullif(reltablespace, 0), dattablespace), pg_relation_filenode(c.oid)), E'\n' ORDER BY c.oid)
				FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace JOIN pg_database ON datname = current_database()
				WHERE relkind IN ('r', 'i', 'S', 't', 'm') AND reltablespace <> 1664`)
		}
		super := n.SQL("SELECT rolname FROM pg_authid WHERE oid = 10")
		n.Stop()
		c, err := catalog.Open(n.Dir, catalog.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if c.Superuser != super {
			t.Errorf("superuser %q, want %q", c.Superuser, super)
		}
		for _, db := range c.Databases {
			if want[db.Name] == "" {
				continue
			}
			if d := cmp.Diff(strings.Split(want[db.Name], "\n"), listing(t, c, db.OID)); d != "" {
				t.Errorf("%s (-server +files):\n%s", db.Name, d)
			}
			delete(want, db.Name)
		}
		if len(want) > 0 {
			t.Errorf("databases not found: %v in %v", want, c.Databases)
		}
	})
}

func listing(t *testing.T, c *catalog.Catalog, db uint32) []string {
	byOID := map[uint32]string{}
	most := uint32(0)
	c.Relations(db, func(r *catalog.Relation) {
		if r.File.Relation == 0 {
			return
		}
		persistence := "p"
		if r.Unlogged {
			persistence = "u"
		}
		byOID[r.OID] = fmt.Sprintf("%d|%s|%s|%c|%s|%d|%d|%d", r.OID, r.Schema, r.Name, r.Kind, persistence, r.Toast, r.File.Tablespace, r.File.Relation)
		most = max(most, r.OID)
		if found := c.ByFile(r.File); found == nil || found.OID != r.OID || c.ByOID(db, r.OID) != r {
			t.Errorf("%s is not found by its file or number", r)
		}
	})
	var out []string
	for oid := range most + 1 {
		if s := byOID[oid]; s != "" {
			out = append(out, s)
		}
	}
	return out
}
