package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/internal/cli"
	"tidemark/internal/cluster"
	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/pkg/volume"
)

func TestMain(m *testing.M) { pgtest.Main(m, "dbctl", "dbbackup", "dbrecover") }

// pair is a primary alpha and standbys, with their tidemark.toml.
type pair struct {
	t      *testing.T
	config string
	nodes  map[string]*pgtest.Node
}

func newPair(t *testing.T, major int, hooks string, standbys ...string) *pair {
	t.Helper()
	alpha := pgtest.New(t, pgtest.Options{Name: "alpha", Major: major, Checksums: true, Config: []string{"wal_keep_size = 128MB", "wal_retrieve_retry_interval = 200ms"}})
	p := &pair{t: t, config: filepath.Join(t.TempDir(), "tidemark.toml"), nodes: map[string]*pgtest.Node{"alpha": alpha}}
	alpha.Exec("CREATE TABLE ledger (n int)")
	order := []*pgtest.Node{alpha}
	for _, name := range standbys {
		n := alpha.Standby(pgtest.StandbyOptions{Name: name})
		p.nodes[name] = n
		order = append(order, n)
		n.WaitSQL("SELECT status FROM pg_stat_wal_receiver", "streaming")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "[cluster]\nname = \"pair\"\n%s\n", hooks)
	for _, n := range order {
		fmt.Fprintf(&b, "[[node]]\nname = %q\nconninfo = \"host=%s port=%d user=postgres dbname=postgres\"\npgdata = %q\n", n.Name, n.SocketDir, n.Port, n.Dir)
	}
	if err := os.WriteFile(p.config, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *pair) run(args ...string) pgtest.Result {
	p.t.Helper()
	return pgtest.Run(p.t, "dbctl", append(args, "--config", p.config)...)
}

func (p *pair) want(code exit.Code, args ...string) pgtest.Result {
	p.t.Helper()
	r := p.run(args...)
	if r.Code != int(code) {
		p.t.Fatalf("dbctl %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), r.Code, code, r.Stdout, r.Stderr)
	}
	return r
}

// killed is the status of a process that SIGKILL ended.
const killed exit.Code = 128 + 9

// TestSwitchoverKilled kills the command itself, before and after the
// promotion. The same command must finish what it had begun.
func TestSwitchoverKilled(t *testing.T) {
	for _, hook := range []string{"before_promote", "after_promote"} {
		t.Run(hook, func(t *testing.T) {
			p := newPair(t, 0, fmt.Sprintf("[hooks]\n%s = \"kill -9 $PPID\"", hook), "bravo", "charlie")
			p.nodes["alpha"].Exec("INSERT INTO ledger VALUES (1)")
			p.want(killed, "switchover", "--to", "bravo")
			// The process may still be on its way out: what counts is its last record.
			if c, err := volume.ReadControl(p.nodes["alpha"].Dir); err != nil || !c.State.Clean() {
				t.Fatalf("alpha is not shut down (%v): the hook came too early", err)
			}
			without, err := os.ReadFile(p.config)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p.config, []byte(strings.Replace(string(without), "kill -9 $PPID", "true", 1)), 0o600); err != nil {
				t.Fatal(err)
			}
			p.want(exit.OK, "switchover", "--to", "bravo")
			p.want(exit.OK, "status")
			if got := p.nodes["bravo"].SQL("SELECT n FROM ledger"); got != "1" {
				t.Errorf("bravo has %q", got)
			}
			r := p.want(exit.OK, "switchover", "--to", "bravo", "--json")
			if !strings.Contains(r.Stdout, `"outcome": "nothing"`) {
				t.Errorf("a third run: %s", r.Stdout)
			}
		})
	}
}

// TestRejoin: an old primary comes back alone and accepts writes; it is taken
// back by a rewind, and once more by a fresh copy.
func TestRejoin(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		p := newPair(t, major, "", "bravo")
		alpha, bravo := p.nodes["alpha"], p.nodes["bravo"]
		bravo.WaitFor(alpha)
		alpha.Kill()
		if r := p.want(exit.Refused, "promote", "bravo"); !strings.Contains(r.Stderr, "--yes") {
			t.Errorf("nobody was asked: %s", r.Stderr)
		}
		p.want(exit.OK, "promote", "bravo", "--yes")
		bravo.Exec("INSERT INTO ledger VALUES (1)")
		alpha.Start()
		alpha.Exec("INSERT INTO ledger VALUES (-1)")
		p.want(exit.Problem, "status")
		p.want(exit.Refused, "rejoin", "alpha", "--yes")
		r := p.want(exit.OK, "rejoin", "alpha", "--stop", "--yes")
		if !strings.Contains(r.Stdout, "rewind alpha to bravo") || !strings.Contains(r.Stdout, "1 transaction is lost") {
			t.Errorf("%s", r.Stdout)
		}
		p.wantRows("alpha", "1")

		alpha.Kill()
		if err := os.Remove(filepath.Join(alpha.Dir, "global", "pg_control")); err != nil {
			t.Fatal(err)
		}
		p.want(exit.Refused, "rejoin", "alpha", "--yes")
		bravo.Exec("INSERT INTO ledger VALUES (2)")
		p.want(exit.OK, "rejoin", "alpha", "--reseed", "--yes")
		p.wantRows("alpha", "1\n2")
		p.want(exit.OK, "status")
	})
}

func (p *pair) wantRows(node, rows string) {
	p.t.Helper()
	p.nodes[node].WaitSQL("SELECT n FROM ledger ORDER BY n", rows)
}

// TestHookFails: what fences fails, so nothing is promoted; what moves the
// address fails, so the step remains.
func TestHookFails(t *testing.T) {
	p := newPair(t, 0, "[hooks]\nbefore_promote = \"echo no fence for $TIDEMARK_OLD_PRIMARY; exit 7\"", "bravo")
	r := p.want(exit.Failed, "switchover", "--to", "bravo")
	if !strings.Contains(r.Stderr, "no fence for alpha") || !strings.Contains(r.Stderr, "alpha is the primary as before") {
		t.Errorf("stderr: %s", r.Stderr)
	}
	p.nodes["alpha"].Exec("INSERT INTO ledger VALUES (1)")
	p.nodes["bravo"].WaitFor(p.nodes["alpha"])

	p = newPair(t, 0, "[hooks]\nafter_promote = \"exit 7\"", "bravo")
	r = p.want(exit.RoleIncomplete, "switchover", "--to", "bravo", "--json")
	var doc struct {
		Outcome   string   `json:"outcome"`
		Remaining []string `json:"remaining"`
		WriteGap  float64  `json:"write_gap_seconds"`
		Error     struct{ Code int }
	}
	if err := json.Unmarshal([]byte(r.Stdout), &doc); err != nil {
		t.Fatalf("%v in %s", err, r.Stdout)
	}
	if doc.Outcome != "incomplete" || len(doc.Remaining) != 1 || doc.WriteGap <= 0 || doc.Error.Code != 5 {
		t.Errorf("%+v", doc)
	}
	p.want(exit.OK, "status")
}

// TestBadInput: one clear error with a hint, and the documented exit code.
func TestBadInput(t *testing.T) {
	p := newPair(t, 0, "", "bravo")
	alpha := p.nodes["alpha"]
	alpha.Exec("CREATE ROLE guest LOGIN PASSWORD 'secret-word'")
	alpha.PrependHBA("local all guest scram-sha-256")
	alpha.Reload()
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "t.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	empty := t.TempDir()
	for _, c := range []struct {
		name string
		args []string
		code exit.Code
		want string
	}{
		{"unknown node", []string{"switchover", "--to", "zulu", "--config", p.config}, exit.Usage, `there is no node "zulu"`},
		{"no such file", []string{"status", "--config", empty + "/tidemark.toml"}, exit.Usage, "tidemark.toml"},
		{"unknown key", []string{"status", "--config", file("[[node]]\nname = \"a\"\nconninfo = \"port=1\"\npgdta = \"/x\"\n")}, exit.Usage, "pgdta"},
		{"no node", []string{"promote", "alpha", "--config", file("[cluster]\nname = \"x\"\n")}, exit.Usage, `there is no node "alpha"`},
		{"no node to show", []string{"status", "--config", file("[cluster]\nname = \"x\"\n")}, exit.Usage, "no node is known"},
		{"no data directory", []string{"promote", "a", "--config", file("[[node]]\nname = \"a\"\nconninfo = \"port=1\"\n")}, exit.Usage, "data directory of node a is not known"},
		{"other host", []string{"promote", "a", "--config", file("[[node]]\nname = \"a\"\nconninfo = \"port=1\"\npgdata = \"/x\"\nhost = \"db9\"\n")}, exit.Refused, "node a is on host db9"},
		{"unreachable", []string{"status", "-d", fmt.Sprintf("host=%s port=1 user=postgres", alpha.SocketDir)}, exit.Problem, "unreachable"},
		{"wrong password", []string{"status", "-d", fmt.Sprintf("host=%s port=%d user=guest password=wrong dbname=postgres", alpha.SocketDir, alpha.Port)}, exit.Problem, "password authentication failed"},
		{"no cluster", []string{"status", "-D", empty}, exit.Problem, "pg_control"},
		{"missing directory", []string{"status", "-D", empty + "/none"}, exit.Problem, "no data directory"},
		{"no lab", []string{"lab", "down", empty}, exit.Refused, "holds no lab"},
		{"lab not empty", []string{"lab", "up", filepath.Dir(p.config)}, exit.Refused, "is not empty"},
		{"too many nodes", []string{"lab", "up", empty + "/lab", "--nodes", "99"}, exit.Usage, "1 to 8 nodes"},
		{"not a standby", []string{"rejoin", "alpha", "--config", p.config}, exit.Refused, "no other node runs as a primary"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := pgtest.Run(t, "dbctl", c.args...)
			if r.Code != int(c.code) || !strings.Contains(r.Stdout+r.Stderr, c.want) {
				t.Errorf("exit code %d, want %d and %q\n%s%s", r.Code, c.code, c.want, r.Stdout, r.Stderr)
			}
			if strings.Contains(r.Stdout+r.Stderr, "password=wrong") {
				t.Errorf("the password is shown: %s%s", r.Stdout, r.Stderr)
			}
			if c.code != exit.Problem && !strings.Contains(r.Stderr, "hint:") {
				t.Errorf("no hint: %s", r.Stderr)
			}
		})
	}
	p.want(exit.OK, "status")
}

// TestStatusOfStopped shows what pg_control says of nodes that do not run.
func TestStatusOfStopped(t *testing.T) {
	p := newPair(t, 0, "", "bravo")
	p.nodes["bravo"].Stop()
	r := p.want(exit.Problem, "status", "--json")
	var doc struct {
		Primary string
		Nodes   []struct{ Name, Role, State string }
	}
	if err := json.Unmarshal([]byte(r.Stdout), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Primary != "alpha" || doc.Nodes[1].State != "stopped" || doc.Nodes[1].Role != "standby" {
		t.Errorf("%+v", doc)
	}
	p.nodes["alpha"].Kill()
	r = p.want(exit.Problem, "status")
	if !strings.Contains(r.Stdout, "crashed") || !strings.Contains(r.Stdout, "no primary runs") {
		t.Errorf("%s", r.Stdout)
	}
	r = pgtest.Run(t, "dbctl", "status", "-D", p.nodes["bravo"].Dir)
	if r.Code != int(exit.Problem) || !strings.Contains(r.Stdout, "stopped") {
		t.Errorf("%d %s%s", r.Code, r.Stdout, r.Stderr)
	}
}

// TestLab rehearses on a lab, and sees that it goes without a trace.
func TestLab(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		dir := filepath.Join(os.TempDir(), fmt.Sprintf("lab%d", major))
		t.Cleanup(func() { // the test's own context is over by then
			_ = exec.Command(pgtest.Bin("dbctl"), "lab", "down", dir, "--yes").Run()
			os.RemoveAll(dir)
		})
		pgtest.MustRun(t, "dbctl", "lab", "up", dir, "--major", fmt.Sprint(major))
		config := "--config=" + filepath.Join(dir, "tidemark.toml")
		pgtest.MustRun(t, "dbctl", "status", config)
		pgtest.MustRun(t, "dbctl", "switchover", "--to", "charlie", config)
		pgtest.MustRun(t, "dbctl", "status", config)
		if err := os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		pgtest.MustRun(t, "dbctl", "lab", "down", dir, "--yes")
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 || left[0].Name() != "mine" {
			t.Errorf("left: %v, %v", left, err)
		}
	})
}

// TestExamples: every verb shows how it is used.
func TestExamples(t *testing.T) {
	for _, verb := range [][]string{{}, {"status"}, {"switchover"}, {"promote"}, {"rejoin"}, {"lab", "up"}, {"lab", "down"}} {
		out := pgtest.MustRun(t, "dbctl", append(verb, "--help")...)
		if !strings.Contains(out, "Examples:\n  dbctl") {
			t.Errorf("dbctl %v --help has no examples:\n%s", verb, out)
		}
	}
}

// TestDefaults: the help texts say what the library does.
func TestDefaults(t *testing.T) {
	for _, d := range []time.Duration{cluster.DefaultStopTimeout, cluster.DefaultPromoteTimeout, cluster.DefaultFollowTimeout} {
		if d != time.Minute {
			t.Errorf("the help says 1m, the library has %s", d)
		}
	}
	out := pgtest.MustRun(t, "dbctl", "switchover", "--help")
	for _, want := range []string{"default " + cli.Bytes(cluster.DefaultMaxLag), fmt.Sprintf("default %d", cluster.DefaultMaxBacklog)} {
		if !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
			t.Errorf("the help does not say %q:\n%s", want, out)
		}
	}
}
