package scratch

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// Keep makes dir the place of further clusters and belongs to the servers'
// user from then on; what is in it stays when the program ends.
func Keep(major int, dir string) (*Server, error) {
	s, err := at(major, dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return s, s.Chown(dir)
}

// Cluster is another cluster in the same scratch directory, with its own data
// directory and port. It need not exist yet.
func (s *Server) Cluster(name string, port int) *Server {
	c := *s
	c.Data, c.Port = filepath.Join(s.Dir, name), port
	return &c
}

// CopyTo copies a stopped cluster's data directory, sharing blocks where the
// file system can. What is there under that name is replaced.
func (s *Server) CopyTo(name string, port int) (*Server, error) {
	c := s.Cluster(name, port)
	if err := os.RemoveAll(c.Data); err != nil {
		return nil, err
	}
	cmd := s.Command("cp", "-a", "--reflink=auto", s.Data, c.Data)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("cp: %w\n%s", err, out)
	}
	return c, nil
}

// Command is a command that runs as the server's user in the scratch
// directory, its standard streams not set.
func (s *Server) Command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Dir = s.Dir
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C", "PGHOST=", "PGDATABASE=", "HOME="+s.Dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.owner}
	return cmd
}

// Conninfo is how a client on this machine connects.
func (s *Server) Conninfo() string {
	return fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", s.Dir, cmp.Or(s.Port, 5432))
}

// WriteFile writes a file of the cluster, owned by the server's user.
func (s *Server) WriteFile(name, data string) error {
	path := filepath.Join(s.Data, name)
	return errors.Join(os.WriteFile(path, []byte(data), 0o600), s.Chown(path))
}
