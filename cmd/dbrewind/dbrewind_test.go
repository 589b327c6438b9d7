package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/internal/cli"
	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/internal/rewind"
)

func TestMain(m *testing.M) { pgtest.Main(m, "dbrewind") }

// run calls the command in this process.
func run(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs strings.Builder
	code = cli.Run(t.Context(), "dbrewind", description, &commands{}, cli.Streams{In: strings.NewReader(""), Out: &out, Err: &errs}, args)
	return out.String(), errs.String(), code
}

func TestDropInOptions(t *testing.T) {
	for _, args := range [][]string{
		{"--target-pgdata=/nowhere", "--source-pgdata=/nowhere2", "--dry-run", "--no-sync", "--progress", "--debug", "--no-ensure-shutdown"},
		{"--target-pgdata", "/nowhere", "--source-server", "host=x", "--write-recovery-conf", "--restore-target-wal", "--config-file", "/etc/c"},
		{"-D", "/nowhere", "--source-server=host=x", "-R", "-c", "-n", "-N", "-P", "--sync-method=syncfs"},
	} {
		_, stderr, code := run(t, args...)
		if code != 1 || !strings.Contains(stderr, "is not a PostgreSQL data directory") {
			t.Errorf("%q: %d %s", args, code, stderr)
		}
	}
	for _, args := range [][]string{{"--nonsense"}, {"--source-pgdata=/x"}, {"-D", "/nowhere", "--sync-method=x"}} {
		if _, _, code := run(t, args...); code != 1 {
			t.Errorf("%q: %d", args, code)
		}
	}
	if _, _, code := run(t, "run", "--nonsense"); code != int(exit.Usage) {
		t.Error(code)
	}
	for _, args := range [][]string{{"-?"}, {"--help"}, {"run", "--help"}, {"check", "--help"}, {"undo", "--help"}, {"-V"}, {"--version"}} {
		stdout, stderr, code := run(t, args...)
		if code != 0 || stdout == "" || stderr != "" {
			t.Errorf("%q: %d %q %q", args, code, stdout, stderr)
		}
		for line := range strings.Lines(stdout) {
			if len([]rune(line)) > 96 && !strings.HasPrefix(strings.TrimSpace(line), "dbrewind ") {
				t.Errorf("%q: a line of %d characters: %s", args, len(line), line)
			}
		}
	}
}

func TestUndoRefusals(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{{"undo", "-D", dir}, {"undo", "-D", dir, "--discard"}} {
		if _, stderr, code := run(t, args...); code != int(exit.Refused) || !strings.Contains(stderr, dir) {
			t.Errorf("%q: %d %s", args, code, stderr)
		}
	}
	if _, stderr, code := run(t, "undo", "-D", dir+"/none"); code != int(exit.Failed) {
		t.Errorf("%d %s", code, stderr)
	}
	if _, _, code := run(t, "undo"); code != int(exit.Usage) {
		t.Error(code)
	}
}

func TestCommandLineHidesPasswords(t *testing.T) {
	for _, args := range [][]string{
		{"dbrewind", "-D", "/my dir", "--source-server", "host=x password=secret"},
		{"dbrewind", "-D", "/my dir", "--source-server=postgresql://u:secret@x/"},
	} {
		got := commandLine(args)
		if strings.Contains(got, "secret") || !strings.Contains(got, "-D '/my dir'") {
			t.Error(got)
		}
	}
}

// TestOldPrimaryComesBack is the story of the announcement of pg_rewind: a
// primary and five standbys, one promoted, the old primary stopped, rewound,
// and followed, as do the other four. Its port and settings stay its own and its
// first start succeeds; there both went wrong.
func TestOldPrimaryComesBack(t *testing.T) {
	old := pgtest.New(t, pgtest.Options{Name: "old", Checksums: true, Config: []string{"wal_keep_size = 128MB"}})
	old.Exec("CREATE TABLE t (i int); INSERT INTO t VALUES (1), (2), (3)")
	one := old.Standby(pgtest.StandbyOptions{Name: "one"})
	others := make([]*pgtest.Node, 4)
	for i := range others {
		others[i] = old.Standby(pgtest.StandbyOptions{Name: fmt.Sprintf("standby%d", i+2)})
		others[i].WaitFor(old)
	}
	one.WaitFor(old)
	port := old.SQL("SHOW port")
	settings, err := os.ReadFile(filepath.Join(old.Dir, "postgresql.conf"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range others {
		n.Follow(one)
	}
	one.WaitSQL("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'", "4")
	one.Promote()
	old.Exec("INSERT INTO t VALUES (4)")
	old.Stop()

	check := pgtest.Run(t, "dbrewind", "check", "-D", old.Dir, "--source-server", one.ConnInfo(), "--json")
	var rep struct {
		rewind.Divergence
		Lost []rewind.LostTransaction `json:"lost_transactions"`
	}
	if err := json.Unmarshal([]byte(check.Stdout), &rep); err != nil || check.Code != int(exit.Problem) || len(rep.Lost) != 1 {
		t.Fatalf("%v %+v", err, check)
	}
	text := pgtest.Run(t, "dbrewind", "check", "-D", old.Dir, "--source-server", one.ConnInfo())
	for _, want := range []string{"Diverged", "A rewind loses 1 committed transaction", rep.Fork.LSN.String()} {
		if !strings.Contains(text.Stdout, want) {
			t.Errorf("no %q in\n%s", want, text.Stdout)
		}
	}
	dry := pgtest.MustRun(t, "dbrewind", "--target-pgdata="+old.Dir, "--source-server="+one.ConnInfo(), "--dry-run", "--json")
	var plan rewind.Result
	if err := json.Unmarshal([]byte(dry), &plan); err != nil || plan.Plan == nil || plan.Bytes == 0 {
		t.Fatal(err, dry)
	}
	t.Log(pgtest.MustRun(t, "dbrewind", "--target-pgdata", old.Dir, "--source-server", one.ConnInfo(), "-R"))
	old.Start() // at the first attempt
	if got := old.SQL("SHOW port"); got != port {
		t.Errorf("port %s, it was %s", got, port)
	}
	if now, err := os.ReadFile(filepath.Join(old.Dir, "postgresql.conf")); err != nil || string(now) != string(settings) {
		t.Error("its settings are no longer its own", err)
	}
	one.Exec("INSERT INTO t VALUES (5)")
	for _, n := range append(others, old) {
		n.WaitFor(one)
		if got := n.SQL("SELECT string_agg(i::text, ',' ORDER BY i) FROM t"); got != "1,2,3,5" {
			t.Errorf("%s has %s", n.Name, got)
		}
	}
	old.Stop()
	after := pgtest.Run(t, "dbrewind", "check", "-D", old.Dir, "--source-server", one.ConnInfo())
	if after.Code != 0 || !strings.Contains(after.Stdout, "No divergence") {
		t.Errorf("%+v", after)
	}
}
