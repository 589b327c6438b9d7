package rewind

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/internal/postgres"
)

// lostRows is a pair of which the old one wrote rows after the fork.
func lostRows(t *testing.T) *pair {
	p := newPair(t, pgtest.Options{})
	p.new.Promote()
	p.old.Exec("INSERT INTO t SELECT g, 'lost ' || g FROM generate_series(30001, 31000) g")
	p.old.Exec("DELETE FROM t WHERE i <= 10")
	p.old.Stop()
	return p
}

// TestRescueKilled kills a rescue with SIGKILL in the middle: the target is as
// it was, the server that read its blocks dies with it, and the same command
// clears away what is left and saves every row.
func TestRescueKilled(t *testing.T) {
	p := lostRows(t)
	before := tree(t, p.old.Dir)
	out := filepath.Join(p.old.TempDir("rescued"), "out")
	args := []string{"rescue", "-D", p.old.Dir, "--source-server", p.new.ConnInfo(), "--out", out}
	sockets := filepath.Join(p.old.TempDir("tmp"))
	t.Setenv("TMPDIR", sockets)
	killed := 0
	for _, sign := range []string{rescueMarker, "server.tmp/global/pg_control", "server.tmp/postmaster.pid", "postgres"} {
		cmd := exec.Command(pgtest.Bin("dbrewind"), args...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		pgtest.Wait(t, func() bool {
			_, err := os.Stat(filepath.Join(out, sign))
			return err == nil || len(done) > 0
		})
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond) // somewhere in that stage
		if err := cmd.Process.Kill(); err != nil {
			t.Log(err)
		}
		<-done
		sameTree(t, before, p.old.Dir)
		if _, err := os.Stat(filepath.Join(out, rescueMarker)); err != nil {
			t.Logf("%s: it was killed after its end", sign)
			if err := os.RemoveAll(out); err != nil {
				t.Fatal(err)
			}
			continue
		}
		killed++
		if _, err := os.Stat(filepath.Join(out, rescueSummary)); err == nil {
			t.Errorf("%s: it is marked as complete and as incomplete", sign)
		}
		scratch := filepath.Join(out, "server.tmp")
		if !pgtest.Wait(t, func() bool { up, err := postgres.IsRunning(scratch); return err != nil || !up }) {
			t.Errorf("%s: a server lives on", sign)
		}
	}
	if killed == 0 {
		t.Error("it was never killed in the middle")
	}
	if r := pgtest.Run(t, "dbrewind", args...); r.Code != int(exit.Problem) && r.Code != 0 {
		t.Fatalf("%+v", r)
	}
	sameTree(t, before, p.old.Dir)
	for name, want := range map[string]int{"inserted": 1000, "deleted": 10} {
		data, err := os.ReadFile(filepath.Join(out, rescuePath("postgres", "public", "t", name)))
		if n := bytes.Count(data, []byte("\n")); err != nil || n != want {
			t.Errorf("%s: %d rows, %v", name, n, err)
		}
	}
	for _, left := range []string{filepath.Join(out, "server.tmp"), filepath.Join(out, rescueMarker)} {
		if _, err := os.Stat(left); err == nil {
			t.Errorf("%s is left", left)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(sockets, scratchSocket+"*")); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
}

// TestRescueNeedsSpace: where what is to be copied does not fit, nothing is.
func TestRescueNeedsSpace(t *testing.T) {
	p := lostRows(t)
	before := tree(t, p.old.Dir)
	o := p.options()
	var asked string
	o.free = func(dir string) (int64, error) { asked = dir; return 1 << 20, nil }
	out := filepath.Join(p.old.TempDir("rescued"), "out")
	_, err := Rescue(t.Context(), o, out)
	if exit.CodeOf(err) != exit.Failed || !strings.Contains(err.Error(), "are needed in") || !strings.Contains(exit.HintOf(err), "--out") || asked != out {
		t.Errorf("%v (%s)", err, asked)
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("the directory is left")
	}
	sameTree(t, before, p.old.Dir)
	o.free = func(string) (int64, error) { return 0, fmt.Errorf("no such file system") }
	if _, err := Rescue(t.Context(), o, out); err == nil || !strings.Contains(err.Error(), "no such file system") {
		t.Error(err)
	}
}

// TestRescueExtensionType: values of types that an extension brings, and that
// only its library can print.
func TestRescueExtensionType(t *testing.T) {
	p := newPair(t, pgtest.Options{})
	if p.old.SQL("SELECT count(*) FROM pg_available_extensions WHERE name = 'hstore'") == "0" {
		if p.old.Major == 15 {
			t.Fatal("PostgreSQL 15 is installed without hstore")
		}
		t.Skipf("this build of PostgreSQL %d has no contrib modules; 15 is asked for them", p.old.Major)
	}
	p.old.Exec("CREATE EXTENSION hstore; CREATE TABLE h (i int PRIMARY KEY, v hstore, many hstore[]); CREATE INDEX ON h USING gist (v)")
	p.new.WaitFor(p.old)
	p.new.Promote()
	p.old.Exec(`INSERT INTO h VALUES (1, 'a=>1, "b c"=>NULL', ARRAY['x=>y'::hstore, NULL]), (2, hstore('long', repeat('z', 100000)), NULL)`)
	p.old.Stop()
	out := filepath.Join(p.old.TempDir("rescued"), "out")
	if _, err := Rescue(t.Context(), p.options(), out); err != nil {
		t.Fatal(err)
	}
	if text, err := exec.Command(pgtest.Tool(t, p.old.Major, "psql"), "-X", "-q", "-f", filepath.Join(out, rescueLoader), p.new.ConnInfo("dbname=postgres")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	got := p.new.SQL(`SELECT string_agg(i || ' ' || coalesce(v->'a', '') || (v ? 'b c') || coalesce(length(v->'long'), 0) || coalesce(many[1]->'x', ''), ' ' ORDER BY i) FROM tidemark_rescue."public.h inserted"`)
	if got != "1 1true0y 2 false100000" {
		t.Error(got)
	}
}
