package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// PostmasterPIDFile is the lock file of a running server.
const PostmasterPIDFile = "postmaster.pid"

// PostmasterPID is the content of postmaster.pid (utils/pidfile.h), one value
// per line. A server that is starting has not written the later ones yet.
type PostmasterPID struct {
	PID        int
	SingleUser bool // a single-user server: the number in the file is negative
	DataDir    string
	Started    time.Time
	Port       int
	SocketDir  string
	ListenAddr string
	ShmKey     string
	Status     string // "starting", "stopping", "ready" or "standby"
}

// ParsePostmasterPID reads the content of postmaster.pid.
func ParsePostmasterPID(data []byte) (*PostmasterPID, error) {
	lines := strings.Split(string(data), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil || pid == 0 {
		return nil, fmt.Errorf("%s: %q is not a process id", PostmasterPIDFile, lines[0])
	}
	line := func(n int) string {
		if n < len(lines) {
			return strings.TrimSpace(lines[n])
		}
		return ""
	}
	p := &PostmasterPID{PID: max(pid, -pid), SingleUser: pid < 0, DataDir: line(1), SocketDir: line(4),
		ListenAddr: line(5), ShmKey: line(6), Status: line(7)}
	if n, err := strconv.ParseInt(line(2), 10, 64); err == nil {
		p.Started = time.Unix(n, 0).UTC()
	}
	p.Port, _ = strconv.Atoi(line(3))
	return p, nil
}

// ReadPostmasterPID reads the lock file of the data directory dir. The error
// wraps fs.ErrNotExist where there is none.
func ReadPostmasterPID(fsys FS, dir string) (*PostmasterPID, error) {
	data, err := ReadFile(fsys, filepath.Join(dir, PostmasterPIDFile), 64<<10)
	if err != nil {
		return nil, err
	}
	return ParsePostmasterPID(data)
}

// Alive tells whether a process of that number exists on this machine.
func (p *PostmasterPID) Alive() bool {
	err := syscall.Kill(p.PID, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}

// RunningServer returns the lock file of the server that runs on dir, or nil
// where none does: there is no lock file, or its process is gone.
func RunningServer(fsys FS, dir string) (*PostmasterPID, error) {
	p, err := ReadPostmasterPID(fsys, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !p.Alive() {
		return nil, nil
	}
	return p, nil
}
