package pgtest

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/postgres"
)

// ConnInfo returns the connection string of the node's superuser, with further
// options ("user=replicator").
func (n *Node) ConnInfo(options ...string) string {
	c := fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", n.SocketDir, n.Port)
	if len(options) > 0 {
		c += " " + strings.Join(options, " ")
	}
	return c
}

// TCPConnInfo is ConnInfo over TCP, for nodes that listen there.
func (n *Node) TCPConnInfo(options ...string) string {
	return strings.Replace(n.ConnInfo(options...), "host="+n.SocketDir, "host=127.0.0.1", 1)
}

// Env returns libpq's variables for the node, for commands that read them.
func (n *Node) Env() []string {
	return []string{"PGHOST=" + n.SocketDir, "PGPORT=" + strconv.Itoa(n.Port), "PGUSER=postgres", "PGDATABASE=postgres"}
}

// Context returns the test's context, bounded by Patience.
func (n *Node) Context() (context.Context, context.CancelFunc) {
	return context.WithTimeout(n.t.Context(), Patience)
}

// Conn opens a session, closed with the test. Its search_path is the server's default.
func (n *Node) Conn(options ...string) *pgx.Conn {
	n.t.Helper()
	conn, err := n.connect(options...)
	if err != nil {
		n.t.Fatalf("connecting to %s: %v", n.Name, err)
	}
	n.t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func (n *Node) connect(options ...string) (*pgx.Conn, error) {
	ctx, cancel := n.Context()
	defer cancel()
	return pgx.Connect(ctx, n.ConnInfo(append([]string{"default_query_exec_mode=exec"}, options...)...))
}

// Exec runs statements (several may be separated by semicolons).
func (n *Node) Exec(sql string) { n.t.Helper(); n.ExecIn("postgres", sql) }

// ExecIn is Exec in another database.
func (n *Node) ExecIn(database, sql string) {
	n.t.Helper()
	if err := n.TryExec(database, sql); err != nil {
		n.t.Fatalf("%s: %s: %v", n.Name, sql, err)
	}
}

// TryExec is ExecIn for statements that may fail.
func (n *Node) TryExec(database, sql string) error {
	conn, err := n.connect("dbname=" + database)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	ctx, cancel := n.Context()
	defer cancel()
	_, err = conn.PgConn().Exec(ctx, sql).ReadAll()
	return err
}

// SQL runs a query and returns its rows as text: columns divided by |, rows by
// a newline, as `psql -At` prints them.
func (n *Node) SQL(sql string) string { n.t.Helper(); return n.SQLIn("postgres", sql) }

// SQLIn is SQL in another database.
func (n *Node) SQLIn(database, sql string) string {
	n.t.Helper()
	out, err := n.TrySQL(database, sql)
	if err != nil {
		n.t.Fatalf("%s: %s: %v", n.Name, sql, err)
	}
	return out
}

// TrySQL is SQLIn for queries that may fail.
func (n *Node) TrySQL(database, sql string) (string, error) {
	conn, err := n.connect("dbname=" + database)
	if err != nil {
		return "", err
	}
	defer conn.Close(context.Background())
	ctx, cancel := n.Context()
	defer cancel()
	results, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	if err != nil {
		return "", err
	}
	var lines []string
	for _, r := range results {
		for _, row := range r.Rows {
			var cells []string
			for _, cell := range row {
				cells = append(cells, string(cell))
			}
			lines = append(lines, strings.Join(cells, "|"))
		}
	}
	return strings.Join(lines, "\n"), nil
}

// WaitSQL waits until a query's result is want. Errors count as "not yet".
func (n *Node) WaitSQL(sql, want string) {
	n.t.Helper()
	var got string
	var err error
	ok := Wait(n.t, func() bool {
		got, err = n.TrySQL("postgres", sql)
		return err == nil && got == want
	})
	if !ok {
		n.t.Fatalf("%s: %s: got %q (%v), waited for %q", n.Name, sql, got, err, want)
	}
}

// Wait waits until f returns true; it returns false after Patience.
func Wait(t testing.TB, f func() bool) bool {
	deadline := time.Now().Add(Patience)
	for !f() {
		if time.Now().After(deadline) || t.Context().Err() != nil {
			return false
		}
		time.Sleep(10 * time.Millisecond)
	}
	return true
}

// Promote promotes a standby and waits until it is a primary.
func (n *Node) Promote() {
	n.t.Helper()
	ctx, cancel := n.Context()
	defer cancel()
	conn, err := postgres.Connect(ctx, n.ConnInfo())
	if err != nil {
		n.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := postgres.Promote(ctx, conn); err != nil {
		n.t.Fatal(err)
	}
}

// LSN returns up to where a primary's WAL is durable. Unlike the insert
// position, which may lie behind the header of a page not begun yet, it is
// reached by every reader of the WAL.
func (n *Node) LSN() string { n.t.Helper(); return n.SQL("SELECT pg_current_wal_flush_lsn()") }

// InsertLSN returns a primary's insert position.
func (n *Node) InsertLSN() string { n.t.Helper(); return n.SQL("SELECT pg_current_wal_insert_lsn()") }

// SwitchWAL completes the current segment and returns its name.
func (n *Node) SwitchWAL() string {
	n.t.Helper()
	n.Exec("SELECT pg_logical_emit_message(false, 'pgtest', 'x')") // an empty segment is not switched
	return n.SQL("SELECT pg_walfile_name(pg_switch_wal())")
}

// WaitFor waits until a standby has replayed what a primary has written so far.
func (n *Node) WaitFor(primary *Node) {
	n.t.Helper()
	n.WaitSQL("SELECT pg_last_wal_replay_lsn() >= '"+primary.SQL("SELECT pg_current_wal_lsn()")+"'::pg_lsn", "t")
}
