package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/exit"
)

// Promote ends recovery on the server behind conn and waits until it has: the
// only proof is NOT pg_is_in_recovery(). The context bounds the wait.
//
// pg_control still shows the old timeline afterwards, until the next
// checkpoint: issue one where others read it.
func Promote(ctx context.Context, conn *pgx.Conn) error {
	// Not waiting inside the function: its false only means that time ran out.
	if _, err := conn.Exec(ctx, "SELECT pg_promote(false)"); err != nil && SQLState(err) != "55000" {
		return fmt.Errorf("promoting: %w", Explain(err))
	}
	// 55000 says that recovery is over: someone was faster.
	return waitPromoted(ctx, conn)
}

func waitPromoted(ctx context.Context, conn *pgx.Conn) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var standby bool
		if err := Query(ctx, conn, "SELECT pg_is_in_recovery()", nil, &standby); err != nil {
			return err
		}
		if !standby {
			return nil
		}
		select {
		case <-ctx.Done():
			return exit.Wrap(context.Cause(ctx), exit.Partial, "look into the server's log; it may still promote", "promotion was requested, the server is still in recovery")
		case <-tick.C:
		}
	}
}
