package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/cli"
)

const (
	table   = `CREATE TABLE IF NOT EXISTS ledger (n bigint PRIMARY KEY, branch text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp())`
	insert  = `INSERT INTO ledger (n, branch) VALUES ($1, $2)`
	patient = 2 * time.Second // for one connect, and for one row
)

type writeCmd struct {
	cli.DSNFlag
	File   string        `required:"" placeholder:"FILE" help:"Where acknowledged numbers are kept; it is continued."`
	Branch string        `default:"main" help:"Written into every row, to tell branches apart."`
	From   int64         `default:"1" help:"The first number, where the file is empty."`
	Count  int           `placeholder:"N" help:"Stop after so many acknowledged rows; default never."`
	Every  time.Duration `default:"5ms" help:"Pause between two rows."`
}

func (writeCmd) Examples() string {
	return `ledger write -d "host=db1,db2 target_session_attrs=read-write" --file acknowledged.txt`
}

// Run writes until the context ends. A row that fails is not tried again
// under its number: whether it was committed is unknown.
func (c *writeCmd) Run(ctx context.Context, e *cli.Env) error {
	mem, err := openMemory(c.File)
	if err != nil {
		return err
	}
	defer mem.close()
	w := &writer{cmd: c, next: max(c.From, mem.last+1)}
	defer w.disconnect()
	for acked := 0; ctx.Err() == nil && (c.Count == 0 || acked < c.Count); {
		n := w.next
		w.next++
		if err := w.put(ctx, n); err != nil {
			e.Log().Debug("not acknowledged", "row", n, "error", err)
			w.disconnect()
			pause(ctx, 20*time.Millisecond)
			continue
		}
		if err := mem.add(n, time.Now()); err != nil {
			return err
		}
		acked++
		pause(ctx, c.Every)
	}
	return nil
}

// writer holds one session and opens another when it breaks.
type writer struct {
	cmd  *writeCmd
	conn *pgx.Conn
	next int64
	made bool
}

func (w *writer) put(ctx context.Context, n int64) error {
	ctx, cancel := context.WithTimeout(ctx, patient)
	defer cancel()
	if w.conn == nil {
		conn, err := pgx.Connect(ctx, w.cmd.DSN)
		if err != nil {
			return err
		}
		w.conn = conn
	}
	if !w.made {
		if _, err := w.conn.Exec(ctx, table); err != nil {
			return err
		}
		w.made = true
	}
	_, err := w.conn.Exec(ctx, insert, n, w.cmd.Branch)
	return err
}

func (w *writer) disconnect() {
	if w.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	_ = w.conn.Close(ctx)
	w.conn = nil
}

// pause waits, or until the context ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// memory is the file of acknowledged rows: a number and a time per line.
type memory struct {
	f    *os.File
	last int64
}

func openMemory(path string) (*memory, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	rows, err := readMemory(path)
	if err != nil {
		f.Close()
		return nil, err
	}
	m := &memory{f: f}
	for _, r := range rows {
		m.last = max(m.last, r.n)
	}
	return m, nil
}

func (m *memory) add(n int64, at time.Time) error {
	_, err := fmt.Fprintf(m.f, "%d\t%s\n", n, at.UTC().Format(time.RFC3339Nano))
	return err
}

func (m *memory) close() { m.f.Close() }

// acked is one acknowledged row.
type acked struct {
	n  int64
	at time.Time
}

func readMemory(path string) ([]acked, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var rows []acked
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		num, at, ok := strings.Cut(lines.Text(), "\t")
		if !ok {
			return nil, fmt.Errorf("%s: %q is not a number and a time", path, lines.Text())
		}
		n, err := strconv.ParseInt(num, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		when, err := time.Parse(time.RFC3339Nano, at)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		rows = append(rows, acked{n, when})
	}
	return rows, lines.Err()
}
