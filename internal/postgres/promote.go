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
	if err := requestPromotion(ctx, conn); err != nil {
		return err
	}
	return waitPromoted(ctx, conn)
}

// requestPromotion does not wait inside the function: its false only means
// that time ran out.
func requestPromotion(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, "SELECT pg_promote(false)")
	if err != nil && SQLState(err) != "55000" { // recovery is over: someone was faster
		return fmt.Errorf("promoting: %w", Explain(err))
	}
	return nil
}

// repeatPromotion is how many looks lie between two requests. A request that
// comes while the receiver tries to connect is noticed, and then the startup
// process sleeps for the rest of wal_retrieve_retry_interval (5 s) before it
// acts on it. Another one wakes it.
const repeatPromotion = 5

func waitPromoted(ctx context.Context, conn *pgx.Conn) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for n := 1; ; n++ {
		if n%repeatPromotion == 0 {
			if err := requestPromotion(ctx, conn); err != nil {
				return err
			}
		}
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
