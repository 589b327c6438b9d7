package cluster

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/pkg/volume"
)

// stopping is a server on its way down.
type stopping struct {
	server *postgres.Server
	asked  time.Time     // from then on it accepts no writes
	ended  chan struct{} // closed when the process has ended
	err    error         // of the stop, once ended is closed
}

func (c *Cluster) control(n Node) (*volume.Control, error) {
	return volume.ReadControlFS(c.opt.FS, n.DataDir)
}

// beginStop asks the server to stop fast and returns at once. What was asked
// for goes on whatever becomes of ctx: a shutdown cannot be called back.
func (c *Cluster) beginStop(ctx context.Context, n Node) (*stopping, error) {
	s, err := c.server(n)
	if err != nil {
		return nil, err
	}
	st := &stopping{server: s, asked: time.Now(), ended: make(chan struct{})}
	go func() {
		st.err = s.Stop(context.WithoutCancel(ctx), postgres.StopFast)
		close(st.ended)
	}()
	return st, nil
}

// wait waits until the process has ended.
func (s *stopping) wait(ctx context.Context, limit time.Duration) error {
	select {
	case <-s.ended:
		return s.err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(limit):
		return fmt.Errorf("the server in %s has not ended within %s", s.server.DataDir, limit)
	}
}

// stopOld stops the old primary and returns as soon as its pg_control says
// "shut down": no more WAL is written from then on, though the archiver may
// still be at work. A walsender whose standby does not answer can hold the
// shutdown for ever; at half the time those of other nodes than the
// candidate are ended.
func (r *run) stopOld(ctx context.Context) error {
	stop, err := r.c.beginStop(ctx, r.old.Node)
	if err != nil {
		return err
	}
	r.stop = stop
	limit := r.c.opt.StopTimeout
	released := false
	err = until(ctx, limit, r.old.Name+" has shut down", func(context.Context) error {
		control, err := r.c.control(r.old.Node)
		switch {
		case err != nil:
			return err
		case control.State == volume.StateShutdowned:
			return nil
		case !released && time.Since(stop.asked) > limit/2:
			released = true
			r.releaseSenders(r.senderOf(r.next))
		}
		select {
		case <-stop.ended:
			// The state is written before the process ends: look once more.
			if control, err = r.c.control(r.old.Node); err != nil || control.State == volume.StateShutdowned {
				return err
			}
			return fmt.Errorf("%s ended without a clean shutdown (%s)", r.old.Name, control.State)
		default:
			return notYet("pg_control says %s", control.State)
		}
	})
	return exit.Hint(err, "see the log of "+r.old.Name+"; a session, a walsender or the archiver may hold the shutdown")
}

// senderGrace is how long an old primary's walsenders may take to end once the
// promotion has made them useless.
const senderGrace = time.Second

// awaitEnd waits for the old primary's process. What its walsenders still
// wait for, the new primary sends.
func (r *run) awaitEnd(ctx context.Context) error {
	if r.stop.wait(ctx, senderGrace) == nil {
		return nil
	}
	r.releaseSenders(0)
	return r.stop.wait(ctx, r.c.opt.StopTimeout)
}

// releaseSenders ends the walsenders but one.
func (r *run) releaseSenders(keep int) {
	for _, s := range r.old.Senders {
		if s.PID == keep || parentOf(s.PID) != r.old.PID {
			continue
		}
		r.c.opt.Progress.Note("%s: the shutdown waits; ending the walsender of %s (process %d)", r.old.Name, s.Application, s.PID)
		syscall.Kill(s.PID, syscall.SIGTERM)
	}
}

// senderOf returns the process on the old primary that serves a node, 0 where
// it cannot be told.
func (r *run) senderOf(f *Facts) int {
	if s := r.old.slot(f.Settings["primary_slot_name"]); s != nil && s.PID != 0 {
		return s.PID
	}
	for _, s := range r.old.Senders {
		if s.Application == applicationOf(f) {
			return s.PID
		}
	}
	return 0
}

// parentOf returns the parent of a process, 0 where it cannot be told.
func parentOf(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, ok := strings.Cut(string(b), ") ")
	var state string
	var ppid int
	if _, err := fmt.Sscan(rest, &state, &ppid); !ok || err != nil {
		return 0
	}
	return ppid
}

// stopAtOnce ends a server without a shutdown checkpoint.
func stopAtOnce(ctx context.Context, s *postgres.Server, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %s", limit))
	defer cancel()
	return s.Stop(ctx, postgres.StopImmediate)
}
