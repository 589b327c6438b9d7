package postgres_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/internal/exit"
	"tidemark/internal/postgres"
)

func TestParseConnInfo(t *testing.T) {
	for _, c := range []struct {
		in   string
		want postgres.ConnInfo
	}{
		{"", postgres.ConnInfo{}},
		{"host=a port=5432", postgres.ConnInfo{"host": "a", "port": "5432"}},
		{" host = 'a b'  user=x\\ y\n", postgres.ConnInfo{"host": "a b", "user": "x y"}},
		{`password='it\'s \\' dbname=''`, postgres.ConnInfo{"password": `it's \`, "dbname": ""}},
		{"postgresql://", postgres.ConnInfo{}},
		{"postgres://u:p%40ss@h:5433/db?sslmode=require", postgres.ConnInfo{"user": "u", "password": "p@ss", "host": "h", "port": "5433", "dbname": "db", "sslmode": "require"}},
		{"postgresql://u@[::1]:5433", postgres.ConnInfo{"user": "u", "host": "::1", "port": "5433"}},
		{"postgresql://a:1,b:2/d", postgres.ConnInfo{"host": "a,b", "port": "1,2", "dbname": "d"}},
		{"postgresql:///d?host=/tmp/x&ssl=true", postgres.ConnInfo{"host": "/tmp/x", "dbname": "d", "sslmode": "require"}},
		{"postgresql://%2Ftmp%2Fx/d", postgres.ConnInfo{"host": "/tmp/x", "dbname": "d"}},
	} {
		got, err := postgres.ParseConnInfo(c.in)
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%q: %s", c.in, diff)
		}
		again, err := postgres.ParseConnInfo(got.String())
		if err != nil || !cmp.Equal(got, again) {
			t.Errorf("%q: written as %q, read as %v (%v)", c.in, got.String(), again, err)
		}
	}
	for _, bad := range []string{"host", "host=a b", "=x", "host='a", "postgresql://h/%zz", "postgresql://h?x"} {
		if _, err := postgres.ParseConnInfo(bad); exit.CodeOf(err) != exit.Usage || exit.HintOf(err) == "" {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestRedact(t *testing.T) {
	for _, in := range []string{"host=a password=s3cret sslpassword=s3cret", "postgresql://u:s3cret@h/", "password=s3cret host"} {
		if out := postgres.Redact(in); strings.Contains(out, "s3cret") {
			t.Errorf("%q became %q", in, out)
		}
	}
	if got := postgres.Redact("port=1 host=a"); got != "host=a port=1" {
		t.Errorf("got %q", got)
	}
}

func TestForStandby(t *testing.T) {
	t.Setenv("PGPASSFILE", "/secret/pgpass")
	t.Setenv("PGPASSWORD", "env-secret")
	t.Setenv("PGHOST", "/run/x")
	t.Setenv("PGPORT", "6000")
	t.Setenv("PGUSER", "rep")
	got, err := postgres.ForStandby("dbname=app fallback_application_name=x replication=1")
	if err != nil {
		t.Fatal(err)
	}
	want := postgres.ConnInfo{"host": "/run/x", "port": "6000", "user": "rep", "passfile": "/secret/pgpass", "dbname": "app"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	got, err = postgres.ForStandby("host=h password=given")
	if err != nil || got["password"] != "given" || got["host"] != "h" {
		t.Errorf("%v, %v", got, err)
	}
}

func FuzzParseConnInfo(f *testing.F) {
	for _, s := range []string{"host=a", "postgresql://u:p@h:1/d?x=y", `a='\'' b=\`, "postgres://[::1", "postgresql://%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := postgres.ParseConnInfo(s)
		if err != nil {
			return
		}
		if _, err := postgres.ParseConnInfo(c.String()); err != nil && !strings.ContainsAny(c.String(), "\x00") {
			for name := range c {
				if strings.ContainsAny(name, " \t\n\r\v\f='") {
					return // a name that only the URI form can spell
				}
			}
			t.Errorf("%q: written as %q: %v", s, c.String(), err)
		}
	})
}

func TestRewriteConf(t *testing.T) {
	old := "# Do not edit\nprimary_conninfo = 'a' # old\nPrimary_Slot_Name 's'\nwork_mem = 4MB\n  recovery_target = 'immediate'\nlast = 'x'"
	want := "# Do not edit\nwork_mem = 4MB\nlast = 'x'\nprimary_conninfo = 'host=h password=it\\\\''s'\nprimary_slot_name = ''\n"
	got := string(postgres.RewriteConf([]byte(old), postgres.StandbySettings(`host=h password=it\'s`, "")))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for name, want := range map[string]string{"primary_conninfo": `host=h password=it\'s`, "WORK_MEM": "4MB", "last": "x"} {
		if v, ok := postgres.ConfValue([]byte(got), name); !ok || v != want {
			t.Errorf("%s = %q, %t", name, v, ok)
		}
	}
	if _, ok := postgres.ConfValue([]byte(got), "recovery_target"); ok {
		t.Error("recovery_target is still there")
	}
}

func TestParseVersion(t *testing.T) {
	for in, want := range map[string]int{
		"postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)\n": 15, "postgres (PostgreSQL) 18beta1": 18, "postgres (PostgreSQL) 13.23": 13,
	} {
		if got, _, err := postgres.ParseVersion(in); got != want || err != nil {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
	for _, bad := range []string{"", "pg_ctl (PostgreSQL) 15", "postgres (PostgreSQL) devel"} {
		if _, _, err := postgres.ParseVersion(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
