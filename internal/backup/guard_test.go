package backup

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/internal/repo"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// guarded runs statements on a server and gives the WAL they wrote to guard.
func guarded(t *testing.T, n *pgtest.Node, statements ...string) error {
	t.Helper()
	n.Exec("CHECKPOINT")
	c, err := volume.ReadControl(n.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range statements {
		db, sql, ok := strings.Cut(s, "|")
		if !ok {
			db, sql = "postgres", s
		}
		n.ExecIn(db, sql)
	}
	stop, err := wal.ParseLSN(n.InsertLSN())
	if err != nil {
		t.Fatal(err)
	}
	n.SwitchWAL()
	src := live(blockcopy.NewDirSource(n.Dir, false), 1, c.XLogSegSize)
	return guard(t.Context(), src, wal.Options{Start: c.CheckPointCopy.Redo, SegmentSize: c.XLogSegSize, PageSize: c.XLogBlockSize,
		BlockSize: c.BlockSize, SystemID: c.SystemIdentifier, Major: c.Major()}, stop)
}

func TestGuard(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		n := pgtest.New(t, pgtest.Options{Major: major, Config: []string{"autovacuum = off"}})
		how := " STRATEGY FILE_COPY"
		if major < 15 {
			how = ""
		}
		n.Exec("CREATE DATABASE tmpl")
		var unsafe *unsafeError
		if err := guarded(t, n, "CREATE TABLE t (id int)", "INSERT INTO t VALUES (1)"); err != nil {
			t.Errorf("plain work: %v", err)
		}
		if err := guarded(t, n, "CREATE DATABASE a TEMPLATE tmpl"+how, "a|CREATE TABLE x (id int)"); err != nil {
			t.Errorf("template untouched: %v", err)
		}
		if err := guarded(t, n, "CREATE DATABASE b TEMPLATE tmpl"+how, "tmpl|CREATE TABLE x (id int)"); !errors.As(err, &unsafe) {
			t.Errorf("template changed afterwards: %v", err)
		}
		if err := guarded(t, n, "tmpl|CREATE TABLE y (id int)", "CREATE DATABASE c TEMPLATE tmpl"+how); err != nil {
			t.Errorf("template changed before: %v", err)
		}
		if err := guarded(t, n, "CREATE DATABASE d TEMPLATE tmpl"+how, "DROP DATABASE tmpl"); !errors.As(err, &unsafe) {
			t.Errorf("template dropped: %v", err)
		}
		space := n.TempDir("space")
		if err := guarded(t, n, "CREATE TABLESPACE s LOCATION '"+space+"'"); !errors.As(err, &unsafe) {
			t.Errorf("tablespace: %v", err)
		}
		n.Exec("ALTER SYSTEM SET full_page_writes = off")
		if err := guarded(t, n, "SELECT pg_reload_conf()", "SELECT pg_sleep(0.5)", "CHECKPOINT"); exit.CodeOf(err) != exit.Refused || !strings.Contains(err.Error(), "full_page_writes") {
			t.Errorf("full_page_writes: %v", err)
		}
	})
}

// TestOverSQL backs up without reading the server's files here.
func TestOverSQL(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		n := pgtest.New(t, pgtest.Options{Major: major, Checksums: true, WALSegMB: 4})
		n.PgbenchInit(1)
		stop := n.Pgbench("-c", "1")
		defer stop()
		space := n.TempDir("odd space")
		n.Exec("CREATE TABLESPACE s LOCATION '" + space + "'")
		n.Exec("CREATE TABLE in_space TABLESPACE s AS SELECT generate_series(1, 1000) AS id")
		r, _, err := repo.Init(t.Context(), filepath.Join(t.TempDir(), "r"))
		if err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		sum, err := Create(ctx, r, Options{Tool: "test", ConnInfo: n.ConnInfo(), remote: true})
		if err != nil {
			t.Fatal(err)
		}
		again, err := Create(ctx, r, Options{Tool: "test", ConnInfo: n.ConnInfo()})
		if err != nil {
			t.Fatal(err)
		}
		if sum.Source.Access != "sql" || again.Source.Access != "files" || again.OldBlocks == 0 {
			t.Errorf("%+v\n%+v", sum.Source, again)
		}
		if len(sum.Tablespaces) != 1 || sum.Tablespaces[0].Path != space || sum.Tablespaces[0].Name != "s" || len(again.Tablespaces) != 1 || again.Tablespaces[0] != sum.Tablespaces[0] {
			t.Errorf("tablespaces: %+v, %+v", sum.Tablespaces, again.Tablespaces)
		}
		paths := func(s *repo.Summary) map[string]bool {
			src, err := r.Cluster(uint64(s.SystemID)).OpenSource(ctx, s.ID)
			if err != nil {
				t.Fatal(err)
			}
			entries, err := src.List(ctx)
			if err != nil {
				t.Fatal(err)
			}
			out := map[string]bool{}
			for _, e := range entries {
				out[e.Path+" "+e.Type.String()] = true
				if c := volume.Classify(e.Path); e.Type == blockcopy.File && (c == volume.ClassSkip || c == volume.ClassWAL || c == volume.ClassControl) {
					t.Errorf("%s is in the backup", e.Path)
				}
			}
			return out
		}
		a, b := paths(sum), paths(again)
		for p := range a {
			if !b[p] {
				t.Logf("only over SQL: %s", p)
			}
		}
		for _, want := range []string{"pg_wal dir", "pg_tblspc dir", "pg_replslot dir", "PG_VERSION file"} {
			if !a[want] || !b[want] {
				t.Errorf("%s: over SQL %v, from files %v", want, a[want], b[want])
			}
		}
	})
}
