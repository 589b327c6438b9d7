package replication_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/internal/replication"
)

// TestVerbs walks one standby through all verbs of the command.
func TestVerbs(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		primary := pgtest.New(t, pgtest.Options{Major: major})
		primary.Exec("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i")
		standby := primary.Standby(pgtest.StandbyOptions{Name: "alpha"})
		standby.WaitFor(primary)

		var st replication.Status
		decode(t, pgtest.MustRun(t, "dbrepl", "status", "-D", standby.Dir, "--json"), &st)
		if st.Role != "standby" || !st.Receiving || st.Source != "stream" || st.Timeline != 1 || st.PrimaryLSN == 0 || st.Slot == nil || !st.Slot.Active || st.LagBytes == nil {
			t.Errorf("status %+v", st)
		}
		text := pgtest.MustRun(t, "dbrepl", "status", "-d", primary.ConnInfo())
		if !strings.Contains(text, "primary, running") || !strings.Contains(text, "alpha") || !strings.Contains(text, "s_alpha") {
			t.Errorf("status of the primary:\n%s", text)
		}

		out := pgtest.MustRun(t, "dbrepl", "stop", "-D", standby.Dir)
		if !strings.Contains(out, "stays up") {
			t.Error(out)
		}
		primary.Exec("INSERT INTO t SELECT generate_series(1, 1000)")
		if got := standby.SQL("SELECT count(*) FROM t"); got != "1000" {
			t.Errorf("%s rows after stop", got)
		}
		if out := pgtest.MustRun(t, "dbrepl", "stop", "-D", standby.Dir); !strings.Contains(out, "Nothing to do") {
			t.Error(out)
		}
		if out := pgtest.MustRun(t, "dbrepl", "status", "-D", standby.Dir); !strings.Contains(out, "off (dbrepl start turns it on)") || !strings.Contains(out, "pg_wal") {
			t.Error(out)
		}
		r := pgtest.Run(t, "dbrepl", "sync", "-D", standby.Dir)
		if r.Code != int(exit.Failed) || !strings.Contains(r.Stderr, "dbrepl start") {
			t.Errorf("sync of a stopped standby: %+v", r)
		}
		r = pgtest.Run(t, "dbrepl", "sync", "-D", standby.Dir, "--upstream", primary.ConnInfo(), "--timeout", "200ms", "--json")
		var sync replication.SyncResult
		decode(t, r.Stdout, &sync)
		if r.Code != int(exit.Problem) || sync.Reached || sync.Missing == 0 || sync.Receiving {
			t.Errorf("sync without a stream: %+v", r)
		}

		pgtest.MustRun(t, "dbrepl", "stop", "-D", standby.Dir, "--server")
		if standby.Running() {
			t.Error("stop --server left it running")
		}
		decode(t, pgtest.MustRun(t, "dbrepl", "status", "-D", standby.Dir, "--json"), &st)
		if st.Running || !st.ReceivingOff || st.Role != "standby" {
			t.Errorf("status %+v", st)
		}
		if out := pgtest.MustRun(t, "dbrepl", "start", "-D", standby.Dir); !strings.Contains(out, "streaming") {
			t.Error(out)
		}
		pgtest.MustRun(t, "dbrepl", "-S", "-D", standby.Dir)
		if got := standby.SQL("SELECT count(*) FROM t"); got != "2000" {
			t.Errorf("%s rows after sync", got)
		}
		if conf, _ := os.ReadFile(filepath.Join(standby.Dir, "tidemark", "receiving.json")); conf != nil {
			t.Error("the switch file is left")
		}

		standby.Exec("SELECT pg_wal_replay_pause()")
		primary.Exec("INSERT INTO t VALUES (1)")
		r = pgtest.Run(t, "dbrepl", "sync", "-D", standby.Dir, "--timeout", "300ms")
		if r.Code != int(exit.Problem) || !strings.Contains(r.Stderr, "pg_wal_replay_resume") {
			t.Errorf("sync of a paused standby: %+v", r)
		}
		standby.Exec("SELECT pg_wal_replay_resume()")
		pgtest.MustRun(t, "dbrepl", "sync", "-D", standby.Dir)

		for _, verb := range []string{"start", "stop", "sync"} {
			if r := pgtest.Run(t, "dbrepl", verb, "-D", primary.Dir); r.Code != int(exit.Refused) {
				t.Errorf("%s of a primary: %+v", verb, r)
			}
		}
	})
}

// TestStartWithoutPrimary says why nothing streams.
func TestStartWithoutPrimary(t *testing.T) {
	primary := pgtest.New(t, pgtest.Options{})
	standby := primary.Standby(pgtest.StandbyOptions{NoStart: true})
	primary.Stop()
	r := pgtest.Run(t, "dbrepl", "start", "-D", standby.Dir, "--timeout", "500ms")
	if r.Code != int(exit.Failed) || !strings.Contains(r.Stderr, "cannot connect to the server on socket") {
		t.Errorf("before it is consistent: %+v", r)
	}
	standby.Kill()
	primary.Start()
	standby.Start()
	standby.WaitFor(primary)
	standby.Stop()
	primary.Stop()
	r = pgtest.Run(t, "dbrepl", "start", "-D", standby.Dir, "--timeout", "500ms")
	if r.Code != int(exit.Failed) || !strings.Contains(r.Stderr, "cannot connect to the server on socket") || !strings.Contains(r.Stdout, "receiving") {
		t.Errorf("%+v", r)
	}
}

// TestSyncFollowsTimeline waits for a standby that has to switch timelines.
func TestSyncFollowsTimeline(t *testing.T) {
	primary := pgtest.New(t, pgtest.Options{})
	a := primary.Standby(pgtest.StandbyOptions{Name: "a"})
	b := primary.Standby(pgtest.StandbyOptions{Name: "b"})
	a.WaitFor(primary)
	b.WaitFor(primary)
	primary.Stop()
	a.Promote()
	b.Follow(a)
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
	defer cancel()
	a.Exec("CREATE TABLE new AS SELECT 1 AS i")
	r, err := replication.Sync(ctx, replication.SyncOptions{StandbyOptions: replication.StandbyOptions{ConnInfo: b.ConnInfo(), Timeout: time.Minute}})
	if err != nil || r.Timeline != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	if got := b.SQL("SELECT i FROM new"); got != "1" {
		t.Errorf("got %q", got)
	}
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}
