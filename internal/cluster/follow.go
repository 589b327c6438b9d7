package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/pkg/wal"
)

// This file makes a node follow a primary, and proves that it does.

// pollInterval is how often a condition is looked at again.
const pollInterval = 20 * time.Millisecond

// errNotYet tells until to look again.
var errNotYet = errors.New("not yet")

// until calls f until it returns nil or an error other than errNotYet. When
// the time is over it returns an error that f's last words explain.
func until(ctx context.Context, limit time.Duration, what string, f func(context.Context) error) error {
	tctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var last error
	for {
		err := f(tctx)
		if errors.Is(err, errNotYet) {
			last = err
		}
		if err == nil || (!errors.Is(err, errNotYet) && tctx.Err() == nil) {
			return err
		}
		select {
		case <-tctx.Done():
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if last == nil {
				last = err
			}
			return fmt.Errorf("%s: %w within %s", what, last, limit)
		case <-tick.C:
		}
	}
}

func notYet(format string, args ...any) error {
	return fmt.Errorf("%w (%s)", errNotYet, fmt.Sprintf(format, args...))
}

// ensureSlot makes a physical slot that keeps WAL from now on. One that is
// there already is used. It reports whether it made the slot.
func ensureSlot(ctx context.Context, conn *pgx.Conn, name string) (made bool, err error) {
	var kind string
	var usable bool
	err = postgres.Query(ctx, conn, `SELECT slot_type, active OR (restart_lsn IS NOT NULL AND wal_status IS DISTINCT FROM 'lost')
		FROM pg_replication_slots WHERE slot_name = $1`, []any{name}, &kind, &usable)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return false, err
	case kind != "physical":
		return false, exit.New(exit.Failed, "rename the node, or drop the slot", "the slot %s is there and is %s", name, kind)
	case !usable:
		if err := dropSlot(ctx, conn, name); err != nil {
			return false, err
		}
	default:
		return false, nil
	}
	return true, postgres.Exec(ctx, conn, "SELECT pg_create_physical_replication_slot($1, true)", name)
}

// dropSlot drops a slot that nobody uses; one that is gone is no error.
func dropSlot(ctx context.Context, conn *pgx.Conn, name string) error {
	err := postgres.Exec(ctx, conn, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1 AND NOT active AND slot_type = 'physical'", name)
	if postgres.SQLState(err) == "42704" {
		return nil
	}
	return err
}

// repoint makes a running standby receive from another primary.
func (c *Cluster) repoint(ctx context.Context, n Node, conninfo, slot string) error {
	return c.session(ctx, n, func(conn *pgx.Conn) error {
		return alterSystem(ctx, conn, postgres.StandbySettings(conninfo, slot))
	})
}

// join configures a stopped node as a standby and starts it. The signal file
// comes first: whatever happens behind it, the node does not start as a primary.
func (c *Cluster) join(ctx context.Context, n Node, conninfo, slot string) error {
	if running, err := postgres.IsRunning(n.DataDir); err != nil || running {
		return errors.Join(err, ternary(running, postgres.ErrRunning, nil))
	}
	if err := writeStandbySignal(c.opt.FS, n.DataDir); err != nil {
		return err
	}
	if err := postgres.EditAutoConf(c.opt.FS, n.DataDir, postgres.StandbySettings(conninfo, slot)); err != nil {
		return err
	}
	return c.start(ctx, n)
}

func (c *Cluster) start(ctx context.Context, n Node) error {
	s, err := c.server(n)
	if err != nil {
		return err
	}
	s.StartTimeout = c.opt.FollowTimeout
	return s.Start(ctx)
}

// verify proves that a node streams from the primary: the walsender on its
// slot is streaming, and has flushed what the primary had written when the
// proof began. Being asked on the primary, it also proves the timeline: a
// primary sends only its own beyond the point where it began.
func (c *Cluster) verify(ctx context.Context, primary, n Node, slot string) error {
	return c.session(ctx, primary, func(conn *pgx.Conn) error {
		var text string
		if err := postgres.Query(ctx, conn, "SELECT pg_current_wal_lsn()::text", nil, &text); err != nil {
			return err
		}
		target, err := wal.ParseLSN(text)
		if err != nil {
			return err
		}
		what := fmt.Sprintf("%s streams from %s", n.Name, primary.Name)
		err = until(ctx, c.opt.FollowTimeout, what, func(ctx context.Context) error { return c.streamsBeyond(ctx, conn, slot, target) })
		if err == nil || ctx.Err() != nil {
			return err
		}
		return exit.Hint(err, c.whyNotStreaming(context.WithoutCancel(ctx), n))
	})
}

func (c *Cluster) streamsBeyond(ctx context.Context, conn *pgx.Conn, slot string, target wal.LSN) error {
	var state, flush string
	err := postgres.Query(ctx, conn, `SELECT coalesce(r.state, ''), coalesce(r.flush_lsn, '0/0')::text
		FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid WHERE s.slot_name = $1`, []any{slot}, &state, &flush)
	if errors.Is(err, pgx.ErrNoRows) {
		return notYet("nobody uses slot %s", slot)
	}
	if err != nil {
		return err
	}
	lsn, err := wal.ParseLSN(flush)
	if err != nil {
		return err
	}
	if state != "streaming" || lsn < target {
		return notYet("state %s, flushed %s of %s", state, lsn, target)
	}
	return nil
}

// whyNotStreaming is a hint for a node that does not stream.
func (c *Cluster) whyNotStreaming(ctx context.Context, n Node) string {
	f := c.observeNode(ctx, n)
	switch {
	case !f.processAlive() && n.DataDir != "":
		return n.Name + " is not running; see its log"
	case !f.SQL:
		return n.Name + ": " + firstLine(f.Reason)
	case f.Receiver == nil:
		return fmt.Sprintf("%s has no WAL receiver; its log says why; dbctl rejoin %s can bring it back", n.Name, n.Name)
	}
	return fmt.Sprintf("the receiver of %s is %s; see its log", n.Name, f.Receiver.Status)
}
