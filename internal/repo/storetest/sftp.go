package storetest

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// SFTP is an sshd of a test, as an unprivileged user.
type SFTP struct {
	Dir  string // a directory of the user's on the "other host"
	base string
	user *user.User
	port int
	proc *process
	bin  string
}

// NewSFTP starts an sshd with keys of its own.
func NewSFTP(t testing.TB) *SFTP {
	t.Helper()
	s := &SFTP{base: t.TempDir(), port: freePort(t), bin: program(t, "sshd", "/usr/sbin", "/usr/local/sbin", "/usr/libexec")}
	program(t, "ssh")
	keygen := program(t, "ssh-keygen")
	s.unprivileged(t)
	s.Dir = filepath.Join(s.base, "host")
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"host_key", "user_key"} {
		out, err := exec.Command(keygen, "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(s.base, key)).CombinedOutput()
		if err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	s.write(t, "authorized_keys", s.read(t, "user_key.pub"))
	s.write(t, "known_hosts", fmt.Sprintf("[127.0.0.1]:%d %s", s.port, s.read(t, "host_key.pub")))
	s.write(t, "sshd_config", strings.Join([]string{
		fmt.Sprintf("ListenAddress 127.0.0.1:%d", s.port),
		"HostKey " + filepath.Join(s.base, "host_key"),
		"AuthorizedKeysFile " + filepath.Join(s.base, "authorized_keys"),
		"PidFile none", "StrictModes no", "UsePAM no", "PasswordAuthentication no", "KbdInteractiveAuthentication no",
		"MaxStartups 100", "Subsystem sftp internal-sftp", "ForceCommand internal-sftp", ""}, "\n"))
	s.write(t, "ssh_config", strings.Join([]string{
		"Host 127.0.0.1", "IdentitiesOnly yes", "IdentityFile " + filepath.Join(s.base, "user_key"),
		"UserKnownHostsFile " + filepath.Join(s.base, "known_hosts"), "StrictHostKeyChecking yes", ""}, "\n"))
	s.own(t)
	s.Start(t)
	return s
}

// unprivileged chooses the user: this one, or where that is root another.
func (s *SFTP) unprivileged(t testing.TB) {
	u, err := user.Current()
	if err == nil && u.Uid == "0" {
		if u, err = user.Lookup("postgres"); err != nil {
			u, err = user.Lookup("nobody")
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	s.user = u
}

// own gives the files to the user where this process may.
func (s *SFTP) own(t testing.TB) {
	if os.Geteuid() != 0 {
		return
	}
	uid, gid := s.ids(t)
	err := filepath.WalkDir(s.base, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, gid)
	})
	if err != nil {
		t.Fatal(err)
	}
	// The user has to be able to pass through the directories above.
	for dir := filepath.Dir(s.base); len(dir) > len(os.TempDir()); dir = filepath.Dir(dir) {
		os.Chmod(dir, 0o711)
	}
}

func (s *SFTP) ids(t testing.TB) (uid, gid int) {
	uid, err := strconv.Atoi(s.user.Uid)
	if err == nil {
		gid, err = strconv.Atoi(s.user.Gid)
	}
	if err != nil {
		t.Fatal(err)
	}
	return uid, gid
}

// Start starts the sshd again after Stop.
func (s *SFTP) Start(t testing.TB) {
	t.Helper()
	cmd := exec.Command(s.bin, "-D", "-e", "-f", filepath.Join(s.base, "sshd_config"))
	cmd.Dir = "/"
	if os.Geteuid() == 0 {
		uid, gid := s.ids(t)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	s.proc = start(t, s.port, cmd)
}

// Stop ends the sshd; connections that are open stay.
func (s *SFTP) Stop() { s.proc.stop() }

// Location names the repository at a path below Dir.
func (s *SFTP) Location(path string, more ...string) string {
	return s.At(s.port, path, more...)
}

// At is Location by way of another port, a relay's.
func (s *SFTP) At(port int, path string, more ...string) string {
	return s.AtDir(port, filepath.Join(s.Dir, path), more...)
}

// AtDir names any directory of the host.
func (s *SFTP) AtDir(port int, dir string, more ...string) string {
	return fmt.Sprintf("sftp://%s@127.0.0.1:%d%s?%s", s.user.Username, port, (&url.URL{Path: dir}).EscapedPath(),
		strings.Join(append([]string{"config=" + filepath.Join(s.base, "ssh_config")}, more...), "&"))
}

// Port is where the sshd listens.
func (s *SFTP) Port() int { return s.port }

// Trust makes the host's key known for another port, a relay's.
func (s *SFTP) Trust(t testing.TB, port int) {
	s.write(t, "known_hosts", s.read(t, "known_hosts")+fmt.Sprintf("[127.0.0.1]:%d %s", port, s.read(t, "host_key.pub")))
}

// File is the path of one of the files of the test's ssh: user_key, ...
func (s *SFTP) File(name string) string { return filepath.Join(s.base, name) }

func (s *SFTP) read(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(s.File(name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (s *SFTP) write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(s.File(name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// MakeDir makes a directory of the user's below Dir.
func (s *SFTP) MakeDir(t testing.TB, name string) {
	t.Helper()
	dir := filepath.Join(s.Dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		uid, gid := s.ids(t)
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
}
