package cluster

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidemark/internal/pgtest"
	"tidemark/internal/postgres"
)

// lab is a primary and its standbys for one test.
type testCluster struct {
	t     *testing.T
	nodes map[string]*pgtest.Node
	opt   Options
}

func newCluster(t *testing.T, major int, standbys ...string) *testCluster {
	t.Helper()
	return newClusterWith(t, major, []string{"wal_retrieve_retry_interval = 200ms"}, standbys...)
}

func newClusterWith(t *testing.T, major int, config []string, standbys ...string) *testCluster {
	t.Helper()
	p := pgtest.New(t, pgtest.Options{Name: "alpha", Major: major, Checksums: true, Config: append([]string{"wal_keep_size = 256MB"}, config...)})
	tc := &testCluster{t: t, nodes: map[string]*pgtest.Node{"alpha": p}, opt: Options{Name: "test", StopTimeout: 30 * time.Second, FollowTimeout: 30 * time.Second}}
	tc.add(p)
	for _, name := range standbys {
		s := p.Standby(pgtest.StandbyOptions{Name: name})
		tc.nodes[name] = s
		tc.add(s)
	}
	p.Exec("CREATE TABLE ledger (n bigint PRIMARY KEY)")
	for _, name := range standbys {
		tc.nodes[name].WaitFor(p)
		tc.nodes[name].WaitSQL("SELECT status FROM pg_stat_wal_receiver", "streaming")
	}
	return tc
}

func (tc *testCluster) add(n *pgtest.Node) {
	tc.opt.Nodes = append(tc.opt.Nodes, Node{Name: n.Name, DataDir: n.Dir,
		Conninfo: fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", n.SocketDir, n.Port)})
}

// cluster opens the cluster with the test's options as they are now.
func (tc *testCluster) cluster() *Cluster {
	tc.t.Helper()
	c, err := New(tc.opt)
	if err != nil {
		tc.t.Fatal(err)
	}
	return c
}

func (tc *testCluster) switchover(to string) (*Report, error) {
	return tc.cluster().Switchover(tc.t.Context(), SwitchoverOptions{To: to})
}

func (tc *testCluster) mustSwitchover(to string) *Report {
	tc.t.Helper()
	r, err := tc.switchover(to)
	if err != nil {
		tc.t.Fatalf("switchover to %s: %v\n%s", to, err, describe(r))
	}
	return r
}

// describe prints a report for a failed test.
func describe(r *Report) string {
	var b strings.Builder
	fmt.Fprintf(&b, "outcome %s\n", r.Outcome)
	for _, c := range r.Checks {
		fmt.Fprintf(&b, "check %s %s %s: %s\n", c.Name, c.Node, c.Result, c.Detail)
	}
	for _, s := range r.Steps {
		fmt.Fprintf(&b, "step %s: done %t, %.3f s %s\n", s, s.Done, s.Took, s.Error)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "note %s\n", n)
	}
	return b.String()
}

// wantPrimary makes sure that the node is the one primary, accepts writes, and
// that all others stream from it.
func (tc *testCluster) wantPrimary(name string) {
	tc.t.Helper()
	var r *StatusReport
	var err error
	// A standby whose primary was away tries again after wal_retrieve_retry_interval.
	if !pgtest.Wait(tc.t, func() bool {
		r, err = tc.cluster().Status(tc.t.Context())
		return err == nil && r.Primary == name && len(r.Problems) == 0
	}) {
		if err != nil {
			tc.t.Fatal(err)
		}
		tc.t.Fatalf("primary is %q, want %q; problems: %q", r.Primary, name, r.Problems)
	}
	p := tc.nodes[name]
	p.Exec("CREATE TABLE IF NOT EXISTS mark (x int); INSERT INTO mark VALUES (1)")
	for other, n := range tc.nodes {
		if other != name {
			n.WaitFor(p)
		}
	}
}

// writer inserts numbers one by one on whichever node accepts them and
// remembers those that were acknowledged.
type writer struct {
	acked []int
	stop  context.CancelFunc
	done  chan struct{}
}

func (tc *testCluster) startWriter() *writer {
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{stop: cancel, done: make(chan struct{})}
	go w.run(ctx, tc)
	tc.t.Cleanup(func() { cancel(); <-w.done })
	return w
}

func (w *writer) run(ctx context.Context, tc *testCluster) {
	defer close(w.done)
	for n := 0; ctx.Err() == nil; {
		for _, node := range tc.opt.Nodes {
			conn, err := postgres.Connect(ctx, node.Conninfo)
			if err != nil {
				continue
			}
			for ctx.Err() == nil {
				n++
				if _, err := conn.Exec(ctx, "INSERT INTO public.ledger VALUES ($1)", n); err != nil {
					break
				}
				w.acked = append(w.acked, n)
			}
			conn.Close(context.Background())
		}
	}
}

// finish stops the writer and counts the acknowledged rows that a node lacks.
func (w *writer) finish(n *pgtest.Node) (acked, missing int) {
	w.stop()
	<-w.done
	have := map[string]bool{}
	for _, row := range strings.Split(n.SQL("SELECT n FROM ledger"), "\n") {
		have[row] = true
	}
	for _, k := range w.acked {
		if !have[fmt.Sprint(k)] {
			missing++
		}
	}
	return len(w.acked), missing
}

// freeze stops the WAL receiver of a standby in its tracks, as a hung host would.
func (tc *testCluster) freeze(name string) (release func()) {
	tc.t.Helper()
	pid, err := strconv.Atoi(tc.nodes[name].SQL("SELECT pid FROM pg_stat_wal_receiver"))
	if err != nil {
		tc.t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		tc.t.Fatal(err)
	}
	tc.nodes["alpha"].Exec("INSERT INTO ledger SELECT -g FROM generate_series(100001, 100100) g")
	return func() { syscall.Kill(pid, syscall.SIGCONT) }
}
