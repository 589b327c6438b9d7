package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"tidemark/internal/exit"
)

// Server is one data directory and the binaries that run it.
type Server struct {
	DataDir    string
	Bin        Installation
	ConfigFile string   // postgresql.conf where it lies outside the data directory, else empty
	LogFile    string   // receives the server's output; default: log/startup.log in the data directory
	Args       []string // further arguments for the server ("-c", "port=5433")

	// StartTimeout bounds Start; 0 means no bound but the context's. A server
	// that recovers for hours is not a failure as long as it lives.
	StartTimeout time.Duration
	// DieWithParent ends the server when this process ends (tests, drills).
	DieWithParent bool

	Log *slog.Logger
}

// NewServer returns the server of a data directory with the installation that fits it.
func NewServer(dir, bindir string) (*Server, error) {
	bin, err := ForDataDir(dir, bindir)
	if err != nil {
		return nil, err
	}
	return &Server{DataDir: dir, Bin: bin}, nil
}

// StopMode is how a server is asked to stop.
type StopMode int

// The modes of `pg_ctl stop`.
const (
	StopFast      StopMode = iota // ends sessions, writes a shutdown checkpoint
	StopSmart                     // waits for sessions to end first
	StopImmediate                 // as a crash: recovery follows at the next start
)

func (m StopMode) String() string {
	return [...]string{"fast", "smart", "immediate"}[m]
}

func (m StopMode) signal() syscall.Signal {
	switch m {
	case StopSmart:
		return syscall.SIGTERM
	case StopImmediate:
		return syscall.SIGQUIT
	}
	return syscall.SIGINT
}

// Status is what can be seen of a server from its data directory.
type Status struct {
	Running   bool   `json:"running"`
	PID       int    `json:"pid,omitempty"`
	Port      int    `json:"port,omitempty"`
	SocketDir string `json:"socket_dir,omitempty"`
	Listen    string `json:"listen,omitempty"`
	Phase     string `json:"phase,omitempty"` // "starting", "stopping", "ready", "standby" (alive, accepts no sessions)
}

// ConnInfo returns how to connect to the running server on this machine:
// through its socket where it has one.
func (s Status) ConnInfo() string {
	host := s.SocketDir
	if host == "" {
		host = s.Listen
	}
	if host == "" || host == "*" || host == "0.0.0.0" || host == "::" {
		host = "localhost"
	}
	return fmt.Sprintf("host=%s port=%d", QuoteValue(host), s.Port)
}

// Status reads postmaster.pid and looks for the process.
func (s *Server) Status() (Status, error) {
	p, ok, err := readPIDFile(s.DataDir)
	if err != nil || !ok || !alive(p.PID, s.DataDir) {
		return Status{}, err
	}
	return Status{Running: true, PID: p.PID, Port: p.Port, SocketDir: p.SocketDir, Listen: p.Listen, Phase: p.Status}, nil
}

// IsRunning reports whether a server runs in dir. Where that cannot be told it
// says true and why, which keeps callers off the directory.
func IsRunning(dir string) (bool, error) {
	st, err := (&Server{DataDir: dir}).Status()
	if err != nil {
		return true, err
	}
	return st.Running, nil
}

// ErrRunning is returned when a server runs where none may.
var ErrRunning = errors.New("a server is running in the data directory")

// ErrNotReady is returned when a server that was started lives, but accepts no
// sessions in the time that was given.
var ErrNotReady = errors.New("the server does not accept sessions yet")

// ErrNotRunning is returned when a server is needed and none runs.
var ErrNotRunning = errors.New("no server is running in the data directory")

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

func (s *Server) logFile() string {
	if s.LogFile != "" {
		return s.LogFile
	}
	return filepath.Join(s.DataDir, "log", "startup.log")
}

func (s *Server) serverArgs() []string {
	args := []string{"-D", s.DataDir}
	if s.ConfigFile != "" {
		args = append(args, "-c", "config_file="+s.ConfigFile)
	}
	return append(args, s.Args...)
}

// Start starts the server and returns once it accepts sessions: a standby when
// it is consistent (or, with hot_standby off, when it recovers). A server that
// runs already is left alone. When the server ends instead, the error carries
// the tail of its log.
func (s *Server) Start(ctx context.Context) error {
	if st, err := s.Status(); err != nil {
		return err
	} else if st.Running {
		return s.waitReady(ctx, nil, 0)
	}
	if os.Geteuid() == 0 {
		return exit.New(exit.Refused, "run as the owner of the data directory", "PostgreSQL does not run as root")
	}
	path := s.logFile()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("opening the server's log: %w", err)
	}
	defer out.Close()
	from, err := out.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	cmd := exec.Command(s.Bin.Path("postgres"), s.serverArgs()...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = detached(s.DieWithParent)
	cmd.Env = serverEnv()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the server: %w", err)
	}
	s.log().Debug("server started", "pid", cmd.Process.Pid, "dir", s.DataDir)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return s.waitReady(ctx, ended, from)
}

// serverEnv is the environment without libpq's variables, which the server's
// own connections (a standby's receiver) would pick up.
func serverEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGSERVICE", "PGOPTIONS", "PGAPPNAME", "PGDATA":
			continue
		}
		env = append(env, kv)
	}
	return env
}

// waitReady waits until the server accepts sessions. ended delivers the end of
// the process where this call started it; from is where its log begins.
func (s *Server) waitReady(ctx context.Context, ended <-chan error, from int64) error {
	if s.StartTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, s.StartTimeout, fmt.Errorf("%w after %s; it is left running", ErrNotReady, s.StartTimeout))
		defer cancel()
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		st, err := s.Status()
		if err == nil && st.Running && (st.Phase == "ready" || st.Phase == "standby") {
			return nil
		}
		if ended == nil && err == nil && !st.Running {
			return exit.Hint(ErrNotRunning, s.tail(from))
		}
		select {
		case err := <-ended:
			if err == nil {
				err = errors.New("the server ended")
			}
			return exit.Wrap(err, exit.Failed, s.tail(from), "the server in %s did not start", s.DataDir)
		case <-ctx.Done():
			return exit.Hint(context.Cause(ctx), s.tail(from))
		case <-tick.C:
		}
	}
}

// LogTail returns the last lines of the server's log, as a hint.
func (s *Server) LogTail() string { return s.tail(0) }

const tailLines = 12

// tail returns the last lines of the server's log, as a hint. With the logging
// collector on, the log file proper says more, and the hint names it.
func (s *Server) tail(from int64) string {
	lines := tailOf(s.logFile(), from)
	if b, err := os.ReadFile(filepath.Join(s.DataDir, "current_logfiles")); err == nil {
		for _, line := range strings.Split(string(b), "\n") {
			if name, ok := strings.CutPrefix(line, "stderr "); ok {
				if !filepath.IsAbs(name) {
					name = filepath.Join(s.DataDir, name)
				}
				if more := tailOf(name, 0); more != "" {
					return "the server's log (" + name + ") ends with:\n" + more
				}
			}
		}
	}
	if lines == "" {
		return "look into the server's log: " + s.logFile()
	}
	return "the server's log (" + s.logFile() + ") ends with:\n" + lines
}

func tailOf(path string, from int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	const most = 16 << 10
	from = max(from, st.Size()-most)
	b := make([]byte, max(0, st.Size()-from))
	n, _ := f.ReadAt(b, from)
	lines := strings.Split(string(bytes.TrimSpace(b[:n])), "\n")
	if len(lines) > tailLines {
		lines = lines[len(lines)-tailLines:]
	}
	return strings.Join(lines, "\n")
}

// Stop asks the server to stop and waits until it has. ErrNotRunning is not an
// error here: what is stopped is stopped. The context bounds the wait; the
// server goes on stopping when it runs out.
func (s *Server) Stop(ctx context.Context, mode StopMode) error {
	st, err := s.Status()
	if err != nil || !st.Running {
		return err
	}
	if err := syscall.Kill(st.PID, mode.signal()); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stopping the server (process %d): %w", st.PID, err)
	}
	if err := waitGone(ctx, st.PID, s.DataDir); err != nil {
		return exit.Wrap(err, exit.CodeOf(err), s.tail(0), "the server in %s has not stopped yet (%s stop)", s.DataDir, mode)
	}
	return nil
}

// waitGone waits until a process has ended and its postmaster.pid is gone (a
// crash leaves the file behind, then the process's end is enough).
func waitGone(ctx context.Context, pid int, dir string) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for alive(pid, dir) {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
	return nil
}

// Restart stops the server fast and starts it again.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Stop(ctx, StopFast); err != nil {
		return err
	}
	return s.Start(ctx)
}

// Reload makes the server read its configuration files again.
func (s *Server) Reload() error {
	st, err := s.Status()
	if err != nil {
		return err
	}
	if !st.Running {
		return ErrNotRunning
	}
	return syscall.Kill(st.PID, syscall.SIGHUP)
}

// Setting reads one configuration parameter as the server would see it, without
// a running server (`postgres -C`).
func (s *Server) Setting(ctx context.Context, name string) (string, error) {
	args := append([]string{"-C", name}, s.serverArgs()...)
	cmd := exec.CommandContext(ctx, s.Bin.Path("postgres"), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = serverEnv()
	if err := cmd.Run(); err != nil {
		return "", exit.Wrap(err, exit.Failed, strings.TrimSpace(stderr.String()), "reading the setting %s of %s", name, s.DataDir)
	}
	return strings.TrimRight(stdout.String(), "\r\n"), nil
}

// exists reports whether a path is there.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
