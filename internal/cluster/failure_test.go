package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
)

var errInjected = errors.New("injected")

// failAt makes the nth step of the next run fail.
func (tc *testCluster) failAt(n int) {
	count := 0
	tc.opt.BeforeStep = func(Step) error {
		count++
		if count-1 == n {
			return errInjected
		}
		return nil
	}
}

// TestSwitchoverFails lets every step fail in turn. Before the promotion the
// old primary must be back in place, behind it a second run must finish.
func TestSwitchoverFails(t *testing.T) {
	tc := newCluster(t, pgtest.Majors(t)[0], "bravo", "charlie")
	primary, candidate := "alpha", "bravo"
	for n := 0; ; n++ {
		tc.failAt(n)
		r, err := tc.switchover(candidate)
		tc.opt.BeforeStep = nil
		if err == nil {
			if n < 10 {
				t.Fatalf("only %d steps:\n%s", n, describe(r))
			}
			return
		}
		where := fmt.Sprintf("step %d", n)
		switch code := exit.CodeOf(err); {
		case code == exit.Failed && r.Outcome == OutcomeRolledBack:
			tc.wantPrimary(primary)
			if got := tc.nodes[candidate].SQL("SELECT count(*) FROM pg_replication_slots"); got != "0" {
				t.Fatalf("%s: %s slots are left on %s", where, got, candidate)
			}
		case code == exit.RoleIncomplete:
			if len(r.Remaining) == 0 {
				t.Fatalf("%s: nothing said to remain: %v", where, err)
			}
			r := tc.mustSwitchover(candidate)
			if r.Outcome != OutcomeDone && r.Outcome != OutcomeNothing {
				t.Fatalf("%s: the second run: %s", where, describe(r))
			}
			tc.wantPrimary(candidate)
			primary, candidate = candidate, primary
		default:
			t.Fatalf("%s: %v (code %d)\n%s", where, err, code, describe(r))
		}
	}
}

// TestSwitchoverInterrupted: a signal before the promotion takes everything
// back, one behind it leaves steps to the next run.
func TestSwitchoverInterrupted(t *testing.T) {
	tc := newCluster(t, pgtest.Majors(t)[0], "bravo", "charlie")
	interruptAt := func(a Action) (*Report, error) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		tc.opt.BeforeStep = func(s Step) error {
			if s.Action == a {
				cancel()
			}
			return nil
		}
		defer func() { tc.opt.BeforeStep = nil }()
		return tc.cluster().Switchover(ctx, SwitchoverOptions{To: "bravo"})
	}
	r, err := interruptAt(ActionProve)
	if exit.CodeOf(err) != exit.Interrupted || r.Outcome != OutcomeRolledBack {
		t.Fatalf("%v (code %d)\n%s", err, exit.CodeOf(err), describe(r))
	}
	tc.wantPrimary("alpha")
	r, err = interruptAt(ActionSettle)
	if exit.CodeOf(err) != exit.RoleIncomplete || len(r.Remaining) == 0 {
		t.Fatalf("%v (code %d)\n%s", err, exit.CodeOf(err), describe(r))
	}
	tc.mustSwitchover("bravo")
	tc.wantPrimary("bravo")
}

// TestSwitchoverRefused: nothing is changed, and the reason is named.
func TestSwitchoverRefused(t *testing.T) {
	tc := newCluster(t, pgtest.Majors(t)[0], "bravo", "charlie")
	alpha, bravo := tc.nodes["alpha"], tc.nodes["bravo"]
	for _, c := range []struct {
		name       string
		set, unset func()
		change     func(*Options)
		reason     string
	}{
		{name: "replay paused", set: func() { bravo.Exec("SELECT pg_wal_replay_pause()") }, unset: func() { bravo.Exec("SELECT pg_wal_replay_resume()") }, reason: "replay (bravo): paused"},
		{name: "lagging", set: func() {
			bravo.Exec("SELECT pg_wal_replay_pause()")
			alpha.Exec("INSERT INTO ledger SELECT -g FROM generate_series(1, 20000) g")
		}, unset: func() { bravo.Exec("SELECT pg_wal_replay_resume()"); bravo.WaitFor(alpha) }, change: func(o *Options) { o.MaxLag = 100 << 10 }, reason: "lag (bravo)"},
		{name: "parameters", set: func() { bravo.Configure("max_connections = 90"); bravo.Restart() },
			unset: func() { bravo.Configure("max_connections = 60"); bravo.Restart() }, reason: "max_connections is 60, less than 90 on bravo"},
		{name: "not streaming", set: func() { bravo.Exec("ALTER SYSTEM SET primary_conninfo = ''"); bravo.Reload(); noReceiver(bravo) },
			unset: func() { bravo.Exec("ALTER SYSTEM RESET primary_conninfo"); bravo.Reload() }, reason: "streaming (bravo)"},
		{name: "hba", set: func() { bravo.PrependHBA("local replication all reject"); bravo.Reload() },
			unset: func() { bravo.PrependHBA("local replication all trust"); bravo.Reload() }, reason: "admission (alpha)"},
		{name: "synchronous", set: func() { bravo.Exec("ALTER SYSTEM SET synchronous_standby_names = 'delta'"); bravo.Reload() },
			unset: func() { bravo.Exec("ALTER SYSTEM RESET synchronous_standby_names"); bravo.Reload() }, reason: "synchronous_standby_names"},
		{name: "no slots", set: func() { bravo.Configure("max_replication_slots = 1"); bravo.Restart() },
			unset: func() { bravo.Configure("max_replication_slots = 10"); bravo.Restart() }, reason: "slots (bravo): 1 free, 2 needed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			saved := tc.opt
			defer func() { tc.opt = saved }()
			c.set()
			if c.change != nil {
				c.change(&tc.opt)
			}
			var err error
			var r *Report
			// What was set may take a moment to be seen.
			if !pgtest.Wait(t, func() bool {
				r, err = tc.cluster().Switchover(t.Context(), SwitchoverOptions{To: "bravo", DryRun: true})
				return err != nil && strings.Contains(err.Error(), c.reason)
			}) {
				t.Fatalf("want %q in %v\n%s", c.reason, err, describe(r))
			}
			r, err = tc.switchover("bravo")
			if exit.CodeOf(err) != exit.Refused || r.Outcome != OutcomeRefused || exit.HintOf(err) == "" {
				t.Errorf("%v (code %d, hint %q)\n%s", err, exit.CodeOf(err), exit.HintOf(err), describe(r))
			}
			if got := alpha.SQL("SELECT pg_is_in_recovery()"); got != "f" {
				t.Errorf("alpha is no primary any more")
			}
			if got := bravo.SQL("SELECT count(*) FROM pg_replication_slots"); got != "0" {
				t.Errorf("%s slots on bravo", got)
			}
			c.unset()
			pgtest.Wait(t, func() bool {
				_, err = tc.cluster().Switchover(t.Context(), SwitchoverOptions{To: "bravo", DryRun: true})
				return err == nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

func noReceiver(n *pgtest.Node) { n.WaitSQL("SELECT count(*) FROM pg_stat_wal_receiver", "0") }

// TestSwitchoverStopHangs: a standby that does not answer holds the shutdown;
// its walsender is ended, and the switchover goes on.
func TestSwitchoverStopHangs(t *testing.T) {
	tc := newCluster(t, pgtest.Majors(t)[0], "bravo", "charlie")
	tc.opt.StopTimeout = 6 * time.Second
	tc.opt.FollowTimeout = 3 * time.Second
	tc.nodes["alpha"].Exec("ALTER SYSTEM SET wal_sender_timeout = 0")
	tc.nodes["alpha"].Reload()
	release := tc.freeze("charlie")
	r, err := tc.switchover("bravo")
	release()
	if r.WriteGap == nil {
		t.Fatalf("%v\n%s", err, describe(r))
	}
	t.Logf("gap %.3f s: %v", *r.WriteGap, err)
	pgtest.Wait(t, func() bool {
		r, err = tc.switchover("bravo")
		return err == nil && r.Outcome == OutcomeNothing
	})
	if err != nil {
		t.Fatal(err)
	}
	tc.wantPrimary("bravo")
}
