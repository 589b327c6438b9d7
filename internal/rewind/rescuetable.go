package rewind

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"tidemark/internal/catalog"
	"tidemark/internal/postgres"
	"tidemark/pkg/wal"
)

// tableReader saves one table's rows, each in the file of its fate.
type tableReader struct {
	*reading
	rel          *catalog.Relation
	columns, key []RescuedColumn
	out          RescuedTable
	files        map[string]*rowFile
}

// The fates of rows, as RescuedFile.Change has them.
const (
	changeInserted = "inserted"
	changeUpdated  = "updated"
	changeWritten  = "written"
	changeDeleted  = "deleted"
)

// rowFile is a file that is being written.
type rowFile struct {
	RescuedFile
	f *os.File
	w *bufio.Writer
}

// readWritten saves the new versions of rows.
func (r *rescuer) readWritten(ctx context.Context, t *tableReader, rows *fileRows) error {
	fate := func(k tidKey) string {
		switch replaced, ok := rows.made[k]; {
		case !ok:
			return changeWritten
		case replaced == inserted:
			return changeInserted
		}
		return changeUpdated
	}
	if r.made[t.rel.File] {
		return t.readWhole(ctx, fate)
	}
	found, err := t.readTIDs(ctx, maps.Keys(rows.made), t.columns, fate)
	if missing := int64(len(rows.made)) - found; err == nil && missing > 0 {
		r.notSaved(t.rel.String(), missing, "rows that were written are not readable")
	}
	return err
}

// readDeleted saves the keys of deleted rows, once they are uncovered.
func (r *rescuer) readDeleted(ctx context.Context, t *tableReader, rows *fileRows) error {
	key := t.key
	if len(key) == 0 {
		key = t.columns
	}
	found, err := t.readTIDs(ctx, maps.Keys(rows.gone), key, func(tidKey) string { return changeDeleted })
	if missing := int64(len(rows.gone)) - found + r.unreadable[t.rel.File]; err == nil && missing > 0 {
		r.notSaved(t.rel.String(), missing, "deleted rows whose keys are no longer readable: VACUUM or pruning removed them, and the WAL has no image of them")
	}
	return err
}

// readWhole reads a table that a lost transaction made or rewrote: every row
// that one of them wrote.
func (t *tableReader) readWhole(ctx context.Context, fate func(tidKey) string) error {
	if err := postgres.Exec(ctx, t.conn, "SET enable_seqscan = on"); err != nil {
		return err
	}
	_, err := t.copy(ctx, t.columns, "xmin IN (SELECT x FROM pg_temp.lost) ORDER BY ctid", fate)
	return errors.Join(err, postgres.Exec(ctx, t.conn, "SET enable_seqscan = off"))
}

// readTIDs reads versions by their places and returns how many there are.
func (t *tableReader) readTIDs(ctx context.Context, keys iter.Seq[tidKey], columns []RescuedColumn, fate func(tidKey) string) (int64, error) {
	const batch = 1 << 20 // bounds the server's memory
	var found int64
	var list []tidKey
	for k := range keys {
		if list = append(list, k); len(list) == batch {
			n, err := t.readBatch(ctx, list, columns, fate)
			if found += n; err != nil {
				return found, err
			}
			list = list[:0]
		}
	}
	n, err := t.readBatch(ctx, list, columns, fate)
	return found + n, err
}

// readBatch reads versions by their places. One that cannot be read, as a
// deleted row's whose TOAST values VACUUM removed, is left out: halves of the
// batch are tried until it stands alone.
func (t *tableReader) readBatch(ctx context.Context, list []tidKey, columns []RescuedColumn, fate func(tidKey) string) (int64, error) {
	if len(list) == 0 {
		return 0, nil
	}
	if err := postgres.Exec(ctx, t.conn, "TRUNCATE pg_temp.wanted"); err != nil {
		return 0, err
	}
	var tids bytes.Buffer
	for _, k := range list {
		fmt.Fprintln(&tids, k.tid())
	}
	if _, err := t.conn.PgConn().CopyFrom(ctx, &tids, "COPY pg_temp.wanted FROM STDIN"); err != nil {
		return 0, postgres.Explain(err)
	}
	n, err := t.copy(ctx, columns, "ctid = ANY (ARRAY(SELECT t FROM pg_temp.wanted))", fate)
	var said *pgconn.PgError
	if err == nil || !errors.As(err, &said) || !ofTheRow(said) || ctx.Err() != nil {
		return n, err
	}
	if len(list) == 1 {
		t.job.Log.Warn("a row cannot be read", "table", t.rel.String(), "ctid", list[0].tid(), "error", said.Message)
		return 0, nil
	}
	half := len(list) / 2
	a, err := t.readBatch(ctx, list[:half], columns, fate)
	if err != nil {
		return a, err
	}
	b, err := t.readBatch(ctx, list[half:], columns, fate)
	return a + b, err
}

// ofTheRow tells whether an error may be a single row's: the server is not out
// of resources, nor on its way down.
func ofTheRow(err *pgconn.PgError) bool {
	return !slices.Contains([]string{"53", "57", "08"}, err.Code[:min(2, len(err.Code))])
}

// copy has the server send rows, which go to the files of their fates. Where
// it fails nothing of it stays in the files.
func (t *tableReader) copy(ctx context.Context, columns []RescuedColumn, where string, fate func(tidKey) string) (int64, error) {
	names := []string{"ctid"}
	for _, c := range columns {
		names = append(names, postgres.QuoteIdent(c.Name))
	}
	sql := fmt.Sprintf("COPY (SELECT %s FROM ONLY %s WHERE %s) TO STDOUT", strings.Join(names, ", "), qualified(t.rel.Schema, t.rel.Name), where)
	marks := map[*rowFile]RescuedFile{}
	for _, f := range t.files {
		marks[f] = f.RescuedFile
	}
	sink := rowSink{line: func(tid, row []byte) error {
		f, err := t.file(fate(parseTID(tid)), columns)
		if err != nil {
			return err
		}
		f.Rows++
		f.Bytes += int64(len(row))
		_, err = f.w.Write(row)
		return err
	}}
	_, err := t.conn.PgConn().CopyTo(ctx, &sink, sql)
	if err == nil {
		return sink.rows, nil
	}
	for _, f := range t.files {
		f.RescuedFile.Rows, f.RescuedFile.Bytes = marks[f].Rows, marks[f].Bytes
		if ferr := f.cut(); ferr != nil {
			return 0, ferr
		}
	}
	return 0, fmt.Errorf("reading rows of %s: %w", t.rel, postgres.Explain(err))
}

// cut shortens the file to what counts.
func (f *rowFile) cut() error {
	if err := f.w.Flush(); err != nil {
		return err
	}
	if err := f.f.Truncate(f.Bytes); err != nil {
		return err
	}
	_, err := f.f.Seek(f.Bytes, io.SeekStart)
	return err
}

// file returns the file for a fate, and makes it at the first row.
func (t *tableReader) file(change string, columns []RescuedColumn) (*rowFile, error) {
	if f := t.files[change]; f != nil {
		return f, nil
	}
	path := rescuePath(t.name, t.rel.Schema, t.rel.Name, change)
	full := filepath.Join(t.rescuer.out, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o700); err != nil {
		return nil, err
	}
	out, err := os.OpenFile(full, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	f := &rowFile{f: out, w: bufio.NewWriterSize(out, 1<<18),
		RescuedFile: RescuedFile{Change: change, Path: path, Columns: columns, Staging: stagingName(t.rel.Schema, t.rel.Name, change)}}
	t.files[change] = f
	return f, nil
}

// close ends the files and lists those with rows.
func (t *tableReader) close() error {
	var errs []error
	for _, change := range []string{changeInserted, changeUpdated, changeWritten, changeDeleted} {
		f := t.files[change]
		if f == nil {
			continue
		}
		errs = append(errs, f.w.Flush(), f.f.Close())
		if f.Rows == 0 {
			errs = append(errs, os.Remove(f.f.Name()))
			continue
		}
		t.out.Files = append(t.out.Files, f.RescuedFile)
		t.res.Rows, t.res.Bytes = t.res.Rows+f.Rows, t.res.Bytes+f.Bytes
	}
	if len(t.out.Files) > 0 {
		t.res.add(t.out)
	}
	t.job.Progress.Add(1)
	return errors.Join(errs...)
}

// add lists a table, or more files of one.
func (res *RescueResult) add(t RescuedTable) {
	order := func(a, b RescuedTable) int {
		return cmp.Or(cmp.Compare(a.Database, b.Database), cmp.Compare(a.Schema, b.Schema), cmp.Compare(a.Name, b.Name))
	}
	i, found := slices.BinarySearchFunc(res.Tables, t, order)
	if found {
		res.Tables[i].Files = append(res.Tables[i].Files, t.Files...)
	} else {
		res.Tables = slices.Insert(res.Tables, i, t)
	}
}

// rowSink takes COPY's text apart: a row is a line, its first column the
// version's place, which is not part of what is saved.
type rowSink struct {
	line func(tid, row []byte) error
	part []byte // of a line that has not ended
	rows int64
}

func (s *rowSink) Write(data []byte) (int, error) {
	n := len(data)
	for {
		end := bytes.IndexByte(data, '\n')
		if end < 0 {
			s.part = append(s.part, data...)
			return n, nil
		}
		row := data[:end+1]
		if len(s.part) > 0 {
			s.part = append(s.part, row...)
			row = s.part
		}
		data = data[end+1:]
		tid, rest, ok := bytes.Cut(row, []byte{'\t'})
		if !ok {
			rest = []byte{'\n'} // a table without columns
		}
		s.rows++
		if err := s.line(tid, rest); err != nil {
			return 0, err
		}
		s.part = s.part[:0]
	}
}

// parseTID reads "(0,1)".
func parseTID(text []byte) tidKey {
	var t wal.TID
	if _, err := fmt.Sscanf(string(text), "(%d,%d)", &t.Block, &t.Offset); err != nil {
		return 0
	}
	return keyOf(t.Block, t.Offset)
}
