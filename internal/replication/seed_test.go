package replication_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/internal/postgres"
	"tidemark/internal/replication"
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

// TestSeedKilled kills the seed again and again until it gets through.
func TestSeedKilled(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		primary := pgtest.New(t, pgtest.Options{Major: major, Checksums: true})
		primary.PgbenchInit(4)
		stopBench := primary.Pgbench()
		dir := filepath.Join(primary.TempDir("seeded"), "data")
		kills, restarted := 0, false
		var out []byte
		for delay := 150 * time.Millisecond; ; delay += 150 * time.Millisecond {
			cmd := exec.Command(pgtest.Bin("dbrepl"), "seed", "-D", dir, "-d", primary.ConnInfo(), "-j", "1", "-v")
			done := time.AfterFunc(delay, func() { cmd.Process.Kill() })
			var err error
			out, err = cmd.CombinedOutput()
			done.Stop()
			if err == nil {
				break
			}
			var ended *exec.ExitError
			if !errors.As(err, &ended) || ended.ExitCode() != -1 {
				t.Fatalf("%v\n%s", err, out)
			}
			if kills++; kills == 6 && !restarted {
				restarted = true
				primary.Kill()
				primary.Start()
			}
			if _, err := os.Stat(filepath.Join(dir, "global", "pg_control")); err == nil {
				half := &postgres.Server{DataDir: dir, Bin: primary.Server.Bin, LogFile: filepath.Join(filepath.Dir(dir), "half.log")}
				if err := half.Start(t.Context()); err == nil {
					t.Fatal("a server starts on half a seed")
				}
			}
		}
		t.Logf("killed %d times; then: %s", kills, out)
		standby := pgtest.Attach(t, "standby", dir)
		standby.Start()
		stopBench()
		sameAs(t, standby, primary)
	})
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
		{"no replication line", "user=poor", "no pg_hba.conf entry", "pg_hba.conf", postgres.ErrNoHBA},
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
