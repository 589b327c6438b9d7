// Package examples tests the playbooks as an operator would run them.
package examples

import (
	"context"
	_ "embed"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidemark/internal/pgtest"
)

//go:embed failover-playbook.sh
var playbook []byte

func TestMain(m *testing.M) {
	pgtest.Main(m, "dbbackup", "dbrecover", "dbrewind", "dbrepl", "dbctl", "../examples/ledger")
}

// TestFailoverPlaybook runs the demo and looks for its account at the end. The
// script itself stops where a step does not end as it should.
func TestFailoverPlaybook(t *testing.T) {
	for _, program := range []string{"bash", "psql", "awk"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("the playbook needs %s", program)
		}
	}
	pgbench := pgtest.Tool(t, 15, "pgbench")
	major := pgtest.Majors(t)[0]
	script := filepath.Join(t.TempDir(), "failover-playbook.sh")
	if err := os.WriteFile(script, playbook, 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", script)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	cmd.Env = append(os.Environ(),
		"PATH="+os.Getenv("PATH")+string(os.PathListSeparator)+filepath.Dir(pgbench),
		"TIDEMARK_DEMO_BIN="+pgtest.BinDir(),
		"TIDEMARK_DEMO_BINDIR="+filepath.Dir(pgtest.Tool(t, major, "initdb")),
		"TIDEMARK_DEMO_SCALE=5",
	)
	started := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s\n%s", time.Since(started).Round(time.Second), out)
	for _, want := range []string{"are equal", "What was done", "rewind bravo", "recovery to before the drop"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the playbook's output lacks %q", want)
		}
	}
}
