package main

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/cli"
	"tidemark/internal/exit"
)

type verifyCmd struct {
	cli.DSNFlag
	File  string    `required:"" placeholder:"FILE" help:"The acknowledged numbers."`
	Since time.Time `placeholder:"TIME" help:"Look for the longest pause after this moment only (RFC 3339)."`
}

// report is what verify found.
type report struct {
	Acknowledged int           `json:"acknowledged"`
	Present      int           `json:"present"`
	Lost         []int64       `json:"lost"`
	Pause        time.Duration `json:"-"`
	PauseSeconds float64       `json:"longest_pause_seconds"`
}

func (c *verifyCmd) Run(ctx context.Context, e *cli.Env) error {
	rows, err := readMemory(c.File)
	if err != nil {
		return err
	}
	present, err := readServer(ctx, c.DSN)
	if err != nil {
		return err
	}
	r := compare(rows, present, c.Since)
	err = e.Render(r, func(t *cli.Text) {
		t.Line("%s acknowledged, %s lost; writing paused for %s at most",
			cli.Plural(r.Acknowledged, "row", "rows"), cli.Count(len(r.Lost)), cli.Duration(r.Pause))
	})
	if err == nil && len(r.Lost) > 0 {
		return exit.New(exit.Problem, "", "acknowledged rows are missing, the first is %d", r.Lost[0])
	}
	return err
}

func readServer(ctx context.Context, dsn string) (map[int64]bool, error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, "SELECT n FROM ledger")
	if err != nil {
		return nil, err
	}
	numbers, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	present := make(map[int64]bool, len(numbers))
	for _, n := range numbers {
		present[n] = true
	}
	return present, err
}

// compare counts what is there, and finds the longest time between two
// acknowledgements of which the later one came after since.
func compare(rows []acked, present map[int64]bool, since time.Time) report {
	r := report{Acknowledged: len(rows), Lost: []int64{}}
	for i, row := range rows {
		if present[row.n] {
			r.Present++
		} else {
			r.Lost = append(r.Lost, row.n)
		}
		if i > 0 && row.at.After(since) {
			r.Pause = max(r.Pause, row.at.Sub(rows[i-1].at))
		}
	}
	r.PauseSeconds = r.Pause.Seconds()
	return r
}
