package cluster

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// StatusReport is how the cluster stands.
type StatusReport struct {
	Cluster  string    `json:"cluster,omitempty"`
	Time     time.Time `json:"time"`
	Primary  string    `json:"primary,omitempty"` // empty unless exactly one runs
	SystemID uint64    `json:"system_identifier,string,omitempty"`
	Nodes    []*Facts  `json:"nodes"`
	Problems []string  `json:"problems"`
}

// Status observes all nodes. It changes nothing and does not fail: what is
// wrong is in Problems.
func (c *Cluster) Status(ctx context.Context) (*StatusReport, error) {
	all := c.observe(ctx)
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	r := &StatusReport{Cluster: c.opt.Name, Time: time.Now().UTC().Truncate(time.Second), Nodes: all, Problems: problems(all, c.opt.MaxLag)}
	if p := primaries(all); len(p) == 1 {
		r.Primary, r.SystemID = p[0].Name, p[0].SystemID
	}
	return r, nil
}

// problems judges the facts. Each node gets its own; the list names the node
// in front of each.
func problems(all []*Facts, maxLag int64) []string {
	out := []string{}
	up := primaries(all)
	switch {
	case len(up) > 1:
		out = append(out, fmt.Sprintf("%d primaries run: %s; what each commits, the others lack (dbctl rejoin takes one back)", len(up), strings.Join(names(up), ", ")))
	case len(up) == 0 && len(all) > 1:
		out = append(out, "no primary runs")
	}
	if ids := systemIDs(all); len(ids) > 1 {
		out = append(out, "the nodes are of different clusters: "+strings.Join(ids, ", "))
	}
	for _, f := range all {
		f.Problems = f.judge(all, maxLag)
		for _, p := range f.Problems {
			out = append(out, f.Name+": "+p)
		}
	}
	return out
}

// systemIDs lists the system identifiers that occur, each with its nodes.
func systemIDs(all []*Facts) []string {
	var order []uint64
	by := map[uint64][]string{}
	for _, f := range all {
		if f.SystemID == 0 {
			continue
		}
		if by[f.SystemID] == nil {
			order = append(order, f.SystemID)
		}
		by[f.SystemID] = append(by[f.SystemID], f.Name)
	}
	var out []string
	for _, id := range order {
		out = append(out, fmt.Sprintf("%s has %d", strings.Join(by[id], " and "), id))
	}
	return out
}

// idleSlotLimit is how much WAL a slot that nobody uses may hold.
const idleSlotLimit = 1 << 30

// judge returns what is wrong with one node.
func (f *Facts) judge(all []*Facts, maxLag int64) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	switch f.State {
	case StateRunning:
	case StateStopped:
		say("stopped cleanly")
	case StateMissing:
		say("%s", f.Reason)
	default:
		say("%s: %s", f.State, firstLine(f.Reason))
	}
	if f.Tombstone != "" {
		say("%s", f.Tombstone)
	}
	if f.DataDirOK != nil {
		say("%v", f.DataDirOK)
	}
	if f.SQL && f.Role == RoleStandby {
		out = append(out, f.judgeStandby(all, maxLag)...)
	}
	if a := f.Archiver; a != nil && f.SQL && a.Failing && (f.Role == RolePrimary || a.Mode == "always") {
		say("archiving fails, last at %s", a.Failed)
	}
	for _, s := range f.Slots {
		switch {
		case s.WALStatus == "lost":
			say("slot %s has lost its WAL", s.Name)
		case s.WALStatus == "unreserved":
			say("slot %s is about to lose its WAL", s.Name)
		case !s.Active && s.Retained > idleSlotLimit:
			say("slot %s is not used and holds %d bytes of WAL", s.Name, s.Retained)
		}
	}
	return out
}

func (f *Facts) judgeStandby(all []*Facts, maxLag int64) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	switch {
	case f.Receiver != nil && f.Receiver.Status == receiverHidden:
		say("this role may not see its receiver (GRANT pg_monitor)")
	case !f.streaming():
		say("not streaming")
	}
	if f.ReplayPaused {
		say("replay is paused")
	}
	up := primaries(all)
	if len(up) != 1 || up[0].SystemID != f.SystemID {
		return out
	}
	p := up[0]
	switch {
	case f.Timeline > p.Timeline:
		say("on timeline %d, the primary %s is on %d: their histories have parted", f.Timeline, p.Name, p.Timeline)
	case f.Timeline < p.Timeline && !f.streaming():
		say("still on timeline %d, the primary %s is on %d", f.Timeline, p.Name, p.Timeline)
	}
	if maxLag > 0 && f.LagBytes != nil && *f.LagBytes > maxLag {
		say("%d bytes behind, over the limit of %d", *f.LagBytes, maxLag)
	}
	return out
}
