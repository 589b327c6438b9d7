package pgtest

import (
	"bytes"
	"context"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/postgres"
)

// Writer inserts numbered rows, one a transaction, and remembers which commits
// the server acknowledged: what a planned role change must not lose. When a
// session breaks it connects again, and goes on with the next number (the fate
// of the one in flight is unknown).
type Writer struct {
	table  string
	target atomic.Pointer[string]
	cancel context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex
	acked []int64
	gap   time.Duration // the longest time between two acknowledgements
	last  time.Time
}

// StartWriter makes the table (unless it is there) and starts writing.
func StartWriter(t testing.TB, n *Node, table string) *Writer {
	t.Helper()
	n.Exec("CREATE TABLE IF NOT EXISTS " + postgres.QuoteIdent(table) + " (n bigint PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())")
	ctx, cancel := context.WithCancel(context.Background())
	w := &Writer{table: postgres.QuoteIdent(table), cancel: cancel, done: make(chan struct{})}
	w.Redirect(n.ConnInfo())
	go w.run(ctx)
	t.Cleanup(func() { w.Stop() })
	return w
}

// Redirect sends the next rows to another server.
func (w *Writer) Redirect(conninfo string) { w.target.Store(&conninfo) }

func (w *Writer) run(ctx context.Context) {
	defer close(w.done)
	for number := int64(1); ctx.Err() == nil; {
		target := w.target.Load()
		conn, err := pgx.Connect(ctx, *target+" default_query_exec_mode=exec connect_timeout=5")
		for err == nil && w.target.Load() == target && ctx.Err() == nil {
			_, err = conn.Exec(context.Background(), "INSERT INTO "+w.table+" VALUES ("+strconv.FormatInt(number, 10)+")")
			if err == nil {
				w.ack(number)
			}
			number++
		}
		if conn != nil {
			conn.Close(context.Background())
		}
		if err != nil {
			time.Sleep(5 * time.Millisecond)
		}
	}
}

func (w *Writer) ack(number int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if !w.last.IsZero() && now.Sub(w.last) > w.gap {
		w.gap = now.Sub(w.last)
	}
	w.last = now
	w.acked = append(w.acked, number)
}

// Acked returns how many commits were acknowledged so far.
func (w *Writer) Acked() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acked)
}

// Gap returns the longest time between two acknowledged commits so far.
func (w *Writer) Gap() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gap
}

// WaitRows waits until n further commits were acknowledged.
func (w *Writer) WaitRows(t testing.TB, n int) {
	t.Helper()
	want := w.Acked() + n
	if !Wait(t, func() bool { return w.Acked() >= want }) {
		t.Fatalf("the writer does not get on: %d rows, waited for %d", w.Acked(), want)
	}
}

// Stop ends the writing and returns the numbers of the acknowledged rows.
func (w *Writer) Stop() []int64 {
	w.cancel()
	<-w.done
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.acked
}

// Lost returns the acknowledged rows that a server does not have.
func (w *Writer) Lost(t testing.TB, n *Node) []int64 {
	t.Helper()
	there := map[int64]bool{}
	conn := n.Conn()
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), "SELECT n FROM "+w.table)
	if err != nil {
		t.Fatal(err)
	}
	var number int64
	if _, err := pgx.ForEachRow(rows, []any{&number}, func() error { there[number] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	var lost []int64
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, number := range w.acked {
		if !there[number] {
			lost = append(lost, number)
		}
	}
	return lost
}

// PgbenchInit fills pgbench's tables; scale 1 is about 15 MB.
func (n *Node) PgbenchInit(scale int) {
	n.t.Helper()
	n.PgbenchIn("postgres", "-i", "-q", "-s", strconv.Itoa(scale))
}

// PgbenchIn runs pgbench on one database to its end.
func (n *Node) PgbenchIn(database string, args ...string) {
	n.t.Helper()
	cmd := exec.Command(Tool(n.t, n.Major, "pgbench"), append(args, n.clientArgs(database)...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		n.t.Fatalf("pgbench %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (n *Node) clientArgs(database string) []string {
	return []string{"-h", n.SocketDir, "-p", strconv.Itoa(n.Port), "-U", "postgres", database}
}

// Pgbench runs pgbench in the background until the returned function is called
// (or the test ends). The function returns what it printed.
func (n *Node) Pgbench(args ...string) (stop func() string) {
	n.t.Helper()
	args = append(append([]string{"-n", "-T", "600", "-c", "2"}, args...), n.clientArgs("postgres")...)
	cmd := exec.Command(Tool(n.t, n.Major, "pgbench"), args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = dieWithUs()
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	stop = sync.OnceValue(func() string {
		cmd.Process.Kill()
		cmd.Wait()
		return out.String()
	})
	n.t.Cleanup(func() { stop() })
	return stop
}

// churnStatement bounds one statement of Churn.
const churnStatement = time.Minute

// Churn runs statements over and over in the background (a failing one is
// skipped) until the returned function is called or the test ends; it returns
// how many rounds were done. It ends between two statements: one cut off, such
// as DROP DATABASE, would leave what no test expects.
func (n *Node) Churn(statements ...string) (stop func() int) {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan int, 1)
	go func() {
		rounds := 0
		for ; ctx.Err() == nil; rounds++ {
			conn, err := n.connect()
			if err != nil {
				time.Sleep(10 * time.Millisecond)
				continue
			}
			for _, sql := range statements {
				if ctx.Err() != nil {
					break
				}
				bound, done := context.WithTimeout(context.Background(), churnStatement)
				conn.PgConn().Exec(bound, sql).ReadAll()
				done()
			}
			conn.Close(context.Background())
		}
		done <- rounds
	}()
	stop = sync.OnceValue(func() int { cancel(); return <-done })
	n.t.Cleanup(func() { stop() })
	return stop
}

// Digest returns a hash of the contents of every ordinary table of every
// database, by name: equal digests mean equal data. It reads, so it works on a
// standby too.
func (n *Node) Digest() map[string]string {
	n.t.Helper()
	all := map[string]string{}
	for _, database := range lines(n.SQL("SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1")) {
		for _, table := range lines(n.SQLIn(database, `SELECT format('%I.%I', nspname, relname) FROM pg_class c JOIN pg_namespace s ON s.oid = relnamespace
			WHERE relkind IN ('r', 'm') AND relpersistence = 'p' AND nspname NOT LIKE 'pg\_%' AND nspname <> 'information_schema' ORDER BY 1`)) {
			all[database+"."+table] = n.SQLIn(database, "SELECT count(*) || ' ' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM "+table+" t")
		}
	}
	return all
}

func lines(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "\n")
}
