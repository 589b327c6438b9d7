package replication_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/internal/replication"
	"tidemark/pkg/volume"
)

func seed(t *testing.T, o replication.SeedOptions) replication.SeedResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*pgtest.Patience)
	defer cancel()
	r, err := replication.Seed(ctx, o)
	if err != nil {
		t.Fatalf("%v\nhint: %s", err, exit.HintOf(err))
	}
	return r
}

// churn is DDL that goes on while files are copied.
var churn = []string{
	"CREATE TABLE ddl AS SELECT generate_series(1, 2000) AS i", "CREATE INDEX ON ddl (i)", "VACUUM FULL ddl", "TRUNCATE ddl", "INSERT INTO ddl VALUES (1)", "DROP TABLE ddl",
	"CREATE TABLE IF NOT EXISTS kept (i int)", "INSERT INTO kept SELECT generate_series(1, 500)", "CREATE UNLOGGED TABLE IF NOT EXISTS u (i int)", "DELETE FROM kept WHERE i < 100", "VACUUM kept",
}

// sameAs compares a standby with its primary: contents, then every page.
func sameAs(t *testing.T, standby, primary *pgtest.Node) {
	t.Helper()
	standby.WaitFor(primary)
	if diff := cmp.Diff(primary.Digest(), standby.Digest()); diff != "" {
		t.Errorf("the standby differs from the primary:\n%s", diff)
	}
	if amcheck := pgtest.Tool(t, 15, "pg_amcheck"); standby.Major >= 14 {
		if out, err := exec.Command(amcheck, "--all", "--install-missing", "-h", primary.SocketDir, "-p", strings.TrimSpace(primary.SQL("SHOW port")), "-U", "postgres").CombinedOutput(); err != nil {
			t.Logf("pg_amcheck on the primary: %v\n%s", err, out)
		}
		standby.WaitFor(primary)
		if out, err := exec.Command(amcheck, "--all", "-h", standby.SocketDir, "-p", strings.TrimSpace(standby.SQL("SHOW port")), "-U", "postgres").CombinedOutput(); err != nil {
			t.Errorf("pg_amcheck on the standby: %v\n%s", err, out)
		}
	}
	standby.Stop()
	if checksums := pgtest.Tool(t, standby.Major, "pg_checksums"); standby.Major == 15 {
		if out, err := exec.Command(checksums, "--check", "-D", standby.Dir).CombinedOutput(); err != nil {
			t.Errorf("pg_checksums: %v\n%s", err, out)
		}
	}
}

func TestSeedUnderLoad(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		primary := pgtest.New(t, pgtest.Options{Major: major, Checksums: true})
		primary.PgbenchInit(2)
		space := primary.TempDir("space")
		primary.Exec("CREATE TABLESPACE fast LOCATION " + postgres.QuoteLiteral(space))
		primary.Exec("CREATE TABLE in_fast TABLESPACE fast AS SELECT generate_series(1, 10000) AS i")
		stopBench := primary.Pgbench()
		stopDDL := primary.Churn(churn...)
		stopDatabases := primary.Churn("CREATE DATABASE coming", "DROP DATABASE coming")
		dir := filepath.Join(primary.TempDir("seeded"), "data")
		other := filepath.Join(filepath.Dir(dir), "fast")
		r := seed(t, replication.SeedOptions{Dir: dir, ConnInfo: primary.ConnInfo(), Slot: "one", Tablespaces: map[string]string{space: other}})
		t.Logf("%+v; %d rounds of DDL, %d databases", r, stopDDL(), stopDatabases())
		standby := pgtest.Attach(t, "standby", dir)
		standby.Start()
		stopBench()
		primary.Exec("CREATE DATABASE after")
		primary.ExecIn("after", "CREATE TABLE t AS SELECT generate_series(1, 100) AS i")
		standby.WaitFor(primary)
		status, err := replication.Start(t.Context(), replication.StandbyOptions{Dir: dir, ConnInfo: standby.ConnInfo()})
		if err != nil {
			t.Fatal(err)
		}
		if !status.Receiving || status.Slot == nil || !status.Slot.Active || status.Source != replication.FromStream {
			t.Errorf("status %+v", status)
		}
		sameAs(t, standby, primary)
	})
}

func TestSeedFromStandby(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		primary := pgtest.New(t, pgtest.Options{Major: major, Checksums: true})
		primary.PgbenchInit(1)
		first := primary.Standby(pgtest.StandbyOptions{})
		stop := primary.Pgbench()
		ddl := primary.Churn(churn...)
		dir := filepath.Join(primary.TempDir("seeded"), "data")
		seed(t, replication.SeedOptions{Dir: dir, ConnInfo: first.ConnInfo()})
		ddl()
		stop()
		second := pgtest.Attach(t, "second", dir)
		second.Start()
		sameAs(t, second, primary)
	})
}

// TestSeedKilled kills the seed each time it has made some progress, and its
// source once, until it gets through.
func TestSeedKilled(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		primary := pgtest.New(t, pgtest.Options{Major: major, Checksums: true})
		primary.PgbenchInit(5)
		stopBench := primary.Pgbench("-R", "200")
		dir := filepath.Join(primary.TempDir("seeded"), "data")
		var done int64
		kills, out := 0, ""
		for ended := false; !ended; {
			cmd := exec.Command(pgtest.Bin("dbrepl"), "seed", "-D", dir, "-d", primary.ConnInfo(), "-j", "1", "-v")
			var text strings.Builder
			cmd.Stdout, cmd.Stderr = &text, &text
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			finished := make(chan error, 1)
			go func() { finished <- cmd.Wait() }()
			if ended = awaitProgress(t, dir, &done, finished); ended {
				out = text.String()
				break
			}
			cmd.Process.Kill()
			<-finished
			if kills++; kills == 2 {
				primary.Kill()
				primary.Start()
				stopBench()
				stopBench = primary.Pgbench("-R", "200")
			}
			half := &postgres.Server{DataDir: dir, Bin: primary.Server.Bin, LogFile: filepath.Join(filepath.Dir(dir), "half.log")}
			if err := half.Start(t.Context()); err == nil {
				t.Fatal("a server starts on half a seed")
			}
		}
		t.Logf("killed %d times; then: %s", kills, out)
		if kills < 3 || !strings.Contains(out, "were there already") {
			t.Error("the last run did not resume")
		}
		standby := pgtest.Attach(t, "standby", dir)
		standby.Start()
		stopBench()
		sameAs(t, standby, primary)
	})
}

// awaitProgress waits until more is durable than before. It returns true when
// the command has ended, and fails the test when it ended with an error.
func awaitProgress(t *testing.T, dir string, done *int64, finished chan error) bool {
	t.Helper()
	for {
		select {
		case err := <-finished:
			if err != nil {
				t.Fatal(err)
			}
			return true
		case <-time.After(2 * time.Millisecond):
		}
		if p, err := blockcopy.Pending(volume.OS, dir); err == nil && p != nil && p.DoneBytes > *done {
			*done = p.DoneBytes
			return false
		}
	}
}

func TestSeedOfSource(t *testing.T) {
	primary := pgtest.New(t, pgtest.Options{TCP: true, HBA: []string{"host all,replication secret 127.0.0.1/32 scram-sha-256", "host all poor 127.0.0.1/32 trust", "host replication rich 127.0.0.1/32 reject"}})
	primary.Exec("SET password_encryption = 'scram-sha-256'; CREATE ROLE secret LOGIN REPLICATION PASSWORD 'xyzzy'; CREATE ROLE poor LOGIN; CREATE ROLE rich LOGIN SUPERUSER")
	dir := filepath.Join(primary.TempDir("seeded"), "data")
	for _, c := range []struct {
		name, user, want, hint string
		is                     error
	}{
		{"wrong password", "user=secret password=plugh", "password authentication failed", "pgpass", postgres.ErrPassword},
		{"no replication line", "user=rich", "pg_hba.conf", "add to pg_hba.conf", postgres.ErrNoHBA},
		{"may not replicate", "user=poor", "replication", "ALTER ROLE \"poor\" REPLICATION", postgres.ErrPrivilege},
		{"may not read files", "user=secret password=xyzzy", "may not read the server's files", "GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(text,boolean,boolean) TO \"secret\"", postgres.ErrPrivilege},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := replication.Seed(t.Context(), replication.SeedOptions{Dir: dir, ConnInfo: strings.Replace(primary.TCPConnInfo(), "user=postgres", c.user, 1)})
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) || !strings.Contains(exit.HintOf(err), c.hint) {
				t.Errorf("%v; hint: %s", err, exit.HintOf(err))
			}
			if err != nil && strings.Contains(err.Error()+exit.HintOf(err), "plugh") {
				t.Error("the password is in the message")
			}
			if _, err := os.Stat(dir); err == nil {
				t.Error("a directory was left behind")
			}
		})
	}
	if got := primary.SQL("SELECT count(*) FROM pg_replication_slots"); got != "0" {
		t.Errorf("%s slots were left behind", got)
	}
	// A role without rights to CHECKPOINT begins with the last checkpoint.
	primary.Exec(`GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(text, boolean, boolean), pg_catalog.pg_stat_file(text, boolean),
		pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean) TO secret; CREATE TABLE t AS SELECT generate_series(1, 100) AS i`)
	t.Setenv("PGPASSFILE", filepath.Join(primary.TempDir("pass"), "pgpass"))
	if err := os.WriteFile(os.Getenv("PGPASSFILE"), []byte("*:*:*:secret:xyzzy\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	seed(t, replication.SeedOptions{Dir: dir, ConnInfo: strings.Replace(primary.TCPConnInfo(), "user=postgres", "user=secret", 1)})
	conf, err := os.ReadFile(filepath.Join(dir, postgres.AutoConfFile))
	if err != nil || strings.Contains(string(conf), "xyzzy") || !strings.Contains(string(conf), "passfile") {
		t.Errorf("%v: %s", err, conf)
	}
	standby := pgtest.Attach(t, "standby", dir)
	standby.Start()
	standby.WaitFor(primary)
	if got := standby.SQL("SELECT count(*) FROM t"); got != "100" {
		t.Errorf("%s rows", got)
	}
}

func TestSeedIntoTheWrongPlace(t *testing.T) {
	primary := pgtest.New(t, pgtest.Options{})
	other := pgtest.New(t, pgtest.Options{Fresh: true})
	notes := primary.TempDir("notes")
	if err := os.WriteFile(filepath.Join(notes, "file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, dir, want string }{
		{"not empty", notes, "is not empty"},
		{"a running server", other.Dir, "a server is running"},
	} {
		_, err := replication.Seed(t.Context(), replication.SeedOptions{Dir: c.dir, ConnInfo: primary.ConnInfo()})
		if exit.CodeOf(err) != exit.Refused || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	dir := filepath.Join(primary.TempDir("dry"), "data")
	r := seed(t, replication.SeedOptions{Dir: dir, ConnInfo: primary.ConnInfo(), DryRun: true})
	if _, err := os.Stat(dir); err == nil || r.Plan == nil || r.Files < 500 {
		t.Errorf("dry run: %+v", r)
	}
	if got := primary.SQL("SELECT count(*) FROM pg_replication_slots"); got != "0" {
		t.Errorf("%s slots were made by a dry run", got)
	}
	primary.Exec("CREATE TABLESPACE fast LOCATION " + postgres.QuoteLiteral(primary.TempDir("space")))
	if _, err := replication.Seed(t.Context(), replication.SeedOptions{Dir: dir, ConnInfo: primary.ConnInfo()}); exit.CodeOf(err) != exit.Refused || !strings.Contains(exit.HintOf(err), "--tablespace") {
		t.Errorf("a tablespace over itself: %v", err)
	}
	if got := primary.SQL("SELECT count(*) FROM pg_replication_slots"); got != "0" {
		t.Errorf("%s slots were left by a refused seed", got)
	}
}

// TestSeedInterrupted ends the seed at the beginning of each of its phases.
func TestSeedInterrupted(t *testing.T) {
	primary := pgtest.New(t, pgtest.Options{Checksums: true})
	primary.Exec("CREATE TABLE t AS SELECT generate_series(1, 10000) AS i")
	o := replication.SeedOptions{Dir: filepath.Join(primary.TempDir("seeded"), "data"), ConnInfo: primary.ConnInfo()}
	for _, phase := range []string{"waiting for a checkpoint at the source", "listing the source's files", "making the directory", "copying", "finishing", "reading the received WAL"} {
		ctx, cancel := context.WithCancel(t.Context())
		o.Progress = &hook{phase: phase, do: cancel}
		_, err := replication.Seed(ctx, o)
		if err == nil {
			t.Fatalf("%s: not interrupted", phase)
		}
		if code := exit.CodeOf(err); code != exit.Interrupted && code != exit.Partial {
			t.Errorf("%s: code %d, %v", phase, code, err)
		}
		_, statErr := os.Stat(o.Dir)
		slots := primary.SQL("SELECT count(*) FROM pg_replication_slots")
		if (statErr == nil) != (slots == "1") {
			t.Errorf("%s: %s slots, directory: %v", phase, slots, statErr)
		}
	}
	o.Progress = nil
	if r := seed(t, o); !r.Resumed || r.Copied != 0 {
		t.Errorf("%+v", r)
	}
	standby := pgtest.Attach(t, "standby", o.Dir)
	standby.Start()
	sameAs(t, standby, primary)
}

// hook runs a function when a phase begins, once.
type hook struct {
	progress.Nop
	phase string
	do    func()
	once  sync.Once
	notes []string
}

func (h *hook) Phase(name string, _ int64, _ progress.Unit) {
	if name == h.phase {
		h.once.Do(h.do)
	}
}

func (h *hook) Note(format string, args ...any) {
	h.notes = append(h.notes, fmt.Sprintf(format, args...))
}

// TestSeedUnsafe does at the worst moment what replay alone would not mend.
func TestSeedUnsafe(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		strategy := ""
		if major >= 15 {
			strategy = " STRATEGY file_copy"
		}
		for _, c := range []struct {
			name     string
			do       func(*pgtest.Node)
			restarts int
			note     string
		}{
			{"a database copied from a changed one", func(n *pgtest.Node) {
				n.Exec("CREATE DATABASE copied TEMPLATE origin" + strategy)
				n.ExecIn("origin", "DELETE FROM t WHERE i <= 1000")
				n.Exec("CHECKPOINT")
			}, 1, "a database was created"},
			{"a database copied from a quiet one", func(n *pgtest.Node) {
				n.ExecIn("origin", "INSERT INTO t SELECT generate_series(1, 10000)")
				n.Exec("CREATE DATABASE copied TEMPLATE origin" + strategy)
				n.ExecIn("copied", "INSERT INTO t SELECT generate_series(1, 100)")
				n.Exec("CHECKPOINT")
			}, 0, ""},
			{"a database moved", func(n *pgtest.Node) {
				n.Exec("ALTER DATABASE origin SET TABLESPACE fast")
				n.ExecIn("origin", "INSERT INTO t SELECT generate_series(1, 10000)")
			}, 1, "a database was created"},
			{"a tablespace", func(n *pgtest.Node) {
				n.Exec("CREATE TABLESPACE later LOCATION " + postgres.QuoteLiteral(n.TempDir("later")))
			}, 1, "a tablespace was created"},
			{"full_page_writes off and on", func(n *pgtest.Node) {
				n.Exec("ALTER SYSTEM SET full_page_writes = off")
				n.Reload()
				n.WaitSQL("SHOW full_page_writes", "off")
				n.Exec("CHECKPOINT")
				n.Exec("ALTER SYSTEM SET full_page_writes = on")
				n.Reload()
				n.WaitSQL("SHOW full_page_writes", "on")
				n.Exec("CHECKPOINT")
			}, 1, "full_page_writes"},
		} {
			t.Run(c.name, func(t *testing.T) {
				primary := pgtest.New(t, pgtest.Options{Major: major, Checksums: true})
				fast := primary.TempDir("fast")
				primary.Exec("CREATE DATABASE origin")
				primary.Exec("CREATE TABLESPACE fast LOCATION " + postgres.QuoteLiteral(fast))
				primary.ExecIn("origin", "CREATE TABLE t AS SELECT generate_series(1, 10000) AS i")
				seeded := primary.TempDir("seeded")
				h := &hook{phase: "copying", do: func() { c.do(primary) }}
				spaces := map[string]string{fast: filepath.Join(seeded, "fast")}
				o := replication.SeedOptions{Dir: filepath.Join(seeded, "data"), ConnInfo: primary.ConnInfo(), Progress: h, Tablespaces: spaces}
				if c.name == "a tablespace" {
					later := filepath.Join(filepath.Dir(fast), "later")
					// Not known when the seed begins: it starts again, finds the directory in use, and asks for a place.
					_, err := replication.Seed(t.Context(), o)
					if exit.CodeOf(err) != exit.Refused || !strings.Contains(exit.HintOf(err), "--tablespace "+later) {
						t.Fatalf("%v", err)
					}
					spaces[later] = filepath.Join(seeded, "later")
					c.restarts = 0
				}
				r := seed(t, o)
				if r.Restarts != c.restarts || (c.note != "" && !strings.Contains(strings.Join(h.notes, "\n"), c.note)) {
					t.Errorf("started again %d times: %s", r.Restarts, strings.Join(h.notes, "\n"))
				}
				standby := pgtest.Attach(t, "standby", o.Dir)
				standby.Start()
				sameAs(t, standby, primary)
			})
		}
	})
}

// TestSeedLostSlot lets the source give up the slot between two runs.
func TestSeedLostSlot(t *testing.T) {
	primary := pgtest.New(t, pgtest.Options{Checksums: true, WALSegMB: 1, Config: []string{"max_slot_wal_keep_size = 4MB", "max_wal_size = 4MB", "min_wal_size = 2MB"}})
	primary.PgbenchInit(1)
	o := replication.SeedOptions{Dir: filepath.Join(primary.TempDir("seeded"), "data"), ConnInfo: primary.ConnInfo(), Slot: "lost"}
	ctx, cancel := context.WithCancel(t.Context())
	h := &hook{phase: "copying", do: cancel}
	o.Progress = h
	if _, err := replication.Seed(ctx, o); exit.CodeOf(err) != exit.Partial {
		t.Fatalf("%v", err)
	}
	primary.WaitSQL("SELECT active FROM pg_replication_slots", "f")
	for range 10 {
		primary.SwitchWAL()
	}
	primary.Exec("CHECKPOINT")
	primary.WaitSQL("SELECT wal_status FROM pg_replication_slots", "lost")
	r := seed(t, o)
	if r.Restarts != 1 || !strings.Contains(strings.Join(h.notes, "\n"), "max_slot_wal_keep_size") {
		t.Errorf("%+v: %s", r, h.notes)
	}
	standby := pgtest.Attach(t, "standby", o.Dir)
	standby.Start()
	sameAs(t, standby, primary)
}
