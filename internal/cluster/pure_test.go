package cluster

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

func TestServerArguments(t *testing.T) {
	line := `/usr/lib/postgresql/15/bin/postgres "-D" "/srv/my data" "-c" "config_file=/etc/pg/postgresql.conf" "-p" "5433"` + "\n"
	want := []string{"-c", "config_file=/etc/pg/postgresql.conf", "-p", "5433"}
	if got := withoutDataDir(splitOptions(line)); !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := splitOptions("postgres\n"); got != nil {
		t.Errorf("%q", got)
	}
}

func TestUpstreamConnInfo(t *testing.T) {
	primary := Node{Name: "bravo", Conninfo: "host=/run/b port=5433 user=postgres dbname=postgres application_name=x connect_timeout=3"}
	for _, c := range []struct{ name, worked, want string }{
		{"nothing known", "", "host=/run/b port=5433 user=postgres application_name=alpha"},
		{"credentials stay", "host=db1 port=5432 user=repl passfile=/p sslmode=verify-full application_name=dc1", "host=/run/b port=5433 user=repl passfile=/p application_name=dc1 sslmode=verify-full"},
		{"an address gives way to a host", "hostaddr=10.0.0.1 user=repl", "host=/run/b port=5433 user=repl application_name=alpha"},
		{"the default name is no name", "host=db1 user=repl application_name=walreceiver", "host=/run/b port=5433 user=repl application_name=alpha"},
	} {
		got, err := upstreamConnInfo(primary, c.worked, "alpha")
		if err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q", c.name, got, err, c.want)
		}
	}
}

func TestSlots(t *testing.T) {
	for name, want := range map[string]string{"alpha": "alpha", "Node-1.Berlin": "node_1_berlin", strings.Repeat("x", 80): strings.Repeat("x", 63)} {
		if got := SlotName(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
	standby := func(name, slot string) *Facts {
		return &Facts{Name: name, Role: RoleStandby, Settings: map[string]string{"primary_slot_name": slot}}
	}
	got := assignSlots([]*Facts{{Name: "alpha", Role: RolePrimary}, standby("bravo", "shared"), standby("charlie", "shared"), standby("delta", "alpha"), standby("echo", "")})
	want := slots{"alpha": "alpha", "bravo": "shared", "charlie": "charlie", "delta": "delta", "echo": "echo"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestRank(t *testing.T) {
	standby := func(name string, tli timeline.ID, lsn wal.LSN) *Facts {
		return &Facts{Name: name, Role: RoleStandby, SQL: true, SystemID: 7, Timeline: tli, LSN: lsn}
	}
	all := []*Facts{standby("a", 1, 500), standby("b", 2, 100), standby("c", 2, 300), standby("d", 2, 300), {Name: "down", Role: RoleStandby, SystemID: 7}, {Name: "other", Role: RoleStandby, SQL: true, SystemID: 8, Timeline: 9}}
	var order []string
	for _, c := range rank(all, 7) {
		order = append(order, c.Node)
	}
	if got := strings.Join(order, " "); got != "c d b a" {
		t.Errorf("order %s", got)
	}
	for name, ok := range map[string]bool{"c": true, "d": true, "b": false, "a": false} {
		var l checklist
		l.ahead(find(all, name), rank(all, 7), false)
		if (len(failed(l)) == 0) != ok {
			t.Errorf("%s: %+v", name, l)
		}
		l = nil
		l.ahead(find(all, name), rank(all, 7), true)
		if len(failed(l)) != 0 {
			t.Errorf("%s, forced: %+v", name, l)
		}
	}
}

func TestSignsOfLife(t *testing.T) {
	next := &Facts{Name: "next", Role: RoleStandby, SQL: true, State: StateRunning}
	streaming := &Facts{Name: "s", Role: RoleStandby, SQL: true, State: StateRunning, Upstream: "p", Receiver: &Receiver{Status: "streaming", SilentSecs: 0.2}}
	for _, c := range []struct {
		name string
		p    *Facts
		more []*Facts
		want int
	}{
		{"runs", &Facts{Name: "p", Role: RolePrimary, SQL: true, State: StateRunning}, nil, 1},
		{"hangs", &Facts{Name: "p", Role: RolePrimary, State: StateUnreachable, PID: 5, Reason: "no answer"}, nil, 1},
		{"cannot be seen", &Facts{Name: "p", Role: RoleUnknown, State: StateUnreachable, Reason: "no answer"}, nil, 1},
		{"crashed", &Facts{Name: "p", Role: RolePrimary, State: StateCrashed}, nil, 0},
		{"stopped", &Facts{Name: "p", Role: RolePrimary, State: StateStopped}, nil, 0},
		{"a standby that hangs", &Facts{Name: "p", Role: RoleStandby, State: StateUnreachable, PID: 5}, nil, 0},
		{"crashed, its last words on the way", &Facts{Name: "p", Role: RolePrimary, State: StateCrashed}, []*Facts{streaming}, 0},
		{"not configured, but somebody sends", &Facts{Name: "other", Role: RoleStandby, State: StateStopped}, []*Facts{streaming}, 1},
	} {
		all := append([]*Facts{c.p, next}, c.more...)
		if got := signsOfLife(all, next); len(got) != c.want {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}

func TestSynchronousNames(t *testing.T) {
	follower := []*Facts{{Name: "alpha", Role: RolePrimary}, {Name: "charlie", Role: RoleStandby, Settings: map[string]string{"primary_conninfo": "host=x application_name=dc2"}}}
	for names, want := range map[string]bool{"*": true, "alpha": true, "FIRST 1 (bravo, ALPHA)": true, `ANY 1 ("dc2")`: true, "charlie": false, "bravo": false} {
		if got := satisfiable(names, follower); got != want {
			t.Errorf("%s: %t", names, got)
		}
	}
}

func TestCheckSwitchover(t *testing.T) {
	settings := func(more ...string) map[string]string {
		m := map[string]string{"max_connections": "100", "max_replication_slots": "10", "max_wal_senders": "10", "wal_level": "replica", "synchronous_standby_names": ""}
		for i := 0; i < len(more); i += 2 {
			m[more[i]] = more[i+1]
		}
		return m
	}
	primary := func() *Facts {
		return &Facts{Name: "p", Role: RolePrimary, SQL: true, SystemID: 1, Timeline: 3, LSN: 1000, Settings: settings()}
	}
	standby := func() *Facts {
		return &Facts{Name: "c", Role: RoleStandby, SQL: true, SystemID: 1, Timeline: 3, Replay: 1000, Settings: settings(), Receiver: &Receiver{Status: "streaming", Timeline: 3}}
	}
	for _, c := range []struct {
		name   string
		change func(p, c *Facts)
		want   string // the failed check, empty for none
	}{
		{"all well", func(p, c *Facts) {}, ""},
		{"another cluster", func(p, c *Facts) { c.SystemID = 2 }, "system identifier"},
		{"other timeline", func(p, c *Facts) { c.Receiver.Timeline = 2 }, "timeline"},
		{"no receiver", func(p, c *Facts) { c.Receiver = nil }, "streaming"},
		{"a silent sender", func(p, c *Facts) { c.Receiver.SilentSecs = 100 }, "streaming"},
		{"behind", func(p, c *Facts) { p.LSN = 1 << 30 }, "lag"},
		{"delayed", func(p, c *Facts) { c.Settings["recovery_min_apply_delay"] = "60000" }, "replay delay"},
		{"too small", func(p, c *Facts) { p.Settings["max_connections"] = "50" }, "parameters"},
		{"minimal", func(p, c *Facts) { c.Settings["wal_level"] = "minimal" }, "parameters"},
		{"backlog", func(p, c *Facts) { p.Archiver = &Archiver{Mode: "on", Ready: 100} }, "archive"},
		{"archive fails", func(p, c *Facts) { p.Archiver = &Archiver{Mode: "on", Failing: true} }, "archive"},
		{"no alter system", func(p, c *Facts) { c.Settings["allow_alter_system"] = "off" }, "configuration"},
		{"a stranger's directory", func(p, c *Facts) { c.DataDirOK = errors.New("x") }, "data directory"},
	} {
		p, cand := primary(), standby()
		c.change(p, cand)
		var got []string
		for _, b := range failed(checkSwitchover(p, cand, []*Facts{p}, limits{DefaultMaxLag, DefaultMaxBacklog})) {
			got = append(got, b.Name)
			if b.Hint == "" || b.Detail == "" {
				t.Errorf("%s: %+v says not enough", c.name, b)
			}
		}
		if s := strings.Join(got, ", "); s != c.want {
			t.Errorf("%s: failed %q, want %q", c.name, s, c.want)
		}
	}
}

func TestSettle(t *testing.T) {
	control := func(s volume.State) *volume.Control { return &volume.Control{State: s} }
	for _, c := range []struct {
		name string
		f    Facts
		want State
	}{
		{"answers", Facts{SQL: true}, StateRunning},
		{"clean", Facts{Control: control(volume.StateShutdowned)}, StateStopped},
		{"clean standby", Facts{Control: control(volume.StateShutdownedRecovery)}, StateStopped},
		{"crashed", Facts{Control: control(volume.StateInProduction)}, StateCrashed},
		{"hangs", Facts{Control: control(volume.StateInProduction), PID: 9}, StateUnreachable},
		{"stops, and its socket is gone", Facts{State: StateStopping, Control: control(volume.StateShutdowned), PID: 9}, StateStopping},
		{"nothing known", Facts{}, StateUnreachable},
		{"missing", Facts{State: StateMissing}, StateMissing},
	} {
		f := c.f
		if f.State == "" {
			f.State = StateUnreachable
		}
		f.SQLError = errors.New("no answer")
		if f.settle(); f.State != c.want {
			t.Errorf("%s: %s, want %s", c.name, f.State, c.want)
		}
	}
}
