package rewind

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/catalog"
	"tidemark/internal/postgres"
	"tidemark/pkg/wal"
)

// connect opens a session on the scratch server. Values come out in a form that
// does not depend on settings, and in UTF-8 where the database has an encoding.
func (r *rescuer) connect(ctx context.Context, s *scratch, database string) (*pgx.Conn, error) {
	st, err := s.Status()
	if err != nil {
		return nil, err
	}
	info, err := postgres.ParseConnInfo(st.ConnInfo())
	if err != nil {
		return nil, err
	}
	user := "postgres"
	if r.names.target != nil && r.names.target.Superuser != "" {
		user = r.names.target.Superuser
	}
	conn, err := postgres.Connect(ctx, info.With("user", user, "dbname", database, "sslmode", "disable").String())
	if err != nil {
		return nil, err
	}
	for _, sql := range []string{
		"SET intervalstyle = postgres; SET extra_float_digits = 3; SET bytea_output = hex; SET timezone = 'UTC'; SET xmloption = content",
		"SET enable_seqscan = off; SET max_parallel_workers_per_gather = 0; SET row_security = off; SET session_replication_role = replica",
		"SELECT set_config('client_encoding', CASE current_setting('server_encoding') WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END, false)",
		"CREATE TEMP TABLE wanted (t tid); CREATE TEMP TABLE lost (x xid)",
	} {
		if _, err := conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
			return nil, errors.Join(postgres.Explain(err), conn.Close(context.WithoutCancel(ctx)))
		}
	}
	var lost strings.Builder
	for xid := range r.lost.all() {
		fmt.Fprintln(&lost, xid)
	}
	if _, err := conn.PgConn().CopyFrom(ctx, strings.NewReader(lost.String()), "COPY pg_temp.lost FROM STDIN"); err != nil {
		return nil, errors.Join(postgres.Explain(err), conn.Close(context.WithoutCancel(ctx)))
	}
	return conn, nil
}

// reading is the work in one database.
type reading struct {
	*rescuer
	s     *scratch
	conn  *pgx.Conn
	name  string
	files map[wal.RelFile]*catalog.Relation
	byOID map[uint32]*catalog.Relation
}

// readDatabase saves the rows and values of one database.
func (r *rescuer) readDatabase(ctx context.Context, s *scratch, oid uint32, name string, do func(context.Context, *tableReader, *fileRows) error) error {
	conn, err := r.connect(ctx, s, name)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	d := reading{rescuer: r, s: s, conn: conn, name: name, byOID: map[uint32]*catalog.Relation{}}
	if d.files, err = listRelations(ctx, conn, oid, name); err != nil {
		return err
	}
	for _, rel := range d.files {
		d.byOID[rel.OID] = rel
	}
	// The tables' indexes are not there, and the planner is not to look for them.
	if err := postgres.Exec(ctx, conn, "UPDATE pg_index SET indisvalid = false WHERE indrelid >= 16384 AND indrelid NOT IN (SELECT oid FROM pg_class WHERE relkind = 't') OR indrelid = 2613"); err != nil {
		return err
	}
	for _, f := range d.touched(oid) {
		if err := d.readFile(ctx, f, do); err != nil {
			return err
		}
	}
	return nil
}

// touched are the files in the database that lost transactions wrote to.
func (d *reading) touched(db uint32) []wal.RelFile {
	set := map[wal.RelFile]bool{}
	for e := range d.work.committed.all() {
		for i := range e.work.files {
			if f := e.work.files[i].file; f.Database == db {
				set[f] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(set), func(a, b wal.RelFile) int { return strings.Compare(a.String(), b.String()) })
}

// readFile saves what the lost transactions wrote to one file.
func (d *reading) readFile(ctx context.Context, f wal.RelFile, do func(context.Context, *tableReader, *fileRows) error) error {
	rel, rows := d.files[f], d.rows[f]
	switch {
	case rel == nil && rows != nil && len(rows.made)+len(rows.gone) > 0 && d.names.known[f] != nil:
		if n := int64(len(rows.gone)) + d.unreadable[f]; n > 0 { // the same at both readings
			d.notSaved(title(d.names.of(f), f), n, "rows were deleted in a file that is gone: the table was dropped, truncated or rewritten since")
		}
		return nil
	case rel == nil:
		return nil
	case rel.Kind == catalog.Sequence && !rel.System():
		return d.readSequence(ctx, rel)
	case !mayBeSaved(rel) || rows == nil && !d.made[f]:
		return nil
	}
	if d.made[f] {
		if err := d.s.copyRest(f); err != nil {
			return err
		}
	}
	if err := d.copyToast(ctx, rel); err != nil {
		return err
	}
	t, err := d.table(ctx, rel)
	if err != nil {
		return err
	}
	if rows == nil {
		rows = newFileRows()
	}
	return errors.Join(do(ctx, t, rows), t.close())
}

// copyToast copies the values of a table's that lie outside its rows.
func (d *reading) copyToast(ctx context.Context, rel *catalog.Relation) error {
	toast := d.byOID[rel.Toast]
	if rel.Toast == 0 || toast == nil {
		return nil
	}
	if err := d.s.copyRest(toast.File); err != nil {
		return err
	}
	var index int64
	if err := postgres.Query(ctx, d.conn, "SELECT max(indexrelid::int8) FROM pg_index WHERE indrelid = $1 AND indisvalid", []any{int64(rel.Toast)}, &index); err != nil {
		return err
	}
	if i := d.byOID[uint32(index)]; i != nil {
		return d.s.copyRest(i.File)
	}
	return nil
}

func (d *reading) readSequence(ctx context.Context, rel *catalog.Relation) error {
	if err := d.s.copyRest(rel.File); err != nil {
		return err
	}
	v := RescuedValue{Database: d.name, Schema: rel.Schema, Name: rel.Name}
	if slices.ContainsFunc(d.res.Sequences, func(o RescuedValue) bool { return o.Database == v.Database && o.Schema == v.Schema && o.Name == v.Name }) {
		return nil
	}
	err := postgres.Query(ctx, d.conn, "SELECT last_value, is_called FROM "+qualified(rel.Schema, rel.Name), nil, &v.Last, &v.Called)
	if err == nil {
		d.res.Sequences = append(d.res.Sequences, v)
	}
	return err
}

func qualified(schema, name string) string {
	return postgres.QuoteIdent(schema) + "." + postgres.QuoteIdent(name)
}

// table asks for a table's columns and key.
func (d *reading) table(ctx context.Context, rel *catalog.Relation) (*tableReader, error) {
	t := &tableReader{reading: d, rel: rel, files: map[string]*rowFile{}, out: RescuedTable{Database: d.name, Schema: rel.Schema, Name: rel.Name, Kind: kindOf(rel)}}
	rows, err := d.conn.Query(ctx, `SELECT a.attname::text,
		CASE WHEN t.xmin IN (SELECT x FROM pg_temp.lost) OR e.xmin IN (SELECT x FROM pg_temp.lost) THEN 'text' ELSE format_type(a.atttypid, a.atttypmod) END,
		coalesce(a.attnum = ANY ((SELECT (i.indkey::int2[])[0:i.indnkeyatts - 1] FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
			WHERE i.indrelid = a.attrelid AND (i.indisprimary OR i.indisreplident) AND c.relreplident <> 'f'
			ORDER BY i.indisprimary DESC LIMIT 1)::int2[]), false)
		FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_type e ON e.oid = t.typelem
		WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum`, int64(rel.OID))
	if err != nil {
		return nil, postgres.Explain(err)
	}
	for rows.Next() {
		var c RescuedColumn
		var key bool
		if err := rows.Scan(&c.Name, &c.Type, &key); err != nil {
			return nil, err
		}
		t.columns = append(t.columns, c)
		if key {
			t.key, t.out.Key = append(t.key, c), append(t.out.Key, c.Name)
		}
	}
	if rel.OID == catalog.LargeObjects {
		t.key = t.columns[:2] // loid, pageno
		t.out.Key = []string{t.key[0].Name, t.key[1].Name}
	}
	return t, postgres.Explain(rows.Err())
}
