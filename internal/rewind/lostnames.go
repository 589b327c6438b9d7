package rewind

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/catalog"
	"tidemark/internal/postgres"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// names tells what a relation's file is called: by the target's own catalogs,
// read from its files, and by the source's for what the target has forgotten.
type names struct {
	target *catalog.Catalog // nil where it cannot be read
	source func(wal.RelFile) *catalog.Relation
	known  map[wal.RelFile]*catalog.Relation
	told   map[*txn]*LostDeeds
}

// openNames reads the target's catalogs. After a crash their files are behind
// the WAL, which says what committed since.
func (j *job) openNames(ctx context.Context, w *lostWork) *names {
	n := &names{known: map[wal.RelFile]*catalog.Relation{}, told: map[*txn]*LostDeeds{}}
	c, err := catalog.Open(j.Target, catalog.Options{Committed: func(xid uint32) bool { return w.commits.has(xid) }})
	if err != nil {
		j.warn("the target's catalogs cannot be read, relations are named by their files: %v", err)
	} else {
		n.target = c
	}
	n.source = j.sourceNames(ctx)
	return n
}

// of returns the relation of a file, nil where no catalog knows it.
func (n *names) of(f wal.RelFile) *catalog.Relation {
	r, ok := n.known[f]
	if ok {
		return r
	}
	if n.target != nil {
		r = n.target.ByFile(f)
	}
	if r == nil {
		r = n.source(f)
	}
	n.known[f] = r
	return r
}

// now returns the relation of that OID as the target has it now.
func (n *names) now(db, oid uint32) *catalog.Relation {
	if n.target == nil {
		return nil
	}
	return n.target.ByOID(db, oid)
}

// kindOf is a relation's kind in RelationChange's words.
func kindOf(r *catalog.Relation) string {
	switch {
	case r == nil:
		return "unknown"
	case r.OID == catalog.LargeObjects:
		return "large objects"
	case r.Kind == catalog.Index:
		return "index"
	case r.System():
		return "catalog"
	case r.Kind == catalog.Toast:
		return "toast"
	case r.Kind == catalog.MatView:
		return "materialized view"
	case r.Kind == catalog.Sequence:
		return "sequence"
	}
	return "table"
}

// title is how a relation is named to people.
func title(r *catalog.Relation, f wal.RelFile) string {
	if r == nil {
		f.Fork = wal.ForkMain
		return "file " + f.String()
	}
	return r.String()
}

// sourceNames looks a file up in the source's catalogs, which are read at the
// first question. A source that does not tell leaves names unknown.
func (j *job) sourceNames(ctx context.Context) func(wal.RelFile) *catalog.Relation {
	if j.source.live() {
		s := liveNames{j: j, databases: map[uint32]map[wal.RelFile]*catalog.Relation{}}
		return func(f wal.RelFile) *catalog.Relation { return s.find(ctx, f) }
	}
	var c *catalog.Catalog
	opened := false
	return func(f wal.RelFile) *catalog.Relation {
		if !opened && j.source.dir != "" {
			opened = true
			var err error
			if c, err = catalog.Open(j.source.dir, catalog.Options{}); err != nil {
				j.Log.Debug("reading the source's catalogs", "error", err)
			}
		}
		if c == nil {
			return nil
		}
		return c.ByFile(f)
	}
}

// liveNames asks a running source, once for each database.
type liveNames struct {
	j         *job
	databases map[uint32]map[wal.RelFile]*catalog.Relation
}

func (s *liveNames) find(ctx context.Context, f wal.RelFile) *catalog.Relation {
	files, ok := s.databases[f.Database]
	if !ok {
		var err error
		if files, err = s.read(ctx, f.Database); err != nil {
			s.j.Log.Debug("asking the source for names", "database", f.Database, "error", err)
		}
		s.databases[f.Database] = files
	}
	return files[f]
}

// read lists the relations of a database of the source by their files.
func (s *liveNames) read(ctx context.Context, db uint32) (map[wal.RelFile]*catalog.Relation, error) {
	conn, err := postgres.Connect(ctx, s.j.source.conn)
	if err != nil {
		return nil, err
	}
	defer func() { conn.Close(context.WithoutCancel(ctx)) }()
	var name string
	if err := postgres.Query(ctx, conn, "SELECT datname FROM pg_database WHERE oid = $1::text::oid", []any{fmt.Sprint(db)}, &name); err != nil {
		return nil, err
	}
	info, err := postgres.ParseConnInfo(s.j.source.conn)
	if err != nil {
		return nil, err
	}
	other, err := postgres.Connect(ctx, info.With("dbname", name).String())
	if err != nil {
		return nil, err
	}
	defer func() { other.Close(context.WithoutCancel(ctx)) }()
	return listRelations(ctx, other, db, name)
}

// listRelations reads pg_class of the session's database.
func listRelations(ctx context.Context, conn *pgx.Conn, db uint32, name string) (map[wal.RelFile]*catalog.Relation, error) {
	rows, err := conn.Query(ctx, `SELECT c.oid::int8, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence = 'u', c.reltoastrelid::int8,
		coalesce(nullif(c.reltablespace, 0), d.dattablespace)::int8, pg_relation_filenode(c.oid)::int8
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_database d ON d.datname = current_database()
		WHERE pg_relation_filenode(c.oid) IS NOT NULL`)
	if err != nil {
		return nil, postgres.Explain(err)
	}
	out := map[wal.RelFile]*catalog.Relation{}
	for rows.Next() {
		r := &catalog.Relation{Database: name}
		var oid, toast, space, file int64
		var kind string
		if err := rows.Scan(&oid, &r.Schema, &r.Name, &kind, &r.Unlogged, &toast, &space, &file); err != nil {
			return nil, err
		}
		r.OID, r.Toast, r.Kind = uint32(oid), uint32(toast), catalog.Kind(kind[0])
		r.File = wal.RelFile{Tablespace: uint32(space), Database: db, Relation: uint32(file)}
		if space == volume.GlobalTablespace {
			continue
		}
		out[r.File] = r
	}
	return out, postgres.Explain(rows.Err())
}
