package cluster

import (
	"context"
	"strings"
	"testing"

	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/internal/postgres"
)

func (tc *testCluster) promote(o PromoteOptions) (*Report, error) {
	return tc.cluster().Promote(tc.t.Context(), o)
}

func (tc *testCluster) rejoin(o RejoinOptions) (*Report, error) {
	return tc.cluster().Rejoin(tc.t.Context(), o)
}

// TestFailover: refused while the primary lives, refused for the standby that
// has less, done for the better one; the sibling follows, the loss is named to
// the transaction, and the old primary joins again.
func TestFailover(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		tc := newCluster(t, major, "bravo", "charlie")
		alpha, bravo, charlie := tc.nodes["alpha"], tc.nodes["bravo"], tc.nodes["charlie"]
		alpha.Exec("INSERT INTO ledger SELECT generate_series(1, 100)")
		bravo.WaitFor(alpha)

		r, err := tc.promote(PromoteOptions{Node: "bravo"})
		if exit.CodeOf(err) != exit.Refused || !strings.Contains(err.Error(), "alpha runs and is the primary") {
			t.Fatalf("beside a living primary: %v\n%s", err, describe(r))
		}

		// bravo stops receiving, charlie receives more, and alpha more still.
		bravo.Exec("ALTER SYSTEM SET primary_conninfo = ''")
		bravo.Reload()
		noReceiver(bravo)
		alpha.Exec("INSERT INTO ledger SELECT generate_series(101, 200)")
		charlie.WaitFor(alpha)
		charlie.Exec("ALTER SYSTEM SET primary_conninfo = ''")
		charlie.Reload()
		noReceiver(charlie)
		alpha.Exec("INSERT INTO ledger VALUES (201)")
		alpha.Exec("INSERT INTO ledger VALUES (202)")
		alpha.Kill()
		charlie.Restart() // its receive position is gone now, its replay position is not

		r, err = tc.promote(PromoteOptions{Node: "bravo"})
		if exit.CodeOf(err) != exit.Refused || !strings.Contains(exit.HintOf(err), "dbctl promote charlie") {
			t.Fatalf("for the standby that has less: %v; hint %q\n%s", err, exit.HintOf(err), describe(r))
		}
		r, err = tc.promote(PromoteOptions{Node: "charlie"})
		if err != nil {
			t.Fatalf("%v\n%s", err, describe(r))
		}
		if r.Loss == nil || !r.Loss.Known || r.Loss.Commits != 2 || len(r.Loss.Lost) != 2 {
			t.Errorf("loss %+v, want the two transactions that only alpha had", r.Loss)
		}
		if got := charlie.SQL("SELECT max(n) FROM ledger"); got != "200" {
			t.Errorf("charlie has rows up to %s", got)
		}
		charlie.Exec("INSERT INTO ledger VALUES (300)")
		bravo.WaitFor(charlie)

		// alpha's WAL goes beyond the fork: without a rewinder it cannot come back.
		r, err = tc.rejoin(RejoinOptions{Node: "alpha"})
		if exit.CodeOf(err) != exit.Refused || r.Loss == nil || r.Loss.Commits != 2 {
			t.Errorf("rejoin of a diverged node: %v, loss %+v", err, r.Loss)
		}
		if alpha.Running() {
			t.Error("alpha was started")
		}
	})
}

// TestFailoverCleanRejoin: what the old primary had, the new one has; it comes
// back without a rewind, as a crashed node and as a cleanly stopped one.
func TestFailoverCleanRejoin(t *testing.T) {
	for _, how := range []postgres.StopMode{postgres.StopImmediate, postgres.StopFast} {
		t.Run(how.String(), func(t *testing.T) {
			tc := newCluster(t, pgtest.Majors(t)[0], "bravo")
			alpha, bravo := tc.nodes["alpha"], tc.nodes["bravo"]
			alpha.Exec("INSERT INTO ledger SELECT generate_series(1, 100)")
			bravo.WaitFor(alpha)
			alpha.StopMode(how)
			noReceiver(bravo)
			if r, err := tc.promote(PromoteOptions{Node: "bravo"}); err != nil {
				t.Fatalf("%v\n%s", err, describe(r))
			}
			bravo.Exec("INSERT INTO ledger VALUES (101)")
			r, err := tc.rejoin(RejoinOptions{Node: "alpha"})
			if err != nil {
				t.Fatalf("%v\n%s", err, describe(r))
			}
			if r.Outcome != OutcomeDone || r.Loss != nil {
				t.Errorf("outcome %s, loss %+v", r.Outcome, r.Loss)
			}
			tc.wantPrimary("bravo")
			r, err = tc.rejoin(RejoinOptions{Node: "alpha"})
			if err != nil || r.Outcome != OutcomeNothing {
				t.Errorf("a second rejoin: %s, %v", r.Outcome, err)
			}
		})
	}
}

// TestSecondPrimary: a standby that somebody opened is seen, and taken back
// only when told to stop it.
func TestSecondPrimary(t *testing.T) {
	tc := newCluster(t, pgtest.Majors(t)[0], "bravo")
	bravo := tc.nodes["bravo"]
	bravo.Promote()
	bravo.Exec("INSERT INTO ledger VALUES (1)")

	s, err := tc.cluster().Status(t.Context())
	if err != nil || s.Primary != "" || len(s.Problems) == 0 || !strings.HasPrefix(s.Problems[0], "2 primaries run") {
		t.Fatalf("%v: %+v", err, s)
	}
	for name, try := range map[string]func() (*Report, error){
		"switchover": func() (*Report, error) { return tc.switchover("bravo") },
		"promote":    func() (*Report, error) { return tc.promote(PromoteOptions{Node: "bravo"}) },
		"rejoin":     func() (*Report, error) { return tc.rejoin(RejoinOptions{Node: "bravo"}) },
	} {
		if r, err := try(); exit.CodeOf(err) != exit.Refused || exit.HintOf(err) == "" {
			t.Errorf("%s beside a second primary: %v\n%s", name, err, describe(r))
		}
	}
	rewound := ""
	r, err := tc.rejoin(RejoinOptions{Node: "bravo", Stop: true, Rewind: func(_ context.Context, target, source Node) error {
		rewound = target.Name + " to " + source.Name
		return exit.New(exit.Refused, "", "not today")
	}})
	if rewound != "bravo to alpha" || err == nil || !strings.Contains(exit.HintOf(err), "--reseed") {
		t.Errorf("rewound %q, %v, hint %q\n%s", rewound, err, exit.HintOf(err), describe(r))
	}
}
