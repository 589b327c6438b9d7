// Package scratch runs throw-away servers for programs that are no tests: the
// generator of testdata/ and the benchmarks. Tests use internal/pgtest.
package scratch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/postgres"
)

// Server is one scratch cluster. It runs as an unprivileged user when we are root.
type Server struct {
	Major int
	Bin   postgres.Installation
	Dir   string // scratch directory; the server's socket and log are in it
	Data  string // data directory
	Port  int    // 0: the default one
	owner *syscall.Credential
}

// Options shape a server.
type Options struct {
	Major     int
	SegmentMB int
	Checksums bool
	Config    string // further lines of postgresql.conf
}

const config = `
listen_addresses = ''
unix_socket_directories = '%s'
fsync = off
autovacuum = off
checkpoint_timeout = 1h
bgwriter_lru_maxpages = 0
timezone = 'UTC'
`

// New makes a cluster. It does not start it.
func New(o Options) (*Server, error) {
	dir, err := os.MkdirTemp("", "tidemark-scratch")
	if err != nil {
		return nil, err
	}
	s, err := at(o.Major, dir)
	if err == nil {
		err = s.Chown(dir)
	}
	if err == nil {
		err = s.Init(o)
	}
	return s, err
}

// at is a server's place in dir, which need not exist.
func at(major int, dir string) (*Server, error) {
	bin, err := postgres.Find(major, "")
	if err != nil {
		return nil, err
	}
	s := &Server{Major: major, Bin: bin, Dir: dir, Data: filepath.Join(dir, "data")}
	if os.Getuid() == 0 {
		err = s.disown()
	}
	return s, err
}

// Init makes the cluster in the server's data directory.
func (s *Server) Init(o Options) error {
	args := []string{"-D", s.Data, "-A", "trust", "-N", "-U", "postgres", "--no-locale", "-E", "UTF8", fmt.Sprintf("--wal-segsize=%d", o.SegmentMB)}
	if o.Checksums {
		args = append(args, "-k")
	}
	if err := s.Run("initdb", args...); err != nil {
		return err
	}
	return s.Configure(fmt.Sprintf(config, s.Dir) + o.Config)
}

// disown finds the user that the server will run as.
func (s *Server) disown() error {
	u, err := user.Lookup("postgres")
	if err != nil {
		return fmt.Errorf("a server needs a user that is not root: %w", err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	s.owner = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return nil
}

// Chown gives a file to the user that the server runs as.
func (s *Server) Chown(path string) error {
	if s.owner == nil {
		return nil
	}
	return os.Chown(path, int(s.owner.Uid), int(s.owner.Gid))
}

// Configure appends to postgresql.conf.
func (s *Server) Configure(lines string) error {
	f, err := os.OpenFile(filepath.Join(s.Data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(lines)
	return errors.Join(err, f.Close())
}

// Run runs one of the server's programs as the server's user.
func (s *Server) Run(program string, args ...string) error {
	cmd := s.Command(s.Bin.Path(program), args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		logged, _ := os.ReadFile(s.Log())
		return fmt.Errorf("%s: %w\n%s\n%s", program, err, out.Bytes(), logged)
	}
	return nil
}

// Log is the file that holds the server's messages.
func (s *Server) Log() string {
	if s.Port != 0 {
		return s.Data + ".log"
	}
	return filepath.Join(s.Dir, "server.log")
}

// Start starts the server and waits until it accepts sessions.
func (s *Server) Start() error {
	args := []string{"-D", s.Data, "-l", s.Log(), "-w", "start"}
	if s.Port != 0 {
		args = append(args, "-o", fmt.Sprintf("-p %d", s.Port))
	}
	return s.Run("pg_ctl", args...)
}

// Stop stops the server in one of pg_ctl's modes.
func (s *Server) Stop(mode string) error {
	return s.Run("pg_ctl", "-D", s.Data, "-m", mode, "-w", "stop")
}

func (s *Server) connect(ctx context.Context) (*pgx.Conn, error) {
	c, err := pgx.ParseConfig(s.Conninfo())
	if err != nil {
		return nil, err
	}
	c.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	return pgx.ConnectConfig(ctx, c)
}

// With runs f in a session of the running server.
func (s *Server) With(ctx context.Context, f func(*pgx.Conn) error) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return f(conn)
}

// Exec runs statements one by one.
func (s *Server) Exec(ctx context.Context, statements ...string) error {
	return s.With(ctx, func(c *pgx.Conn) error {
		for _, q := range statements {
			if _, err := c.Exec(ctx, q); err != nil {
				return fmt.Errorf("%s: %w", q, err)
			}
		}
		return nil
	})
}

// Text returns the single value that a query gives.
func (s *Server) Text(ctx context.Context, query string) (v string, err error) {
	err = s.With(ctx, func(c *pgx.Conn) error { return c.QueryRow(ctx, query).Scan(&v) })
	return v, err
}

// Remove stops whatever still runs and deletes the scratch directory.
func (s *Server) Remove() {
	if _, err := os.Stat(filepath.Join(s.Data, "postmaster.pid")); err == nil {
		_ = s.Stop("immediate")
	}
	_ = os.RemoveAll(s.Dir)
}
