package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// A node joins its cluster again.
//
//	the node                                   what is done
//	-----------------------------------------  -----------------------------------
//	streams from the primary                   nothing
//	runs as a standby, its WAL is part of      slot, re-point, prove
//	  the primary's history
//	is stopped or crashed, its WAL is part     slot, standby settings, start, prove
//	  of the primary's history
//	has WAL of its own                         (stop,) slot, rewind, settings, start, prove
//	runs as a second primary                   the same, and only with --stop
//	is missing, or cannot be rewound           --reseed: the old directory is moved
//	                                           aside, copied anew, then as above

// RejoinOptions are what a rejoin is told.
type RejoinOptions struct {
	Node   string
	Stop   bool // stop the node where it runs as a second primary
	Reseed bool // copy the node anew instead of rewinding it
	DryRun bool
	Rewind Rewinder
	Seed   Seeder

	Confirm func(*Report) error // asked before something is taken back or copied anew; nil means yes
}

// Rejoin makes a node a streaming standby of the running primary. The report
// is never nil once the nodes are known.
func (c *Cluster) Rejoin(ctx context.Context, o RejoinOptions) (*Report, error) {
	start := time.Now()
	report := &Report{Operation: "rejoin", Cluster: c.opt.Name, Node: o.Node, Outcome: OutcomeFailed}
	if err := c.local(); err != nil {
		return report, err
	}
	if _, err := c.node(o.Node); err != nil {
		return report, err
	}
	c.opt.Progress.Phase("looking at the nodes", 0, 0)
	all, err := c.observeSettled(ctx)
	if err != nil {
		return report, err
	}
	r := &run{c: c, report: report, all: all, rejoin: o, old: find(all, o.Node)}
	if settled, err := r.settled(r.planRejoin(ctx), "the rejoin of "+o.Node, o.DryRun); settled {
		return report, err
	}
	if r.takesBack() {
		if err := confirm(o.Confirm, report); err != nil {
			return report, err
		}
	}
	defer func() { report.Took = seconds(time.Since(start)) }()
	return report, r.concludeRejoin(ctx, r.execute(ctx))
}

// takesBack reports whether the plan changes more than settings.
func (r *run) takesBack() bool {
	for _, s := range r.report.Steps {
		if s.Action == ActionRewind || s.Action == ActionReseed || s.Action == ActionStop {
			return true
		}
	}
	return false
}

func confirm(ask func(*Report) error, report *Report) error {
	if ask == nil {
		return nil
	}
	err := ask(report)
	if err != nil {
		report.Outcome = OutcomeRefused
	}
	return err
}

// concludeRejoin: every step of a rejoin may be repeated, so there is nothing
// to take back; the command is run again.
func (r *run) concludeRejoin(ctx context.Context, err error) error {
	if err == nil {
		r.report.Outcome = OutcomeDone
		return nil
	}
	r.report.Remaining = remaining(r.report.Steps)
	code := exit.CodeOf(err)
	for _, s := range r.report.Steps {
		if s.Done && s.Action != ActionSlot && code == exit.Failed {
			code = exit.Partial
		}
	}
	if ctx.Err() != nil {
		code = exit.Interrupted
	}
	if code == exit.Failed || code == exit.Refused {
		r.dropMade(context.WithoutCancel(ctx))
	}
	r.report.Outcome = ternary(code == exit.Partial, OutcomeIncomplete, OutcomeFailed)
	return exit.Wrap(err, code, exit.HintOf(err), "%s has not joined again", r.report.Node)
}

func (r *run) planRejoin(ctx context.Context) error {
	f := r.old
	up := othersOf(primaries(r.all), f)
	if len(up) != 1 {
		return exit.New(exit.Refused, "there must be exactly one primary to join; see dbctl status", "%s", ternary(len(up) == 0,
			"no other node runs as a primary", fmt.Sprintf("%d other primaries run", len(up))))
	}
	r.next = up[0]
	r.report.Timeline = r.next.Timeline
	r.c.askStopped(ctx, f)
	r.slots = slots{f.Name: r.freeSlot(f)}
	var l checklist
	if f.Control != nil || f.SQL {
		l.identity(r.next, f)
		l.directories([]*Facts{r.next, f})
		l.parameters(r.next, []*Facts{f})
	}
	l.writable(r.next, []*Facts{f})
	r.report.Checks = l
	if len(failed(l)) > 0 {
		return nil
	}
	if f.running() && f.Role == RoleStandby && f.Upstream == r.next.Name && f.streaming() && f.Timeline == r.next.Timeline {
		return nil
	}
	return r.planReturn(ctx, f)
}

// planReturn picks the row of the table above.
func (r *run) planReturn(ctx context.Context, f *Facts) error {
	if f.running() && f.Role == RolePrimary && !r.rejoin.Stop {
		return exit.New(exit.Refused, fmt.Sprintf("what it has that %s lacks will be taken back: look with dbrewind check, save rows if need be, then run again with --stop", r.next.Name),
			"%s runs as a primary beside %s", f.Name, r.next.Name)
	}
	if f.processAlive() && !f.SQL {
		return exit.New(exit.Refused, "wait until it has started, or stop it", "%s does not answer, but process %d holds its data directory: %s", f.Name, f.PID, firstLine(f.Reason))
	}
	switch way, why := r.wayBack(ctx, f); way {
	case wayReseed:
		if !r.rejoin.Reseed {
			return exit.New(exit.Refused, fmt.Sprintf("dbctl rejoin %s --reseed copies it anew from %s (what is there now is moved aside)", f.Name, r.next.Name), "%s cannot be brought back by itself: %s", f.Name, why)
		}
		r.planSteps(f, ActionReseed)
	case wayRewind:
		r.report.Notes = append(r.report.Notes, why)
		r.planSteps(f, ActionRewind)
	default:
		r.planSteps(f, "")
	}
	return nil
}

type way int

const (
	wayFollow way = iota
	wayRewind
	wayReseed
)

// wayBack decides how the node can come back, and says why.
func (r *run) wayBack(ctx context.Context, f *Facts) (way, string) {
	switch {
	case r.rejoin.Reseed:
		return wayReseed, "asked for"
	case f.Control == nil && !f.SQL:
		return wayReseed, firstLine(f.Reason)
	case f.TombstoneOf == "rewind":
		return wayRewind, "a rewind of it has not ended and goes on"
	case f.Tombstone != "":
		return wayReseed, f.Tombstone
	case !f.running() && f.HasSignal && fileExists(f.DataDir, volume.BackupLabelFile):
		// Freshly rewound, seeded or restored: recovery starts at the label, and
		// what pg_control points at need not be in pg_wal yet.
		return wayFollow, ""
	}
	end, own, err := r.endOf(ctx, f)
	if err != nil {
		return wayReseed, err.Error()
	}
	theirs, err := readHistory(r.c.opt.FS, r.next.DataDir, r.next.Timeline)
	if err != nil {
		return wayReseed, err.Error()
	}
	fork, err := timeline.Diverge(own, theirs)
	if err != nil {
		return wayReseed, err.Error()
	}
	if fork.LSN == 0 || end.LSN <= fork.LSN {
		if same, err := r.sameLog(ctx, f, theirs); err != nil || same {
			return wayFollow, ""
		}
		return wayRewind, fmt.Sprintf("%s and %s are both on timeline %d, but their WAL differs", f.Name, r.next.Name, end.Timeline)
	}
	if !f.processAlive() {
		r.report.Loss = lostWork(ctx, r.c.opt.FS, f, fork.LSN, fork.LSN)
	}
	return wayRewind, fmt.Sprintf("%s has WAL of its own: it goes to %s, and left the history of %s at %s", f.Name, end, r.next.Name, fork.LSN)
}

// endOf returns where the node's WAL ends and the history that it is on.
func (r *run) endOf(ctx context.Context, f *Facts) (Position, *timeline.History, error) {
	if f.running() {
		h, err := readHistory(r.c.opt.FS, f.DataDir, f.Timeline)
		return f.position(), h, err
	}
	return endOfNode(ctx, r.c.opt.FS, f)
}

// sameLog compares the record of the node's last checkpoint with what the
// primary has at that place: two nodes may be on one timeline and yet differ,
// when a standby was opened by removing its signal file. Where the primary has
// the segment no more there is nothing to compare.
func (r *run) sameLog(ctx context.Context, f *Facts, theirs *timeline.History) (bool, error) {
	own, err := readHistory(r.c.opt.FS, f.DataDir, f.Control.Timeline())
	if err != nil {
		return false, err
	}
	control, err := r.c.control(f.Node)
	if err != nil {
		return false, err
	}
	mine, err := readCheckpoint(ctx, control, f.DataDir, own)
	if err != nil {
		return false, err
	}
	other, err := readCheckpoint(ctx, control, r.next.DataDir, theirs)
	if errors.Is(err, wal.ErrNoSegment) {
		return false, err
	}
	return err == nil && mine == other, nil
}

func (r *run) planSteps(f *Facts, remedy Action) {
	alive := f.processAlive() || f.running()
	if alive && (remedy != "" || f.Role == RolePrimary) {
		r.add(Step{Action: ActionStop, Node: f.Name})
		alive = false
	}
	r.addSlots([]*Facts{f})
	if remedy != "" {
		r.add(Step{Action: remedy, Node: f.Name, Peer: r.next.Name})
	}
	r.add(Step{Action: ternary(alive, ActionRepoint, ActionJoin), Node: f.Name, Peer: r.next.Name})
	r.add(Step{Action: ActionVerify, Node: f.Name, Peer: r.next.Name})
	for _, name := range r.abandonedSlots(f) {
		r.add(Step{Action: ActionDropSlots, Node: f.Name, Detail: name})
	}
}

// freeSlot returns the slot that the node used, unless another node is on it.
func (r *run) freeSlot(f *Facts) string {
	name := slotOf(f)
	for n := 2; ; n++ {
		s := r.next.slot(name)
		mine := f.Receiver != nil && f.Receiver.Slot == name && f.Upstream == r.next.Name
		if s == nil || s.Type == "physical" && (!s.Active || mine) {
			return name
		}
		name = fmt.Sprintf("%.60s_%d", SlotName(f.Name), n)
	}
}

// askStopped reads the settings that matter from a node that does not run.
func (c *Cluster) askStopped(ctx context.Context, f *Facts) {
	if f.SQL || f.Control == nil || f.processAlive() {
		return
	}
	s, err := c.server(f.Node)
	if err != nil {
		return
	}
	f.Settings = map[string]string{}
	for _, name := range append([]string{"primary_conninfo", "primary_slot_name", "allow_alter_system"}, sizedLikePrimary...) {
		if name == "allow_alter_system" && f.Major < 17 {
			continue
		}
		if v, err := s.Setting(ctx, name); err == nil {
			f.Settings[name] = v
		}
	}
}

func othersOf(all []*Facts, not *Facts) []*Facts {
	var out []*Facts
	for _, f := range all {
		if f != not {
			out = append(out, f)
		}
	}
	return out
}

// stopNode stops the node that rejoins.
func (r *run) stopNode(ctx context.Context) error {
	s, err := r.c.server(r.old.Node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, r.c.opt.StopTimeout, fmt.Errorf("not within %s", r.c.opt.StopTimeout))
	defer cancel()
	return s.Stop(ctx, postgres.StopFast)
}

// takeBack rewinds the node. After a stop its end is known exactly, and it may
// turn out that it has nothing of its own.
func (r *run) takeBack(ctx context.Context, n Node) error {
	if r.rejoin.Rewind == nil {
		return exit.New(exit.Refused, "run dbrewind yourself, then dbctl rejoin again", "%s needs a rewind", n.Name)
	}
	f := r.c.observeNode(ctx, n)
	if f.Tombstone == "" {
		if way, _ := r.wayBack(ctx, f); way == wayFollow {
			return nil
		}
	}
	err := r.rejoin.Rewind(ctx, n, r.next.Node)
	if err != nil && exit.CodeOf(err) == exit.Refused {
		hint := strings.TrimSpace(exit.HintOf(err) + fmt.Sprintf("\ndbctl rejoin %s --reseed copies it anew", n.Name))
		return exit.Hint(err, hint)
	}
	return err
}

// copyAnew moves the old data directory aside, copies the primary, and puts
// the node's own configuration files into the copy.
func (r *run) copyAnew(ctx context.Context, n Node) error {
	if r.rejoin.Seed == nil {
		return exit.New(exit.Refused, "run dbrepl seed yourself, then dbctl rejoin again", "%s needs a fresh copy", n.Name)
	}
	aside, err := r.moveAside(n)
	if err != nil {
		return err
	}
	if err := r.rejoin.Seed(ctx, n, r.next.Node, r.slots[n.Name]); err != nil {
		return err
	}
	if aside == "" {
		return r.ownAddress(n)
	}
	r.report.Notes = append(r.report.Notes, fmt.Sprintf("the old data directory is kept as %s: remove it when it is not needed any more", aside))
	return keepConfiguration(r.c.opt.FS, aside, n.DataDir)
}

// ownAddress gives a copy the port and socket directory by which the
// configuration knows the node: what it copied are those of its source.
func (r *run) ownAddress(n Node) error {
	mine, err := postgres.ParseConnInfo(n.Conninfo)
	if err != nil {
		return err
	}
	theirs, err := postgres.ParseConnInfo(r.next.Conninfo)
	if err != nil {
		return err
	}
	var settings []postgres.Setting
	if port := orDefault(mine["port"], "5432"); port != orDefault(theirs["port"], "5432") {
		settings = append(settings, postgres.Setting{Name: "port", Value: port})
	}
	if host := mine["host"]; strings.HasPrefix(host, "/") && host != theirs["host"] {
		settings = append(settings, postgres.Setting{Name: "unix_socket_directories", Value: host})
	}
	r.report.Notes = append(r.report.Notes, fmt.Sprintf("the configuration files of %s are copies of %s's: look through them", n.Name, r.next.Name))
	if len(settings) == 0 {
		return nil
	}
	return postgres.EditAutoConf(r.c.opt.FS, n.DataDir, settings)
}

// moveAside renames the data directory, unless it is missing or an unfinished
// copy that the seeder goes on with.
func (r *run) moveAside(n Node) (string, error) {
	f := r.c.observeNode(context.Background(), n)
	if f.State == StateMissing || f.TombstoneOf == "seed" {
		return lastAside(n.DataDir), nil
	}
	aside := fmt.Sprintf("%s.%s.old", strings.TrimRight(n.DataDir, "/"), time.Now().UTC().Format("20060102T150405"))
	return aside, volume.RenameDurable(r.c.opt.FS, n.DataDir, aside)
}
