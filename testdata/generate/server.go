package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/postgres"
)

// server is one scratch cluster. It runs as an unprivileged user when we are root.
type server struct {
	major int
	bin   postgres.Installation
	dir   string // scratch directory
	data  string
	owner *syscall.Credential
}

const config = `
listen_addresses = ''
unix_socket_directories = '%s'
fsync = off
autovacuum = off
checkpoint_timeout = 1h
max_wal_size = 1GB
wal_keep_size = 1GB
max_prepared_transactions = 5
track_commit_timestamp = on
wal_level = %s
bgwriter_lru_maxpages = 0
timezone = 'UTC'
`

// newServer makes a cluster with 1 MB segments.
func newServer(major int) (*server, error) {
	bin, err := postgres.Find(major, "")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "fixture")
	if err != nil {
		return nil, err
	}
	s := &server{major: major, bin: bin, dir: dir, data: filepath.Join(dir, "data")}
	if os.Getuid() == 0 {
		if err := s.disown(); err != nil {
			return nil, err
		}
	}
	if err := s.run("initdb", "-D", s.data, "-A", "trust", "-N", "-k", "-U", "postgres", "--no-locale", "-E", "UTF8", "--wal-segsize=1"); err != nil {
		return nil, err
	}
	level := "logical"
	if major == 14 {
		level = "replica" // see the package comment
	}
	return s, s.configure(fmt.Sprintf(config, dir, level))
}

// disown gives the scratch directory to the user that the server will run as.
func (s *server) disown() error {
	u, err := user.Lookup("postgres")
	if err != nil {
		return fmt.Errorf("a server needs a user that is not root: %w", err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	s.owner = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return s.chown(s.dir)
}

func (s *server) chown(path string) error {
	if s.owner == nil {
		return nil
	}
	return os.Chown(path, int(s.owner.Uid), int(s.owner.Gid))
}

// configure appends to postgresql.conf.
func (s *server) configure(lines string) error {
	f, err := os.OpenFile(filepath.Join(s.data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(lines)
	return errJoin(err, f.Close())
}

func errJoin(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func (s *server) run(program string, args ...string) error {
	cmd := exec.Command(s.bin.Path(program), args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C", "PGHOST=", "PGDATABASE=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.owner}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		logged, _ := os.ReadFile(s.log())
		return fmt.Errorf("%s: %w\n%s\n%s", program, err, out.Bytes(), logged)
	}
	return nil
}

func (s *server) log() string { return filepath.Join(s.dir, "server.log") }

func (s *server) start() error {
	return s.run("pg_ctl", "-D", s.data, "-l", s.log(), "-w", "start")
}

func (s *server) stop(mode string) error {
	return s.run("pg_ctl", "-D", s.data, "-m", mode, "-w", "stop")
}

func (s *server) connect(ctx context.Context) (*pgx.Conn, error) {
	c, err := pgx.ParseConfig(fmt.Sprintf("host=%s user=postgres dbname=postgres", s.dir))
	if err != nil {
		return nil, err
	}
	c.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	return pgx.ConnectConfig(ctx, c)
}

// with runs f in a session of the running server.
func (s *server) with(ctx context.Context, f func(*pgx.Conn) error) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return f(conn)
}

// exec runs statements one by one.
func (s *server) exec(ctx context.Context, statements ...string) error {
	return s.with(ctx, func(c *pgx.Conn) error {
		for _, q := range statements {
			if _, err := c.Exec(ctx, q); err != nil {
				return fmt.Errorf("%s: %w", q, err)
			}
		}
		return nil
	})
}

// text returns the single value that a query gives.
func (s *server) text(ctx context.Context, query string) (v string, err error) {
	err = s.with(ctx, func(c *pgx.Conn) error { return c.QueryRow(ctx, query).Scan(&v) })
	return v, err
}

// remove stops whatever still runs and deletes the scratch directory.
func (s *server) remove() {
	if _, err := os.Stat(filepath.Join(s.data, "postmaster.pid")); err == nil {
		_ = s.stop("immediate")
	}
	_ = os.RemoveAll(s.dir)
}

// runScript runs a workload file. It returns an error for the first statement
// that fails without leave.
func (s *server) runScript(ctx context.Context, script string) error {
	return s.with(ctx, func(c *pgx.Conn) error {
		for _, st := range parseScript(strings.ReplaceAll(script, "DIR", s.dir)) {
			if s.major < st.from || st.to != 0 && s.major > st.to {
				continue
			}
			_, err := c.Exec(ctx, st.sql)
			if err != nil && !st.mayFail {
				return fmt.Errorf("%s: %w", st.sql, err)
			}
		}
		return nil
	})
}

type statement struct {
	sql      string
	from, to int
	mayFail  bool
}

func parseScript(script string) (list []statement) {
	var st statement
	for _, line := range strings.Split(script, "\n") {
		directive, isComment := strings.CutPrefix(line, "-- ")
		switch {
		case isComment && strings.HasPrefix(directive, "from "):
			st.from, _ = strconv.Atoi(directive[5:])
		case isComment && strings.HasPrefix(directive, "to "):
			st.to, _ = strconv.Atoi(directive[3:])
		case directive == "may fail":
			st.mayFail = true
		case isComment || strings.HasPrefix(line, "--") || line == "":
		default:
			st.sql += line + "\n"
			if strings.HasSuffix(line, ";") {
				list = append(list, st)
				st = statement{}
			}
		}
	}
	return list
}
