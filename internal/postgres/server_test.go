package postgres_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/internal/postgres"
	"tidemark/pkg/volume"
)

func TestServer(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		n := pgtest.New(t, pgtest.Options{Major: major, NoStart: true})
		ctx, cancel := n.Context()
		defer cancel()
		s := n.Server
		if got, err := s.Setting(ctx, "cluster_name"); err != nil || got != n.Name {
			t.Errorf("cluster_name %q, %v", got, err)
		}
		if err := s.Reload(); !errors.Is(err, postgres.ErrNotRunning) {
			t.Errorf("reload of a stopped server: %v", err)
		}
		if err := s.Stop(ctx, postgres.StopFast); err != nil {
			t.Errorf("stop of a stopped server: %v", err)
		}
		n.AppendFile("postgresql.conf", "nonsense = 1\n")
		if err := s.Start(ctx); err == nil || !strings.Contains(exit.HintOf(err), `unrecognized configuration parameter "nonsense"`) {
			t.Errorf("%v; hint: %s", err, exit.HintOf(err))
		}
		conf := filepath.Join(n.Dir, "postgresql.conf")
		b, err := os.ReadFile(conf)
		if err != nil {
			t.Fatal(err)
		}
		elsewhere := filepath.Join(n.TempDir("etc"), "my.conf")
		if err := os.WriteFile(elsewhere, []byte(strings.Replace(string(b), "nonsense = 1\n", "work_mem = 7MB\n", 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		s.ConfigFile = elsewhere
		if err := s.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if err := s.Start(ctx); err != nil {
			t.Errorf("start of a running server: %v", err)
		}
		if got := n.SQL("SHOW work_mem"); got != "7MB" {
			t.Errorf("work_mem = %s", got)
		}
		st, err := s.Status()
		if err != nil || !st.Running || st.Port != n.Port || st.Phase != "ready" {
			t.Errorf("%+v, %v", st, err)
		}
		if conn, err := postgres.Connect(ctx, st.ConnInfo()+" user=postgres dbname=postgres"); err != nil {
			t.Error(err)
		} else {
			conn.Close(ctx)
		}
		n.Exec("CREATE TABLE t AS SELECT 1 AS i")
		n.Kill()
		// A crashed standby: the single-user run must not see its signal file.
		n.AppendFile("standby.signal", "")
		if err := s.Recover(ctx); err != nil {
			t.Fatalf("%v; hint: %s", err, exit.HintOf(err))
		}
		if c, err := volume.ReadControl(n.Dir); err != nil || c.State != volume.StateShutdowned {
			t.Errorf("after crash recovery: %v, %v", c.State, err)
		}
		if _, err := os.Stat(filepath.Join(n.Dir, "standby.signal")); err != nil {
			t.Error("standby.signal was not put back")
		}
	})
}

func TestStartIsBounded(t *testing.T) {
	primary := pgtest.New(t, pgtest.Options{})
	standby := primary.Standby(pgtest.StandbyOptions{NoStart: true})
	primary.Stop() // the standby never becomes consistent
	standby.Server.StartTimeout = 300 * time.Millisecond
	if err := standby.Server.Start(t.Context()); !errors.Is(err, postgres.ErrNotReady) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
	defer cancel()
	if err := standby.Server.Stop(ctx, postgres.StopFast); err != nil {
		t.Error(err)
	}
}

func TestConnectErrors(t *testing.T) {
	n := pgtest.New(t, pgtest.Options{HBA: []string{"local all locked scram-sha-256", "local all nobody reject"}})
	n.Exec("SET password_encryption = 'scram-sha-256'; CREATE ROLE locked LOGIN PASSWORD 'right'; CREATE ROLE nobody LOGIN; CREATE ROLE simple LOGIN")
	for _, c := range []struct {
		name, conninfo string
		is             error
	}{
		{"nobody listens", "host=" + n.SocketDir + " port=1", postgres.ErrUnreachable},
		{"wrong password", n.ConnInfo("user=locked", "password=wr0ng"), postgres.ErrPassword},
		{"no line", n.ConnInfo("user=nobody"), postgres.ErrNoHBA},
		{"no such role", n.ConnInfo("user=missing"), postgres.ErrPassword},
		{"no such database", n.ConnInfo("dbname=missing"), postgres.ErrUnreachable},
	} {
		_, err := postgres.Connect(t.Context(), c.conninfo)
		if !errors.Is(err, c.is) || exit.HintOf(err) == "" {
			t.Errorf("%s: %v; hint: %s", c.name, err, exit.HintOf(err))
		}
		if err != nil && strings.Contains(err.Error()+exit.HintOf(err), "wr0ng") {
			t.Errorf("%s: the password is printed: %v", c.name, err)
		}
	}
	conn, err := postgres.Connect(t.Context(), n.ConnInfo("user=simple", "keepalives_idle=5", "gssencmode=prefer", "fallback_application_name=fall"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var app, commit, path string
	if err := postgres.Query(t.Context(), conn, "SELECT current_setting('application_name'), current_setting('synchronous_commit'), current_setting('search_path')", nil, &app, &commit, &path); err != nil {
		t.Fatal(err)
	}
	if app != "fall" || commit != "local" || path != "pg_catalog" {
		t.Errorf("%s %s %s", app, commit, path)
	}
	if err := postgres.Exec(t.Context(), conn, "CHECKPOINT"); !errors.Is(err, postgres.ErrPrivilege) {
		t.Errorf("a checkpoint by a simple role: %v", err)
	}
}

func TestService(t *testing.T) {
	n := pgtest.New(t, pgtest.Options{})
	file := filepath.Join(n.TempDir("svc"), "pg_service.conf")
	if err := os.WriteFile(file, []byte("[mine]\nhost="+n.SocketDir+"\nuser=postgres\ndbname=postgres\nport="+strings.TrimSpace(n.SQL("SHOW port"))+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PGSERVICEFILE", file)
	t.Setenv("PGSERVICE", "mine")
	conn, err := postgres.Connect(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	conn.Close(t.Context())
}
