package cluster

import (
	"context"
	"fmt"
	"strings"
	"time"

	"tidemark/internal/exit"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// An unplanned promotion: the primary is lost, one of its standbys takes over.
//
//	observe -> is the primary really gone? -> who has most? -> what is lost?
//	  -> slots for the siblings -> before_promote -> promote (no way back)
//	  -> after_promote -> checkpoint -> re-point the siblings -> prove each
//
// Positions are the greater of received and replayed, on their timeline. What
// the old primary had beyond the candidate is read from its own WAL where its
// data directory can be read: the very transactions are named.

// PromoteOptions are what a promotion is told.
type PromoteOptions struct {
	Node           string
	ForceBehind    bool // promote although another standby has more
	DespitePrimary bool // promote although the primary lives, or may live
	DryRun         bool
	Confirm        func(*Report) error // asked before anything is done; nil means yes
}

// Promote makes a standby the primary without the old primary's help. The
// report is never nil once the nodes are known.
func (c *Cluster) Promote(ctx context.Context, o PromoteOptions) (*Report, error) {
	start := time.Now()
	report := &Report{Operation: "promote", Cluster: c.opt.Name, Node: o.Node, Outcome: OutcomeFailed}
	if err := c.local(); err != nil {
		return report, err
	}
	if _, err := c.node(o.Node); err != nil {
		return report, err
	}
	c.opt.Progress.Phase("looking at the nodes", 0, 0)
	all := c.observe(ctx)
	if err := context.Cause(ctx); err != nil {
		return report, err
	}
	r := &run{c: c, report: report, all: all, next: find(all, o.Node)}
	if settled, err := r.settled(r.planPromote(ctx, o), "the promotion of "+o.Node, o.DryRun); settled {
		return report, err
	}
	if err := confirm(o.Confirm, report); err != nil {
		return report, err
	}
	defer func() { report.Took = seconds(time.Since(start)) }()
	err := r.conclude(ctx, r.execute(ctx))
	if r.promoted && report.Old != "" {
		report.Notes = append(report.Notes, fmt.Sprintf("%s comes back as a standby with: dbctl rejoin %s", report.Old, report.Old))
		r.measureLoss(context.WithoutCancel(ctx))
	}
	return report, err
}

func (r *run) planPromote(ctx context.Context, o PromoteOptions) error {
	if r.next.running() && r.next.Role == RolePrimary {
		if up := primaries(r.all); len(up) > 1 {
			return exit.New(exit.Refused, "take the other one back: dbctl rejoin NAME --stop", "two primaries run: %s", strings.Join(names(up), " and "))
		}
		return r.planFinish(ctx)
	}
	if !r.next.running() {
		return exit.New(exit.Refused, "start it first, or promote another node", "%s is %s: %s", o.Node, r.next.State, firstLine(r.next.Reason))
	}
	lost := lostPrimary(r.all, r.next)
	if lost != nil {
		r.report.Old = lost.Name
		r.report.Loss = r.expectedLoss(ctx, lost)
	}
	ranked := rank(r.all, r.next.SystemID)
	r.report.Candidates = ranked
	siblings := r.notAhead(r.siblings())
	r.slots = assignSlots(siblings)
	var l checklist
	l.directories(append([]*Facts{r.next}, siblings...))
	l.primaryGone(r.all, r.next, o.DespitePrimary)
	l.ahead(r.next, ranked, o.ForceBehind)
	l.replay(r.next)
	l.capacity(r.next, siblings)
	l.parameters(r.next, siblings)
	l.writable(r.next, siblings)
	l.synchronous(ternary(lost == nil, &Facts{}, lost), r.next, siblings)
	r.report.Checks = l
	r.unasked()
	r.addSlots(siblings)
	r.addHooked()
	r.addFollowing(nil, siblings)
	return nil
}

// lostPrimary returns the node that was the primary: the one that would start
// as one, or runs as one.
func lostPrimary(all []*Facts, next *Facts) *Facts {
	var found *Facts
	for _, f := range all {
		if f == next || f.Role != RolePrimary {
			continue
		}
		if found == nil || f.running() || f.position().Compare(found.position()) > 0 {
			found = f
		}
	}
	return found
}

// primaryGone refuses a promotion beside a primary that lives. Being unsure
// counts as living: two primaries are worse than none.
func (l *checklist) primaryGone(all []*Facts, next *Facts, despite bool) {
	evidence := signsOfLife(all, next)
	if len(evidence) == 0 {
		l.add("primary gone", next.Name, true, "no node runs as a primary", "")
		return
	}
	text := strings.Join(evidence, "; ")
	if despite {
		l.warn("primary gone", next.Name, text+": promoted all the same, what it still commits will be lost when it rejoins")
		return
	}
	l.add("primary gone", next.Name, false, text,
		fmt.Sprintf("while the primary works: dbctl switchover --to %s\nif nobody can reach it any more: --despite-primary promotes all the same; two primaries then accept writes, and those of the old one are lost when it rejoins", next.Name))
}

// signsOfLife lists what suggests that a primary is still there.
func signsOfLife(all []*Facts, next *Facts) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, f := range all {
		switch {
		case f == next || f.Role == RoleStandby:
		case f.running():
			say("%s runs and is the primary", f.Name)
		case f.processAlive():
			say("%s does not answer (%s), but process %d holds its data directory", f.Name, firstLine(f.Reason), f.PID)
		case f.Role == RoleUnknown && f.State == StateUnreachable:
			say("%s does not answer, and whether it runs cannot be seen from here (%s)", f.Name, firstLine(f.Reason))
		}
	}
	if len(out) > 0 {
		return out
	}
	for _, f := range all {
		if f.running() && f.streaming() && f.Receiver.SilentSecs < 5 {
			// What a node sent that has no process any more is on its way still.
			if up := find(all, f.Upstream); up == nil || up.Role != RoleStandby && up.State == StateUnreachable {
				say("%s still receives WAL from %s (%.1f s ago)", f.Name, orDefault(f.Upstream, "somewhere"), max(0, f.Receiver.SilentSecs))
			}
		}
	}
	return out
}

// rank lists the standbys that answer, the most advanced first.
func rank(all []*Facts, systemID uint64) []Candidate {
	var out []Candidate
	for _, f := range all {
		if f.running() && f.Role == RoleStandby && f.SystemID == systemID {
			out = append(out, Candidate{Node: f.Name, Position: f.position()})
		}
	}
	for i := range out { // insertion keeps the configured order among equals
		for j := i; j > 0 && out[j].Compare(out[j-1].Position) > 0; j-- {
			out[j], out[j-1] = out[j-1], out[j]
		}
	}
	for i := range out {
		out[i].Behind = behind(out[i].LSN, out[0].LSN)
	}
	return out
}

// ahead refuses a candidate that another standby is ahead of.
func (l *checklist) ahead(next *Facts, ranked []Candidate, force bool) {
	if len(ranked) == 0 || ranked[0].Compare(next.position()) <= 0 {
		l.add("position", next.Name, true, next.position().String()+", no other standby has more", "")
		return
	}
	best := ranked[0]
	detail := fmt.Sprintf("%s; %s is at %s, %d bytes more", next.position(), best.Node, best.Position, behind(next.LSN, best.LSN))
	if best.Timeline != next.Timeline {
		detail = fmt.Sprintf("%s; %s is at %s, a later timeline", next.position(), best.Node, best.Position)
	}
	if force {
		l.warn("position", next.Name, detail+": promoted all the same, the difference is lost and "+best.Node+" must be rewound")
		return
	}
	l.add("position", next.Name, false, detail, fmt.Sprintf("promote the better one: dbctl promote %s\n--force-behind promotes %s all the same and loses the difference", best.Node, next.Name))
}

// notAhead leaves out the siblings that have more than the candidate: they
// cannot follow it.
func (r *run) notAhead(siblings []*Facts) []*Facts {
	var out []*Facts
	for _, f := range siblings {
		if f.position().Compare(r.next.position()) > 0 {
			r.report.Notes = append(r.report.Notes, fmt.Sprintf("%s is ahead of %s and cannot follow it: afterwards run dbctl rejoin %s", f.Name, r.next.Name, f.Name))
			continue
		}
		out = append(out, f)
	}
	return out
}

// unasked names the nodes whose position is not known or that stay out.
func (r *run) unasked() {
	for _, f := range r.all {
		if f == r.next || f.running() || f.Role == RolePrimary {
			continue
		}
		r.report.Notes = append(r.report.Notes, fmt.Sprintf("%s is %s and was not asked: it may have more than %s; afterwards run dbctl rejoin %s", f.Name, f.State, r.next.Name, f.Name))
	}
}

// expectedLoss says what the old primary had and the candidate has not.
func (r *run) expectedLoss(ctx context.Context, old *Facts) *Loss {
	kept := r.next.LSN
	switch {
	case old.running():
		return &Loss{Why: old.Name + " still writes", From: kept, To: old.LSN, Bytes: behind(kept, old.LSN)}
	case old.processAlive():
		return &Loss{Why: old.Name + " still runs", From: kept}
	case old.Control == nil || old.DataDir == "":
		return &Loss{Why: "the WAL of " + old.Name + " cannot be read from here", From: kept}
	case old.Timeline != r.next.Timeline:
		return &Loss{Why: fmt.Sprintf("%s is on timeline %d, %s on %d", old.Name, old.Timeline, r.next.Name, r.next.Timeline), From: kept}
	}
	return lostWork(ctx, r.c.opt.FS, old, r.next.Replay, kept)
}

// measureLoss repeats the account once the fork is known exactly: it is where
// the new timeline began.
func (r *run) measureLoss(ctx context.Context) {
	old := find(r.all, r.report.Old)
	if old == nil || old.Control == nil || r.report.Loss == nil || !r.report.Loss.Known {
		return
	}
	fork, err := r.forkPoint()
	if err != nil {
		r.c.opt.Log.Debug("the fork is not known", "error", err)
		return
	}
	r.report.Loss = lostWork(ctx, r.c.opt.FS, old, fork, fork)
}

// forkPoint is where the newest timeline of the new primary began.
func (r *run) forkPoint() (wal.LSN, error) {
	control, err := volume.ReadControlFS(r.c.opt.FS, r.next.DataDir)
	if err != nil {
		return 0, err
	}
	h, err := readHistory(r.c.opt.FS, r.next.DataDir, max(control.Timeline(), r.report.Timeline))
	if err != nil || len(h.Entries) == 0 {
		return 0, fmt.Errorf("no switch in the history of %s: %w", r.next.Name, err)
	}
	return h.Entries[len(h.Entries)-1].Switch, nil
}
