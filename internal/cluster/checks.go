package cluster

import (
	"fmt"
	"slices"
	"strings"

	"tidemark/internal/postgres"
)

// Result is what a check found.
type Result string

// The results.
const (
	Passed Result = "ok"
	Warned Result = "warning" // said, and no reason to refuse
	Failed Result = "failed"  // a reason to refuse
)

// Check is one condition of a role change.
type Check struct {
	Name   string `json:"name"`
	Node   string `json:"node"`
	Result Result `json:"result"`
	Detail string `json:"detail"`
	Hint   string `json:"hint,omitempty"`
}

// checklist collects checks.
type checklist []Check

func (l *checklist) add(name, node string, ok bool, detail, hint string) {
	c := Check{Name: name, Node: node, Result: Passed, Detail: detail}
	if !ok {
		c.Result, c.Hint = Failed, hint
	}
	*l = append(*l, c)
}

func (l *checklist) warn(name, node, detail string) {
	*l = append(*l, Check{Name: name, Node: node, Result: Warned, Detail: detail})
}

// failed returns the checks that failed.
func failed(checks []Check) []Check {
	var out []Check
	for _, c := range checks {
		if c.Result == Failed {
			out = append(out, c)
		}
	}
	return out
}

// limits are the operator's.
type limits struct {
	lag     int64
	backlog int
}

// silentLimit is after how many seconds without a word from the sender a
// receiver that says "streaming" is not believed. Senders speak at least every
// wal_sender_timeout / 2, by default 30 seconds, and a busy or idle primary
// far more often than that; the limit leaves room for the default time-out.
const silentLimit = 60

// checkSwitchover returns all checks between a running primary and a running
// candidate. followers are the nodes that will stream from the candidate, the
// old primary among them.
func checkSwitchover(p, c *Facts, followers []*Facts, lim limits) []Check {
	var l checklist
	l.identity(p, c)
	l.directories(append([]*Facts{p, c}, followers...))
	l.stream(p, c, lim)
	l.replay(c)
	l.capacity(c, followers)
	l.parameters(c, followers)
	l.archiver(p, lim)
	l.recoveryTargets(p)
	l.writable(c, followers)
	l.synchronous(p, c, followers)
	l.leftBehind(p, append([]*Facts{c}, followers...))
	return l
}

func (l *checklist) identity(p, c *Facts) {
	l.add("system identifier", c.Name, p.SystemID == c.SystemID, fmt.Sprintf("%d", c.SystemID),
		fmt.Sprintf("%s has %d: it is another cluster's node", p.Name, p.SystemID))
}

// directories: the server that answers must be the one that is configured.
func (l *checklist) directories(nodes []*Facts) {
	seen := map[*Facts]bool{}
	for _, f := range nodes {
		if f.DataDirOK != nil && !seen[f] {
			l.add("data directory", f.Name, false, f.DataDirOK.Error(), "correct conninfo or pgdata in tidemark.toml")
		}
		seen[f] = true
	}
}

// stream: only a standby that receives now will get the last record.
func (l *checklist) stream(p, c *Facts, lim limits) {
	if !c.streaming() {
		l.add("streaming", c.Name, false, "it receives nothing now", "look at primary_conninfo and the log of "+c.Name+"; dbctl rejoin "+c.Name+" can bring it back")
		return
	}
	r := c.Receiver
	l.add("streaming", c.Name, r.SilentSecs < silentLimit, fmt.Sprintf("from %s, last message %.1f s ago", orDefault(c.Upstream, "its upstream"), max(0, r.SilentSecs)),
		"its connection seems dead; see the log of "+c.Name)
	l.add("timeline", c.Name, r.Timeline == p.Timeline, fmt.Sprintf("%d", r.Timeline), fmt.Sprintf("the primary %s is on timeline %d; wait until the standby follows", p.Name, p.Timeline))
	lag := behind(c.Replay, p.LSN)
	l.add("lag", c.Name, lim.lag < 0 || lag <= lim.lag, fmt.Sprintf("%d bytes to replay", lag),
		fmt.Sprintf("the limit is %d bytes (--max-lag); writers would wait while it catches up", lim.lag))
}

func (l *checklist) replay(c *Facts) {
	l.add("replay", c.Name, !c.ReplayPaused, ternary(c.ReplayPaused, "paused", "not paused"), "resume it: SELECT pg_wal_replay_resume() on "+c.Name)
	delay := c.Settings["recovery_min_apply_delay"]
	if delay != "" && delay != "0" {
		l.add("replay delay", c.Name, false, "recovery_min_apply_delay is "+delay+" ms", "set it to 0 on "+c.Name+" and reload")
	}
}

// capacity: every follower needs a slot and a walsender on the candidate.
func (l *checklist) capacity(c *Facts, followers []*Facts) {
	need := 0
	for _, f := range followers {
		if c.slot(slotOf(f)) == nil {
			need++
		}
	}
	free := c.number("max_replication_slots") - len(c.Slots)
	l.add("slots", c.Name, free >= need, fmt.Sprintf("%d free, %d needed", free, need), "raise max_replication_slots on "+c.Name+" and restart it")
	free = c.number("max_wal_senders") - len(c.Senders)
	l.add("wal senders", c.Name, free >= len(followers), fmt.Sprintf("%d free, %d needed", free, len(followers)), "raise max_wal_senders on "+c.Name+" and restart it")
}

// sizedLikePrimary are the parameters that must be at least as large on a
// standby as on its primary: 14 and later pause recovery, 13 stops.
var sizedLikePrimary = []string{"max_connections", "max_prepared_transactions", "max_locks_per_transaction", "max_wal_senders", "max_worker_processes"}

func (l *checklist) parameters(c *Facts, followers []*Facts) {
	good := true
	for _, f := range followers {
		for _, name := range sizedLikePrimary {
			if f.Settings[name] != "" && f.number(name) < c.number(name) {
				good = false
				l.add("parameters", f.Name, false, fmt.Sprintf("%s is %d, less than %d on %s", name, f.number(name), c.number(name), c.Name),
					fmt.Sprintf("a standby needs at least its primary's value: raise it on %s and restart it", f.Name))
			}
		}
	}
	if level := c.Settings["wal_level"]; level == "minimal" {
		good = false
		l.add("parameters", c.Name, false, "wal_level is minimal", "set wal_level = replica on "+c.Name+" and restart it")
	}
	if good {
		l.add("parameters", c.Name, true, "every follower's are large enough", "")
	}
}

func (l *checklist) archiver(p *Facts, lim limits) {
	a := p.Archiver
	if a == nil || a.Mode == "off" {
		return
	}
	switch {
	case a.Failing:
		l.add("archive", p.Name, false, "archiving fails, last at "+a.Failed, "repair archive_command on "+p.Name+": WAL that only it has would miss in the archive")
	case a.Ready < 0:
		l.warn("archive", p.Name, "how many segments wait is not known")
	default:
		l.add("archive", p.Name, lim.backlog < 0 || a.Ready <= lim.backlog, fmt.Sprintf("%d segments wait", a.Ready),
			fmt.Sprintf("the limit is %d (--max-backlog): the stop waits until they are archived", lim.backlog))
	}
}

// recoveryTargets: the old primary will start with standby.signal, and then
// settings that are left from an old restore count again. Those in
// postgresql.auto.conf are removed on the way; others would stop its recovery.
func (l *checklist) recoveryTargets(p *Facts) {
	for _, name := range recoverySettings {
		v := p.Settings[name]
		if v == "" || name == "recovery_target_timeline" && v == "latest" {
			continue
		}
		l.warn("recovery settings", p.Name, fmt.Sprintf("%s = %s is left from a restore; it is removed from %s, remove it from postgresql.conf if it stands there", name, v, postgres.AutoConfFile))
	}
}

func (l *checklist) writable(c *Facts, followers []*Facts) {
	for _, f := range append([]*Facts{c}, followers...) {
		if f.SQL && f.Settings["allow_alter_system"] == "off" {
			l.add("configuration", f.Name, false, "allow_alter_system is off", "allow it on "+f.Name+" (and reload) for the time of the switchover")
		}
	}
}

// synchronous: on the new primary synchronous_standby_names is a decision, not
// a leftover. One that none of its followers satisfies would block every commit.
func (l *checklist) synchronous(p, c *Facts, followers []*Facts) {
	was, will := p.Settings["synchronous_standby_names"], c.Settings["synchronous_standby_names"]
	switch {
	case will == "" && was == "":
		return
	case will == "":
		l.warn("synchronous", c.Name, fmt.Sprintf("%s waits for %q, %s will wait for nobody: set synchronous_standby_names there if commits are to be synchronous", p.Name, was, c.Name))
	case !satisfiable(will, followers):
		l.add("synchronous", c.Name, false, fmt.Sprintf("synchronous_standby_names is %q, and no follower is called so (%s)", will, strings.Join(applications(followers), ", ")),
			"every commit on the new primary would wait for ever: change it on "+c.Name+" and reload")
	default:
		l.warn("synchronous", c.Name, fmt.Sprintf("commits will wait for %q (synchronous_standby_names of %s; %s has %q)", will, c.Name, p.Name, was))
	}
}

// satisfiable reports whether one of the followers is named.
func satisfiable(names string, followers []*Facts) bool {
	if strings.Contains(names, "*") {
		return len(followers) > 0
	}
	listed := strings.FieldsFunc(strings.ToLower(names), func(r rune) bool { return strings.ContainsRune(` ,()"`, r) })
	for _, app := range applications(followers) {
		if slices.Contains(listed, strings.ToLower(app)) {
			return true
		}
	}
	return false
}

func applications(followers []*Facts) []string {
	var out []string
	for _, f := range followers {
		out = append(out, applicationOf(f))
	}
	return out
}

// leftBehind says what will not come along.
func (l *checklist) leftBehind(p *Facts, nodes []*Facts) {
	var logical, foreign []string
	for _, s := range p.Slots {
		switch {
		case s.Type == "logical":
			logical = append(logical, s.Name)
		case !ownSlot(s.Name, nodes):
			foreign = append(foreign, s.Name)
		}
	}
	if len(logical) > 0 {
		l.warn("logical slots", p.Name, strings.Join(logical, ", ")+" do not follow by themselves; their subscribers must be moved")
	}
	if len(foreign) > 0 {
		l.warn("other slots", p.Name, strings.Join(foreign, ", ")+" belong to none of the nodes and stay on "+p.Name)
	}
	if p.Settings["wal_log_hints"] == "off" && p.Settings["data_checksums"] == "off" {
		l.warn("rewind", p.Name, "neither data checksums nor wal_log_hints: after a crash an old primary can not be rewound, only copied anew")
	}
}

func ownSlot(name string, nodes []*Facts) bool {
	for _, f := range nodes {
		if slotOf(f) == name || SlotName(f.Name) == name {
			return true
		}
	}
	return false
}

// slotOf returns the slot that a node uses, or will use.
func slotOf(f *Facts) string {
	if f.Role == RoleStandby && f.Settings["primary_slot_name"] != "" {
		return f.Settings["primary_slot_name"]
	}
	return SlotName(f.Name)
}

// applicationOf returns the name under which a node streams, which
// synchronous_standby_names refers to.
func applicationOf(f *Facts) string {
	info, err := postgres.ParseConnInfo(f.Settings["primary_conninfo"])
	if err == nil && f.Role == RoleStandby && info["application_name"] != "" {
		return info["application_name"]
	}
	return f.Name
}

func ternary[T any](cond bool, a, b T) T {
	if cond {
		return a
	}
	return b
}
