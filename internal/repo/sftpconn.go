package repo

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

// sftpSession is one connection: an ssh process with the sftp subsystem at its
// other end.
type sftpSession struct {
	client *sftp.Client
	cmd    *exec.Cmd
	said   *tail
	ended  chan struct{}
}

// sshArguments are the system's ssh, never asking anything.
func (o *SFTPOptions) sshArguments() []string {
	args := []string{"-oBatchMode=yes", "-oConnectTimeout=15", "-oServerAliveInterval=15", "-oServerAliveCountMax=3",
		"-oClearAllForwardings=yes", "-oForwardX11=no", "-oPermitLocalCommand=no", "-oRequestTTY=no"}
	if o.Config != "" {
		args = append(args, "-F", o.Config)
	}
	if o.Identity != "" {
		args = append(args, "-i", o.Identity)
	}
	if o.Port != 0 {
		args = append(args, "-p", strconv.Itoa(o.Port))
	}
	if o.User != "" {
		args = append(args, "-l", o.User)
	}
	return append(args, "-s", "--", o.Host, "sftp")
}

// connect returns the open connection, or makes one.
func (d *SFTP) connect(ctx context.Context) (*sftpSession, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if d.session != nil {
		select {
		case <-d.session.ended:
			d.session = nil
		default:
			return d.session, nil
		}
	}
	s, err := d.dial()
	if err != nil {
		return nil, err
	}
	d.session = s
	return s, nil
}

func (d *SFTP) dial() (*sftpSession, error) {
	s := &sftpSession{cmd: exec.Command("ssh", d.o.sshArguments()...), said: &tail{}, ended: make(chan struct{})}
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
	err = s.watch(d.o.Timeout, func() (err error) {
		s.client, err = sftp.NewClientPipe(out, in, sftp.UseConcurrentWrites(true), sftp.UseFstat(true))
		return err
	})
	go func() {
		if s.client != nil {
			s.client.Wait()
		}
		in.Close()
		s.cmd.Wait()
		close(s.ended)
	}()
	if err != nil {
		s.cmd.Process.Kill()
		<-s.ended
		return nil, d.explain(s, err)
	}
	return s, nil
}

// watch runs an operation and ends the connection if it takes too long, which
// makes the operation fail.
func (s *sftpSession) watch(limit time.Duration, op func() error) error {
	timer := time.AfterFunc(limit, func() { s.cmd.Process.Kill() })
	defer timer.Stop()
	return op()
}

// drop gives a broken connection up and returns its error, explained.
func (d *SFTP) drop(s *sftpSession, err error) error {
	d.mu.Lock()
	if d.session == s {
		d.session = nil
	}
	d.mu.Unlock()
	s.cmd.Process.Kill()
	<-s.ended
	return d.explain(s, err)
}

// Close ends the connection.
func (d *SFTP) Close() error {
	d.mu.Lock()
	s := d.session
	d.session = nil
	d.mu.Unlock()
	if s != nil {
		s.client.Close()
		s.cmd.Process.Kill()
		<-s.ended
	}
	return nil
}

// sshError is a connection that could not be made or broke.
type sshError struct {
	said  string // by ssh, on stderr
	err   error
	final bool // another attempt would end the same way
}

func (e *sshError) Error() string {
	if e.said != "" {
		return "ssh: " + e.said
	}
	return "ssh: " + e.err.Error()
}

func (e *sshError) Unwrap() error { return e.err }

// connectionLost reports whether an error is the connection's, and not the
// server's answer.
func connectionLost(err error) bool {
	var ssh *sshError
	if errors.As(err, &ssh) {
		return !ssh.final
	}
	var status *sftp.StatusError
	var known *exit.Error
	switch {
	case errors.As(err, &status), errors.As(err, &known),
		errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrExist),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, sftp.ErrSSHFxConnectionLost),
		errors.Is(err, errDiffers), errors.Is(err, errStoreGone):
		return false
	}
	return true
}

// explain says what an operator can do about a connection.
func (d *SFTP) explain(s *sftpSession, err error) error {
	said := s.said.String()
	e := &sshError{said: lastLine(said), err: err}
	by := strings.Join(append([]string{"ssh"}, d.o.sshArguments()...), " ")
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
	return exit.Hint(fmt.Errorf("%s: %w", d.o.Host, e), hint)
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
