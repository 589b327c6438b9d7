package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/pkg/volume"
)

// ServerSource reads the data directory of a running server (primary or
// standby) over SQL. The role needs EXECUTE on pg_ls_dir(text,bool,bool),
// pg_stat_file(text,bool) and pg_read_binary_file(text,bigint,bigint,bool), and
// nothing else.
//
// Each Fetch uses a session of its own, so as many may run at once as the
// server has room for.
type ServerSource struct {
	conninfo string
	name     string
	major    int

	mu     sync.Mutex
	idle   []*pgx.Conn
	closed bool
}

var _ blockcopy.Source = (*ServerSource)(nil)

// OpenSource connects to the server whose files are to be read.
func OpenSource(ctx context.Context, conninfo string) (*ServerSource, error) {
	conn, err := connect(ctx, conninfo, readBuffer)
	if err != nil {
		return nil, err
	}
	cfg := conn.Config()
	name := fmt.Sprintf("server host=%s port=%d user=%s", QuoteValue(cfg.Host), cfg.Port, QuoteValue(cfg.User))
	return &ServerSource{conninfo: conninfo, name: name, major: ServerMajor(conn.PgConn()), idle: []*pgx.Conn{conn}}, nil
}

// Name names the server without secrets.
func (s *ServerSource) Name() string { return s.name }

// Major is the server's major version.
func (s *ServerSource) Major() int { return s.major }

// Close ends the sessions. Those in use end when their Fetch does.
func (s *ServerSource) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, conn := range s.idle {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		conn.Close(ctx)
		cancel()
	}
	s.idle = nil
	return nil
}

// acquire takes an idle session or opens one.
func (s *ServerSource) acquire(ctx context.Context) (*pgx.Conn, error) {
	s.mu.Lock()
	if n := len(s.idle); n > 0 {
		conn := s.idle[n-1]
		s.idle = s.idle[:n-1]
		s.mu.Unlock()
		return conn, nil
	}
	s.mu.Unlock()
	return connect(ctx, s.conninfo, readBuffer)
}

func (s *ServerSource) release(conn *pgx.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || conn.IsClosed() || conn.PgConn().IsBusy() {
		conn.Close(context.Background())
		return
	}
	s.idle = append(s.idle, conn)
}

// Query runs one statement in one of the source's sessions and scans its
// single row into dest.
func (s *ServerSource) Query(ctx context.Context, sql string, args []any, dest ...any) error {
	conn, err := s.acquire(ctx)
	if err != nil {
		return err
	}
	defer s.release(conn)
	return Query(ctx, conn, sql, args, dest...)
}

// listing walks the data directory in one statement, parents before children.
// pg_stat_file follows the links of pg_tblspc, so the walk goes through them;
// a file that vanishes between the two calls has no size.
const listing = `
WITH RECURSIVE tree(depth, path, size, modified, directory) AS (
	SELECT 1, top.name, st.size, st.modification, st.isdir
	FROM pg_ls_dir('.', true, false) AS top(name), pg_stat_file(top.name, true) AS st
  UNION ALL
	SELECT depth + 1, tree.path || '/' || entry.name, st.size, st.modification, st.isdir
	FROM tree, pg_ls_dir(tree.path, true, false) AS entry(name), pg_stat_file(tree.path || '/' || entry.name, true) AS st
	WHERE tree.directory
)
SELECT path, size, modified, directory, CASE WHEN ts.oid IS NOT NULL THEN pg_tablespace_location(ts.oid) END
FROM tree LEFT JOIN pg_tablespace AS ts ON depth = 2 AND path = 'pg_tblspc/' || ts.oid::text
WHERE size IS NOT NULL
ORDER BY depth`

// List returns every file, directory and tablespace link of the data directory.
func (s *ServerSource) List(ctx context.Context) ([]blockcopy.Entry, error) {
	var entries []blockcopy.Entry
	err := s.Each(ctx, func(e blockcopy.Entry) error {
		entries = append(entries, e)
		return nil
	})
	return entries, err
}

// Each calls do for what List returns, one by one as the rows come.
func (s *ServerSource) Each(ctx context.Context, do func(blockcopy.Entry) error) error {
	conn, err := s.acquire(ctx)
	if err != nil {
		return err
	}
	defer s.release(conn)
	rows, err := conn.Query(ctx, listing)
	if err != nil {
		return s.fault("listing the files of", err)
	}
	var e blockcopy.Entry
	var directory bool
	var link pgtype.Text
	var failed error
	_, err = pgx.ForEachRow(rows, []any{&e.Path, &e.Size, &e.ModTime, &directory, &link}, func() error {
		one := e
		if err := blockcopy.CheckPath(one.Path); err != nil {
			return err
		}
		if directory {
			one.Type, one.Size = blockcopy.Dir, 0
		}
		// The location of a tablespace in place is its own relative path.
		if len(link.String) > 0 && link.String[0] == '/' {
			one.Type, one.LinkTarget = blockcopy.Link, link.String
		}
		failed = do(one)
		return failed
	})
	if failed != nil {
		return failed
	}
	return s.fault("listing the files of", err)
}

// readBuffer is what one session reads from its socket at once: a server sends
// 8 kB at a time, and taking these one by one costs more than their content.
const readBuffer = 256 << 10

// rowBytes is the size of one row of a fetch: large enough to make a row's
// cost small, small enough for the copies that a server makes of it to stay in
// a processor's cache: rows of 16 kB and of 1 MB cost it a third more.
const rowBytes = 64 << 10

// pieceBytes bounds what the server reads at once for anything else.
const pieceBytes = 1 << 20

// windowBytes bounds what the server reads of a file at once for several rows:
// to open a file, find the place and close it again costs it more than to read
// the few blocks between two ranges, which gapBytes bounds, and throw them away.
const (
	windowBytes = 256 << 10
	gapBytes    = 32 << 10
)

// fetching reads windows ($1 to $5: path, start, length, the first and the last
// of its rows) and cuts rows out of them ($6, $7: where in the window, from 1
// on, and how long). OFFSET 0 has each window read once.
const fetching = `
SELECT substr(content, start, length)
FROM (
	SELECT content, unnest(($6::int4[])[first:last]) AS start, unnest(($7::int4[])[first:last]) AS length
	FROM (
		SELECT pg_read_binary_file(path, start, length, true) AS content, first, last
		FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::int4[], $5::int4[]) AS wanted(path, start, length, first, last)
		OFFSET 0
	) AS windows
) AS pieces`

// piece is a row of a fetch.
type piece struct {
	blockcopy.Range
	of int // index of its range
}

// fetchPieces cuts ranges into rows.
func fetchPieces(ranges []blockcopy.Range) ([]piece, error) {
	pieces := make([]piece, 0, len(ranges))
	for i, r := range ranges {
		if err := blockcopy.CheckPath(r.Path); err != nil {
			return nil, err
		}
		for r.Length > 0 {
			n := min(r.Length, rowBytes)
			pieces = append(pieces, piece{blockcopy.Range{Path: r.Path, Offset: r.Offset, Length: n}, i})
			r.Offset += n
			r.Length -= n
		}
	}
	return pieces, nil
}

// Fetch reads the ranges with one statement: a row per piece, streamed.
func (s *ServerSource) Fetch(ctx context.Context, ranges []blockcopy.Range, deliver blockcopy.Deliver) error {
	pieces, err := fetchPieces(ranges)
	if err != nil || len(pieces) == 0 {
		return err
	}
	conn, err := s.acquire(ctx)
	if err != nil {
		return err
	}
	defer s.release(conn)
	args, err := fetchArgs(conn.TypeMap(), pieces)
	if err != nil {
		return err
	}
	rr := conn.PgConn().ExecParams(ctx, fetching, args, nil, []int16{1}, []int16{1})
	n, err := deliverRows(rr, pieces, deliver)
	if err != nil {
		// The rest of the answer is not worth reading: drop the session.
		closing, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		conn.PgConn().Conn().Close()
		conn.Close(closing)
		return err
	}
	if _, err := rr.Close(); err != nil {
		at := "files of"
		if n < len(pieces) {
			at = pieces[n].Path + " of"
		}
		return s.fault("reading "+at, err)
	}
	if n < len(pieces) {
		return fmt.Errorf("reading files of %s: the server sent %d rows of %d", s.name, n, len(pieces))
	}
	return nil
}

// deliverRows hands the rows on as they come, and returns how many came.
func deliverRows(rr *pgconn.ResultReader, pieces []piece, deliver blockcopy.Deliver) (n int, err error) {
	done := -1 // the range that needs nothing more
	for ; rr.NextRow(); n++ {
		if n == len(pieces) {
			return n, errors.New("the server sent more rows than were asked for")
		}
		p, data := pieces[n], rr.Values()[0]
		if p.of == done {
			continue
		}
		if int64(len(data)) > p.Length {
			return n, fmt.Errorf("%s: the server sent %d bytes", p.Range, len(data))
		}
		if int64(len(data)) < p.Length {
			done = p.of
		}
		if err := deliver(p.Range, data, data == nil); err != nil {
			return n, err
		}
	}
	return n, nil
}

// windows are what a fetch reads, and where its rows are in that.
type windows struct {
	paths           []string
	starts, lengths []int64
	firsts, lasts   []int32 // the rows of each, from 1 on
	from, size      []int32 // of each row, in its window, from 1 on
}

// cutWindows puts rows that follow each other closely into one window.
func cutWindows(pieces []piece) windows {
	w := windows{from: make([]int32, len(pieces)), size: make([]int32, len(pieces))}
	for i, p := range pieces {
		n := len(w.paths) - 1
		if n < 0 || !w.follows(n, p) {
			n++
			w.paths, w.starts, w.lengths = append(w.paths, p.Path), append(w.starts, p.Offset), append(w.lengths, 0)
			w.firsts, w.lasts = append(w.firsts, int32(i)+1), append(w.lasts, 0)
		}
		w.lengths[n], w.lasts[n] = p.End()-w.starts[n], int32(i)+1
		w.from[i], w.size[i] = int32(p.Offset-w.starts[n])+1, int32(p.Length)
	}
	return w
}

// follows tells whether a row has its place in window n.
func (w *windows) follows(n int, p piece) bool {
	gap := p.Offset - (w.starts[n] + w.lengths[n])
	return p.Path == w.paths[n] && gap >= 0 && gap <= gapBytes && p.End()-w.starts[n] <= windowBytes
}

// fetchArgs encodes what a fetch asks for.
func fetchArgs(m *pgtype.Map, pieces []piece) ([][]byte, error) {
	w := cutWindows(pieces)
	return encodeArgs(m, w.paths, w.starts, w.lengths, w.firsts, w.lasts, w.from, w.size)
}

// encodeArgs encodes arrays in binary format.
func encodeArgs(m *pgtype.Map, arrays ...any) ([][]byte, error) {
	var out [][]byte
	for _, a := range arrays {
		oid := uint32(pgtype.TextArrayOID)
		switch a.(type) {
		case []int64:
			oid = pgtype.Int8ArrayOID
		case []int32:
			oid = pgtype.Int4ArrayOID
		}
		b, err := m.Encode(oid, pgx.BinaryFormatCode, a, nil)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// fault wraps an error of the server with what was being done.
func (s *ServerSource) fault(doing string, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) && !errors.Is(err, fs.ErrNotExist) {
		return exit.Wrap(err, exit.CodeOf(err), "is the server still running? run the same command again to go on", "%s %s", doing, s.name)
	}
	return exit.Wrap(Explain(err), exit.CodeOf(err), "", "%s %s", doing, s.name)
}

// smallFile bounds what ReadFile returns.
const smallFile = 64 << 20

// ReadFile returns the whole content of a small file.
func (s *ServerSource) ReadFile(ctx context.Context, path string) ([]byte, error) {
	if err := blockcopy.CheckPath(path); err != nil {
		return nil, err
	}
	conn, err := s.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer s.release(conn)
	var data []byte
	if err := conn.QueryRow(ctx, "SELECT pg_read_binary_file($1, 0, $2, true)", path, int64(smallFile)).Scan(&data); err != nil {
		return nil, s.fault("reading "+path+" of", err)
	}
	if data == nil {
		return nil, fmt.Errorf("reading %s of %s: %w", path, s.name, fs.ErrNotExist)
	}
	if len(data) == smallFile {
		return nil, fmt.Errorf("reading %s of %s: it has more than %d bytes", path, s.name, smallFile)
	}
	return data, nil
}

// ReadControl reads pg_control through a source. The server may write it at
// the same moment, so a copy that fails its checksum is read again; the same
// bad bytes twice are an error.
func ReadControl(ctx context.Context, src blockcopy.Source) (*volume.Control, error) {
	const tries = 10
	var last []byte
	for try := 0; ; try++ {
		data, err := src.ReadFile(ctx, "global/pg_control")
		if err != nil {
			return nil, err
		}
		c, err := volume.ParseControl(data)
		if err == nil {
			return c, nil
		}
		if bytes.Equal(data, last) || try == tries {
			return nil, exit.Wrap(err, exit.Failed, "the server's global/pg_control is damaged, or of a version that is not supported", "reading pg_control of %s", src.Name())
		}
		last = data
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}
