package cluster

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// run executes the steps of one role change.
type run struct {
	c      *Cluster
	report *Report
	all    []*Facts
	old    *Facts // the primary that gives up its role, nil where there is none
	next   *Facts // the node that is, or becomes, the primary
	slots  slots  // the slot of each follower on next

	rejoin RejoinOptions

	stop      *stopping // the old primary's shutdown, once it was begun
	committed bool      // the promotion was asked for: there is no way back
	promoted  bool      // and it has taken effect
	fenced    bool      // standby.signal was put into the old primary's directory
	made      []string  // slots that were made on next before the promotion
	session   *pgx.Conn // on next, kept open over the promotion
}

// slots names the slot of each follower.
type slots map[string]string

// assignSlots gives every follower a slot of its own: the one that it uses,
// unless another uses it too.
func assignSlots(followers []*Facts) slots {
	out, taken := slots{}, map[string]bool{}
	for _, f := range followers {
		name := slotOf(f)
		if taken[name] {
			name = SlotName(f.Name)
		}
		for n := 2; taken[name]; n++ {
			name = fmt.Sprintf("%.60s_%d", SlotName(f.Name), n)
		}
		taken[name], out[f.Name] = true, name
	}
	return out
}

// subject returns the node that a step is about. After the promotion a failure
// holds up the steps of that node alone.
func (s Step) subject() string {
	switch s.Action {
	case ActionSlot:
		return s.Peer
	case ActionSettle, ActionAfter, ActionPromote:
		return ""
	}
	return s.Node
}

// execute takes the steps in turn. Before the promotion the first failure ends
// it, and is returned. After it, the steps of other nodes go on; what failed
// stays undone in the report.
func (r *run) execute(ctx context.Context) error {
	defer func() {
		if r.session != nil {
			closeConn(r.session)
		}
	}()
	broken := map[string]bool{}
	for i := range r.report.Steps {
		s := &r.report.Steps[i]
		if broken[s.subject()] && s.subject() != "" {
			continue
		}
		if err := r.step(ctx, s); err != nil {
			s.Error = err.Error()
			if !r.committed || s.Action == ActionPromote {
				return err
			}
			r.c.opt.Progress.Note("%s: %v", s, err)
			broken[s.subject()] = true
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

func (r *run) step(ctx context.Context, s *Step) error {
	if r.c.opt.BeforeStep != nil {
		if err := r.c.opt.BeforeStep(*s); err != nil {
			return err
		}
	}
	r.c.opt.Progress.Phase(s.String(), 0, 0)
	r.c.opt.Log.Debug(s.String())
	start := time.Now()
	err := r.do(ctx, s)
	s.Took = seconds(time.Since(start))
	s.Done = err == nil
	return err
}

func seconds(d time.Duration) float64 { return d.Round(time.Millisecond).Seconds() }

func (r *run) do(ctx context.Context, s *Step) error {
	n, err := r.c.node(s.Node)
	if err != nil {
		return err
	}
	switch s.Action {
	case ActionCheckpoint, ActionSettle:
		return r.c.session(ctx, n, func(conn *pgx.Conn) error { return postgres.Exec(ctx, conn, "CHECKPOINT") })
	case ActionSlot:
		return r.makeSlot(ctx, n, s.Detail)
	case ActionStop:
		return ternary(r.report.Operation == "rejoin", r.stopNode, r.stopOld)(ctx)
	case ActionProve:
		return r.prove(ctx)
	case ActionFence:
		r.fenced = true
		return writeStandbySignal(r.c.opt.FS, n.DataDir)
	case ActionBefore:
		return r.c.runHook(ctx, "before_promote", s.Detail, r.report)
	case ActionPromote:
		return r.promote(ctx, n)
	case ActionAfter:
		return r.c.runHook(ctx, "after_promote", s.Detail, r.report)
	case ActionRewind:
		return r.takeBack(ctx, n)
	case ActionReseed:
		return r.copyAnew(ctx, n)
	case ActionJoin:
		return r.joinNode(ctx, n)
	case ActionRepoint:
		return r.repointNode(ctx, n)
	case ActionVerify:
		return r.verifyNode(ctx, n)
	case ActionDropSlots:
		return r.c.session(ctx, n, func(conn *pgx.Conn) error { return dropSlot(ctx, conn, s.Detail) })
	}
	return fmt.Errorf("no way to %s", s)
}

func (r *run) makeSlot(ctx context.Context, n Node, name string) error {
	return r.c.session(ctx, n, func(conn *pgx.Conn) error {
		made, err := ensureSlot(ctx, conn, name)
		if made && !r.committed {
			r.made = append(r.made, name)
		}
		return err
	})
}

// conninfoFor returns the primary_conninfo by which a node follows the new primary.
func (r *run) conninfoFor(n Node) (string, error) {
	return followConnInfo(r.next, find(r.all, n.Name), r.all)
}

// followConnInfo prefers who the node itself has been to its primary; an old
// primary, which was nobody's standby, takes what other standbys are.
func followConnInfo(primary, f *Facts, all []*Facts) (string, error) {
	worked, application := "", f.Name
	if f.Role == RoleStandby {
		worked = f.Settings["primary_conninfo"]
	}
	if worked == "" {
		for _, g := range append([]*Facts{primary}, all...) {
			info, err := postgres.ParseConnInfo(g.Settings["primary_conninfo"])
			if g != f && err == nil && info["user"] != "" {
				worked = info.With("application_name", "").String()
				break
			}
		}
	}
	return upstreamConnInfo(primary.Node, worked, application)
}

func (r *run) joinNode(ctx context.Context, n Node) error {
	if r.stop != nil && r.old != nil && r.old.Name == n.Name {
		if err := r.awaitEnd(ctx); err != nil {
			return exit.Hint(err, "its shutdown checkpoint is written, something keeps the process (the archiver?); run the same command again when it has ended")
		}
	}
	info, err := r.conninfoFor(n)
	if err != nil {
		return err
	}
	return r.c.join(ctx, n, info, r.slots[n.Name])
}

// verifyNode proves that a node streams. Where a rejoin comes to nothing, a
// fresh copy is what is left.
func (r *run) verifyNode(ctx context.Context, n Node) error {
	err := r.c.verify(ctx, r.next.Node, n, r.slots[n.Name])
	if err == nil || r.report.Operation != "rejoin" || ctx.Err() != nil {
		return err
	}
	return exit.Hint(err, fmt.Sprintf("see the log of %s; where the WAL that it needs is gone, dbctl rejoin %s --reseed copies it anew", n.Name, n.Name))
}

func (r *run) repointNode(ctx context.Context, n Node) error {
	info, err := r.conninfoFor(n)
	if err != nil {
		return err
	}
	return r.c.repoint(ctx, n, info, r.slots[n.Name])
}

// candidate returns the session on the next primary, opened anew where it was lost.
func (r *run) candidate(ctx context.Context) (*pgx.Conn, error) {
	if r.session != nil && !r.session.IsClosed() {
		return r.session, nil
	}
	conn, err := r.c.connect(ctx, r.next.Node)
	r.session = conn
	return conn, err
}

// prove shows that the candidate has everything: it has replayed up to the end
// of the old primary's last record, and that record in its own WAL, on the
// same timeline, is the very same.
func (r *run) prove(ctx context.Context) error {
	control, err := r.c.control(r.old.Node)
	if err != nil {
		return err
	}
	rec, err := shutdownCheckpoint(ctx, control, r.old.DataDir)
	if err != nil {
		return err
	}
	conn, err := r.candidate(ctx)
	if err != nil {
		return err
	}
	proof := &Proof{Timeline: rec.Timeline, Record: rec.LSN, End: rec.End, CRC: fmt.Sprintf("%08X", rec.CRC)}
	what := fmt.Sprintf("%s has everything up to %s", r.next.Name, rec.End)
	err = until(ctx, r.c.opt.StopTimeout, what, func(ctx context.Context) error { return proof.reached(ctx, conn) })
	if err != nil {
		return err
	}
	mine, err := readCheckpoint(ctx, control, r.next.DataDir, timeline.Root(rec.Timeline))
	if err != nil {
		return err
	}
	if mine != rec {
		return fmt.Errorf("the record at %s differs: CRC %08X on %s, %08X on %s", rec.LSN, rec.CRC, r.old.Name, mine.CRC, r.next.Name)
	}
	r.report.Proof = proof
	return nil
}

// reached asks the candidate for its position. Received is the greater of
// receive and replay: after a restart the former starts again from a segment's
// beginning.
func (p *Proof) reached(ctx context.Context, conn *pgx.Conn) error {
	var receive, replay string
	if err := postgres.Query(ctx, conn, "SELECT coalesce(pg_last_wal_receive_lsn(), '0/0')::text, coalesce(pg_last_wal_replay_lsn(), '0/0')::text", nil, &receive, &replay); err != nil {
		return err
	}
	var received, replayed wal.LSN
	if err := errors.Join(parseLSN(receive, &received), parseLSN(replay, &replayed)); err != nil {
		return err
	}
	p.Received, p.Replayed = max(received, replayed), replayed
	if p.Replayed < p.End {
		return notYet("received %s, replayed %s", p.Received, p.Replayed)
	}
	return nil
}

// promote is the point of no return. An error that the server itself gives
// means that it did not take the request; any other leaves that open, and then
// the old primary must not come back.
func (r *run) promote(ctx context.Context, n Node) error {
	conn, err := r.candidate(ctx)
	if err != nil {
		return err
	}
	pctx, cancel := context.WithTimeoutCause(ctx, r.c.opt.PromoteTimeout, fmt.Errorf("not within %s", r.c.opt.PromoteTimeout))
	defer cancel()
	r.committed = true
	if err := postgres.Promote(pctx, conn); err != nil {
		if code := postgres.SQLState(err); code != "" && code[:2] != "57" {
			r.committed = false
		}
		return err
	}
	r.promoted = true
	var xid string
	if err := postgres.Query(ctx, conn, "SELECT pg_current_xact_id()::text", nil, &xid); err != nil {
		return fmt.Errorf("%s is promoted, its first write failed: %w", n.Name, err)
	}
	if r.stop != nil && r.report.Operation == "switchover" {
		gap := seconds(time.Since(r.stop.asked))
		r.report.WriteGap = &gap
	}
	// A repeated request may have left its file; the next start would remove it.
	if err := volume.RemoveDurable(r.c.opt.FS, filepath.Join(n.DataDir, "promote")); err != nil {
		r.c.opt.Log.Warn("promote file not removed", "error", err)
	}
	var file string
	if err := postgres.Query(ctx, conn, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())", nil, &file); err != nil {
		return err
	}
	if name, ok := wal.ParseFileName(file); ok {
		r.report.Timeline = name.Timeline
	}
	return nil
}
