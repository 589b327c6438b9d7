package cluster

import (
	"context"
	"fmt"
	"strings"
	"time"

	"tidemark/internal/exit"
)

// A planned switchover. P is the primary, C the candidate, F every follower of
// the new primary (P itself among them).
//
//	state        what is true                          step to the next
//	-----------  ------------------------------------  -----------------------------------------
//	1 running    P writes, C streams                   checks; checkpoint P; slots for F on C
//	2 prepared   C can feed every F                    stop P fast, bounded        <- the gap begins
//	3 stopped    pg_control of P: "shut down"          C has replayed the END of P's last record,
//	                                                   and that record is equal on both
//	4 proven     nothing acknowledged misses on C      standby.signal into P, before_promote
//	5 fenced     nobody can start P as a primary       promote C
//	------------------------- the point of no return ---------------------------------
//	6 promoted   C writes                              <- the gap ends; after_promote;
//	                                                   checkpoint C (pg_control shows the timeline)
//	7 settled    others can read C's timeline          re-point the siblings, start P as a standby
//	8 following  F are configured                      prove that each streams; drop P's old slots
//	9 done
//
// A failure in 1-5 goes back to 1: slots made are dropped, the signal file is
// removed, P is started again in place; exit 1. After the promotion was asked
// for there is no way back: steps of one node may fail, those of the others go
// on; exit 5 with what remains.
//
// A run that was killed is run again. It finds the state from the servers:
// in 1-2 it begins anew, in 3-5 (P stopped as a primary, C still a standby)
// it goes on with the proof, in 6-8 (C is the primary) it does what each
// follower still lacks.

// SwitchoverOptions are what a switchover is told.
type SwitchoverOptions struct {
	To     string // the node that becomes the primary
	DryRun bool
}

// Switchover moves the primary's role to a standby. The report is never nil
// once the nodes are known, whatever the error.
func (c *Cluster) Switchover(ctx context.Context, o SwitchoverOptions) (*Report, error) {
	start := time.Now()
	report := &Report{Operation: "switchover", Cluster: c.opt.Name, Node: o.To, Outcome: OutcomeFailed}
	if err := c.local(); err != nil {
		return report, err
	}
	if _, err := c.node(o.To); err != nil {
		return report, err
	}
	c.opt.Progress.Phase("looking at the nodes", 0, 0)
	all, err := c.observeSettled(ctx)
	if err != nil {
		return report, err
	}
	r := &run{c: c, report: report, all: all}
	if settled, err := r.settled(r.planSwitchover(ctx, o.To), "the switchover to "+o.To, o.DryRun); settled {
		return report, err
	}
	defer func() { report.Took = seconds(time.Since(start)) }()
	return report, r.conclude(ctx, r.execute(ctx))
}

// observeSettled observes, and where a server is on its way down (a killed
// switchover has asked it to stop) waits for it.
func (c *Cluster) observeSettled(ctx context.Context) ([]*Facts, error) {
	var all []*Facts
	err := until(ctx, c.opt.StopTimeout, "the servers have stopped", func(ctx context.Context) error {
		all = c.observe(ctx)
		for _, f := range all {
			if f.State == StateStopping {
				return notYet("%s is shutting down", f.Name)
			}
		}
		return ctx.Err()
	})
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return all, err
}

// refusal says which checks failed.
func refusal(bad []Check, what string) error {
	var lines, hints []string
	for _, b := range bad {
		lines = append(lines, fmt.Sprintf("%s (%s): %s", b.Name, b.Node, b.Detail))
		if b.Hint != "" {
			hints = append(hints, b.Hint)
		}
	}
	return exit.New(exit.Refused, strings.Join(hints, "\n"), "%s was not begun: %s", what, strings.Join(lines, "; "))
}

// settled reports that a role change ends with its plan: it is refused, there
// is nothing to do, or only the plan was asked for.
func (r *run) settled(planned error, what string, dryRun bool) (bool, error) {
	bad := failed(r.report.Checks)
	if planned == nil && len(bad) > 0 {
		planned = refusal(bad, what)
	}
	switch {
	case planned != nil:
		r.report.Outcome = OutcomeRefused
	case len(r.report.Steps) == 0:
		r.report.Outcome = OutcomeNothing
	case dryRun:
		r.report.Outcome = OutcomePlanned
	default:
		return false, nil
	}
	return true, planned
}

// planSwitchover finds the state that the cluster is in, and plans from there.
func (r *run) planSwitchover(ctx context.Context, to string) error {
	r.next = find(r.all, to)
	up := primaries(r.all)
	switch {
	case len(up) > 1:
		return exit.New(exit.Refused, "decide which one is to live, and take the other back: dbctl rejoin NAME --stop",
			"two primaries run: %s", strings.Join(names(up), " and "))
	case !r.next.running():
		return exit.New(exit.Refused, "start it first", "%s is %s: %s", to, r.next.State, firstLine(r.next.Reason))
	case len(up) == 1 && up[0] == r.next:
		return r.planFinish(ctx)
	case len(up) == 1:
		return r.planFull(ctx, up[0])
	}
	return r.planResume(ctx)
}

// planFull: state 1.
func (r *run) planFull(ctx context.Context, p *Facts) error {
	r.old, r.report.Old = p, p.Name
	siblings := r.siblings()
	followers := append([]*Facts{p}, siblings...)
	r.slots = assignSlots(followers)
	r.report.Checks = checkSwitchover(p, r.next, followers, limits{r.c.opt.MaxLag, r.c.opt.MaxBacklog})
	if len(failed(r.report.Checks)) == 0 {
		// The candidate answers already; only now is it worth to knock.
		r.report.Checks = append(r.report.Checks, r.c.checkAdmission(ctx, r.next, followers, r.all)...)
	}
	r.add(Step{Action: ActionCheckpoint, Node: p.Name})
	r.addSlots(followers)
	r.add(Step{Action: ActionStop, Node: p.Name})
	r.addPromotion()
	r.addFollowing(p, siblings)
	return nil
}

// planResume: states 3 to 5. The one node that was shut down as a primary is
// the old one.
func (r *run) planResume(ctx context.Context) error {
	var stopped []*Facts
	for _, f := range r.all {
		if f.stoppedAsPrimary() {
			stopped = append(stopped, f)
		}
	}
	if len(stopped) != 1 {
		return exit.New(exit.Refused, "start the primary, or where it is lost: dbctl promote "+r.next.Name, "no primary runs, so there is nothing to switch over from")
	}
	r.old, r.report.Old = stopped[0], stopped[0].Name
	siblings := r.siblings()
	followers := append([]*Facts{r.old}, siblings...)
	r.slots = assignSlots(followers)
	r.report.Notes = append(r.report.Notes, fmt.Sprintf("%s was shut down as the primary: going on from there", r.old.Name))
	r.addSlots(followers)
	r.addPromotion()
	r.addFollowing(r.old, siblings)
	return nil
}

// planFinish: states 6 to 9. Only what a follower lacks is planned.
func (r *run) planFinish(ctx context.Context) error {
	r.committed, r.promoted = true, true
	r.report.Timeline = r.next.Timeline
	r.slots = assignSlots(r.siblings())
	var lagging, followers []*Facts
	for _, f := range r.siblings() {
		if f.Upstream != r.next.Name || !f.streaming() {
			lagging = append(lagging, f)
		}
	}
	followers = lagging
	var old *Facts
	for _, f := range r.all {
		if f != r.next && f.stoppedAsPrimary() {
			if err := r.cleanHandover(ctx, f); err != nil {
				r.report.Notes = append(r.report.Notes, fmt.Sprintf("%s is not started: %v (dbctl rejoin %s)", f.Name, err, f.Name))
				continue
			}
			old = f
			followers = append([]*Facts{f}, followers...)
		}
	}
	if len(followers) == 0 {
		return nil
	}
	r.old = old
	if old != nil {
		r.report.Old = old.Name
	}
	r.slots = assignSlots(append(followers, r.siblings()...))
	r.addSlots(followers)
	r.add(Step{Action: ActionSettle, Node: r.next.Name})
	r.addFollowing(old, lagging)
	return nil
}

// cleanHandover makes sure that a stopped node ended exactly where the new
// primary's timeline began: it is the old primary of a switchover that was cut off.
func (r *run) cleanHandover(ctx context.Context, f *Facts) error {
	end, _, err := endOfNode(ctx, r.c.opt.FS, f)
	if err != nil {
		return err
	}
	history, err := readHistory(r.c.opt.FS, r.next.DataDir, r.next.Timeline)
	if err != nil {
		return err
	}
	if !history.Contains(end.Timeline, end.LSN) {
		return fmt.Errorf("its WAL goes to %s, which is no part of the history of %s", end, r.next.Name)
	}
	return nil
}

// siblings are the running standbys that will be pointed to the new primary:
// all but those that stream from another standby which stays one.
func (r *run) siblings() []*Facts {
	var out []*Facts
	for _, f := range r.all {
		if f == r.next || !f.running() || f.Role != RoleStandby || f.SystemID != r.next.SystemID {
			continue
		}
		if up := find(r.all, f.Upstream); up != nil && up != r.next && up.Role == RoleStandby && f.streaming() {
			continue
		}
		out = append(out, f)
	}
	return out
}

func (r *run) add(s Step) { r.report.Steps = append(r.report.Steps, s) }

func (r *run) addSlots(followers []*Facts) {
	for _, f := range followers {
		if s := r.next.slot(r.slots[f.Name]); s != nil && s.Type == "physical" && s.WALStatus != "lost" {
			continue
		}
		r.add(Step{Action: ActionSlot, Node: r.next.Name, Peer: f.Name, Detail: r.slots[f.Name]})
	}
}

func (r *run) addPromotion() {
	r.add(Step{Action: ActionProve, Node: r.next.Name, Peer: r.old.Name})
	r.add(Step{Action: ActionFence, Node: r.old.Name})
	r.addHooked()
}

func (r *run) addHooked() {
	if hook := r.c.opt.Hooks.BeforePromote; hook != "" {
		r.add(Step{Action: ActionBefore, Node: r.next.Name, Detail: hook})
	}
	r.add(Step{Action: ActionPromote, Node: r.next.Name})
	if hook := r.c.opt.Hooks.AfterPromote; hook != "" {
		r.add(Step{Action: ActionAfter, Node: r.next.Name, Detail: hook})
	}
	r.add(Step{Action: ActionSettle, Node: r.next.Name})
}

// addFollowing plans what comes after the promotion. What is quick and lets
// others go on comes first, the proofs last.
func (r *run) addFollowing(old *Facts, siblings []*Facts) {
	for _, f := range siblings {
		r.add(Step{Action: ActionRepoint, Node: f.Name, Peer: r.next.Name})
	}
	if old != nil {
		r.add(Step{Action: ActionJoin, Node: old.Name, Peer: r.next.Name})
	}
	for _, f := range siblings {
		r.add(Step{Action: ActionVerify, Node: f.Name, Peer: r.next.Name})
	}
	if old == nil {
		return
	}
	r.add(Step{Action: ActionVerify, Node: old.Name, Peer: r.next.Name})
	for _, name := range r.abandonedSlots(old) {
		r.add(Step{Action: ActionDropSlots, Node: old.Name, Detail: name})
	}
}

// abandonedSlots are the slots on the old primary of nodes that now stream
// from the new one. Left alone they would hold WAL until the disk is full.
func (r *run) abandonedSlots(old *Facts) []string {
	var out []string
	seen := map[string]bool{}
	for _, f := range r.all {
		if f == old || f.Role != RoleStandby && f != r.next || f.Upstream == old.Name && f != r.next && !r.moves(f) {
			continue
		}
		for _, name := range []string{f.Settings["primary_slot_name"], SlotName(f.Name)} {
			known := old.slot(name) != nil || !old.running() && volumeHasSlot(old.DataDir, name)
			if name != "" && known && !seen[name] {
				seen[name] = true
				out = append(out, name)
			}
		}
	}
	return out
}

// moves reports whether the plan points the node to the new primary.
func (r *run) moves(f *Facts) bool {
	for _, s := range r.report.Steps {
		if s.Action == ActionRepoint && s.Node == f.Name {
			return true
		}
	}
	return false
}

// volumeHasSlot looks for a slot of a stopped node.
func volumeHasSlot(dir, name string) bool { return name != "" && fileExists(dir, "pg_replslot/"+name) }

// conclude turns how the steps went into the outcome, and before the point of
// no return goes back.
func (r *run) conclude(ctx context.Context, err error) error {
	rep := r.report
	if err == nil && len(remaining(rep.Steps)) == 0 {
		rep.Outcome = OutcomeDone
		return nil
	}
	if r.committed && !r.promoted && err != nil {
		rep.Outcome, rep.Remaining = OutcomeFailed, remaining(rep.Steps)
		return exit.Wrap(err, exit.Partial, fmt.Sprintf("run the same command again: it sees whether %s is the primary, and goes on (dbctl %s)", r.next.Name, r.command()),
			"the promotion of %s was asked for, and is not seen to have taken effect", r.next.Name)
	}
	if r.committed {
		rep.Outcome, rep.Remaining = OutcomeIncomplete, remaining(rep.Steps)
		hint := fmt.Sprintf("run the same command again: it does what is left (dbctl %s)", r.command())
		return exit.New(exit.RoleIncomplete, hint, "%s is the primary, but %d %s left:\n%s", r.next.Name, len(rep.Remaining),
			ternary(len(rep.Remaining) == 1, "step is", "steps are"), strings.Join(rep.Remaining, "\n"))
	}
	if r.old == nil {
		r.dropMade(context.WithoutCancel(ctx))
		return exit.Wrap(err, ternary(ctx.Err() != nil, exit.Interrupted, exit.Failed), exit.HintOf(err), "%s was not promoted, nothing has changed", r.next.Name)
	}
	back := r.rollBack(context.WithoutCancel(ctx))
	code := exit.Failed
	if ctx.Err() != nil {
		code = exit.Interrupted
	}
	if back != nil {
		rep.Outcome, rep.Remaining = OutcomeFailed, []string{"start " + r.old.Name + " as the primary"}
		return exit.Wrap(err, exit.Partial, fmt.Sprintf("bringing %s back failed: %v\nrun the same command again, or start it: remove standby.signal from %s, then pg_ctl start", r.old.Name, back, r.old.DataDir),
			"the switchover to %s failed, and %s is not running", r.next.Name, r.old.Name)
	}
	rep.Outcome = OutcomeRolledBack
	return exit.Wrap(err, code, exit.HintOf(err), "the switchover to %s failed, %s is the primary as before", r.next.Name, r.old.Name)
}

func (r *run) command() string {
	switch r.report.Operation {
	case "switchover":
		return "switchover --to " + r.next.Name
	case "promote":
		return "promote " + r.next.Name
	}
	return "rejoin " + r.report.Node
}

// rollBack brings the old primary back in place. It must not run once a
// promotion was asked for.
func (r *run) rollBack(ctx context.Context) error {
	r.dropMade(ctx)
	resumed := r.stop == nil && r.old.stoppedAsPrimary()
	if r.stop == nil && !resumed {
		return nil
	}
	r.c.opt.Progress.Note("bringing %s back as the primary", r.old.Name)
	if err := r.endStop(ctx); err != nil {
		return err
	}
	if r.fenced || resumed {
		if err := removeStandbySignal(r.c.opt.FS, r.old.DataDir); err != nil {
			return err
		}
	}
	if err := r.c.start(ctx, r.old.Node); err != nil {
		return err
	}
	f := r.c.observeNode(ctx, r.old.Node)
	if !f.running() || f.Role != RolePrimary {
		return fmt.Errorf("%s is %s (%s)", f.Name, f.State, f.Role)
	}
	return nil
}

// endStop waits for a shutdown that was begun; one that does not end is cut
// short. A crash recovery follows then, and nothing acknowledged is lost by it.
func (r *run) endStop(ctx context.Context) error {
	if r.stop == nil {
		return nil
	}
	grace := r.c.opt.StopTimeout / 4
	if r.stop.wait(ctx, grace) == nil {
		return nil
	}
	return stopAtOnce(ctx, r.stop.server, r.c.opt.StopTimeout)
}

func (r *run) dropMade(ctx context.Context) {
	for _, name := range r.made {
		if conn, err := r.c.connect(ctx, r.next.Node); err == nil {
			if err := dropSlot(ctx, conn, name); err != nil {
				r.c.opt.Log.Warn("slot not dropped", "slot", name, "node", r.next.Name, "error", err)
			}
			closeConn(conn)
		}
	}
	r.made = nil
}
