package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pkg/sftp"

	"tidemark/internal/exit"
)

// Target says which host, and how ssh reaches it.
type Target struct {
	User, Host string
	Port       int           // 0: ssh's own choice
	Identity   string        // key file, as ssh -i
	Config     string        // configuration file, as ssh -F
	Timeout    time.Duration // of one operation
}

// arguments are the system's ssh, never asking anything.
func (h *Target) arguments() []string {
	args := []string{"-oBatchMode=yes", "-oConnectTimeout=15", "-oServerAliveInterval=15", "-oServerAliveCountMax=3",
		"-oClearAllForwardings=yes", "-oForwardX11=no", "-oPermitLocalCommand=no", "-oRequestTTY=no"}
	if h.Config != "" {
		args = append(args, "-F", h.Config)
	}
	if h.Identity != "" {
		args = append(args, "-i", h.Identity)
	}
	if h.Port != 0 {
		args = append(args, "-p", strconv.Itoa(h.Port))
	}
	if h.User != "" {
		args = append(args, "-l", h.User)
	}
	return append(args, "-s", "--", h.Host, "sftp")
}

// Session is one connection: an ssh process with the sftp subsystem at its
// other end.
type Session struct {
	Client *sftp.Client

	host  Target
	cmd   *exec.Cmd
	said  *tail
	ended chan struct{}
}

// Dial makes a connection.
func Dial(h Target) (*Session, error) {
	s := &Session{host: h, cmd: exec.Command("ssh", h.arguments()...), said: &tail{}, ended: make(chan struct{})}
	s.cmd.Stderr = s.said
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // ^C is for us, who still have something to tidy up there
	in, err := s.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, exit.Wrap(err, exit.Failed, "install the OpenSSH client", "cannot run ssh")
	}
	err = s.Watch(func() (err error) {
		s.Client, err = sftp.NewClientPipe(out, in, sftp.UseConcurrentWrites(true), sftp.UseFstat(true))
		if err == nil {
			err = largePackets(s.Client)
		}
		return err
	})
	go func() {
		if s.Client != nil {
			s.Client.Wait()
		}
		in.Close()
		s.cmd.Wait()
		close(s.ended)
	}()
	if err != nil {
		s.Kill()
		return nil, s.explain(err)
	}
	return s, nil
}

// largePackets makes reads and writes as large as OpenSSH's server takes them,
// eight times the size that every server has to: it takes less work on both
// sides. The extension by which a server is asked for its limits came with 8.5,
// and what it says has been this ever since (sftp-server's
// SFTP_MAX_READ_LENGTH); a server may return less than was asked for.
func largePackets(c *sftp.Client) error {
	if _, ok := c.HasExtension("limits@openssh.com"); !ok {
		return nil
	}
	return sftp.MaxPacketUnchecked(openSSHPacket)(c)
}

const openSSHPacket = 255 << 10 // bytes

// Watch runs an operation and ends the connection if it takes longer than the
// host's time limit, which makes the operation fail.
func (s *Session) Watch(op func() error) error {
	timer := time.AfterFunc(s.host.Timeout, func() { s.cmd.Process.Kill() })
	defer timer.Stop()
	return op()
}

// Dead tells whether the connection is gone.
func (s *Session) Dead() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// Kill ends a connection that may be broken.
func (s *Session) Kill() {
	s.cmd.Process.Kill()
	<-s.ended
}

// Drop gives a broken connection up and returns its error, explained.
func (s *Session) Drop(err error) error {
	s.Kill()
	return s.explain(err)
}

// Close ends the connection.
func (s *Session) Close() {
	s.Client.Close()
	s.Kill()
}

// Error is a connection that could not be made or broke.
type Error struct {
	said  string // by ssh, on stderr
	err   error
	final bool // another attempt would end the same way
}

func (e *Error) Error() string {
	if e.said != "" {
		return "ssh: " + e.said
	}
	return "ssh: " + e.err.Error()
}

func (e *Error) Unwrap() error { return e.err }

// Lost reports whether an error is the connection's, and not the server's
// answer: another attempt may succeed.
func Lost(err error) bool {
	var ssh *Error
	if errors.As(err, &ssh) {
		return !ssh.final
	}
	var mine *receiverError
	var status *sftp.StatusError
	var known *exit.Error
	switch {
	case errors.As(err, &status), errors.As(err, &known), errors.As(err, &mine),
		errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrExist),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, sftp.ErrSSHFxConnectionLost):
		return false
	}
	return true
}

// explain says what an operator can do about a connection.
func (s *Session) explain(err error) error {
	said := s.said.String()
	e := &Error{said: lastLine(said), err: err}
	by := strings.Join(append([]string{"ssh"}, s.host.arguments()...), " ")
	hint := ""
	switch {
	case strings.Contains(said, "Permission denied"):
		e.final, hint = true, "give the user who runs this a key that the host accepts without asking; try: "+by
	case strings.Contains(said, "Host key verification failed"):
		e.final, hint = true, "this host's key is not known: log in once with ssh as this user, or add it to known_hosts"
	case strings.Contains(said, "IDENTIFICATION HAS CHANGED"):
		e.final, hint = true, "find out why the host's key has changed before anything else"
	case strings.Contains(said, "Could not resolve"):
		hint = "check the name of the host"
	case strings.Contains(said, "subsystem request failed"):
		e.final, hint = true, "the host's sshd has no sftp subsystem: see Subsystem in its sshd_config"
	case strings.Contains(said, "Bad configuration option"), strings.Contains(said, "Can't open user config file"), strings.Contains(said, "unknown option"):
		e.final, hint = true, "try: "+by
	case strings.Contains(said, "refused"), strings.Contains(said, "timed out"), strings.Contains(said, "No route"):
		hint = "check that the host is up and its sshd is reachable from here"
	}
	return exit.Hint(fmt.Errorf("%s: %w", s.host.Host, e), hint)
}

// tail keeps the end of what a program writes.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 4096

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if len(t.buf) > tailSize {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-tailSize:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return strings.TrimSpace(s[strings.LastIndexByte(s, '\n')+1:])
}
