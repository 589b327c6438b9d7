package postgres

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// pidFile is postmaster.pid, one field a line (src/include/utils/pidfile.h):
//
//	1 pid   2 data directory   3 start time   4 port
//	5 socket directory   6 listen address   7 shared memory key   8 status
type pidFile struct {
	PID       int
	DataDir   string
	Port      int
	SocketDir string
	Listen    string
	Status    string // "starting", "stopping", "ready", "standby", or empty
}

func parsePIDFile(b []byte) (pidFile, error) {
	lines := strings.Split(string(b), "\n")
	line := func(n int) string {
		if n <= len(lines) {
			return strings.TrimSpace(lines[n-1])
		}
		return ""
	}
	var p pidFile
	pid, err := strconv.Atoi(line(1))
	if err != nil {
		return p, fmt.Errorf("postmaster.pid: no process number in %q", line(1))
	}
	if pid < 0 { // a single-user backend notes its number negated
		pid = -pid
	}
	p.PID, p.DataDir, p.SocketDir, p.Listen, p.Status = pid, line(2), line(5), line(6), line(8)
	p.Port, _ = strconv.Atoi(line(4)) // absent while the server starts
	return p, nil
}

// readPIDFile returns postmaster.pid of a data directory; ok is false where
// there is none.
func readPIDFile(dir string) (p pidFile, ok bool, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if errors.Is(err, fs.ErrNotExist) {
		return p, false, nil
	}
	if err != nil {
		return p, false, err
	}
	if len(strings.TrimSpace(string(b))) == 0 {
		return p, false, nil // just being written
	}
	p, err = parsePIDFile(b)
	return p, err == nil, err
}

// alive reports whether process pid serves the data directory dir. A process
// number is reused after a crash or a reboot, so where the system tells it, the
// process's working directory (a postmaster lives in its data directory) must
// be dir.
func alive(pid int, dir string) bool {
	if pid <= 0 || pid == os.Getpid() || pid == os.Getppid() {
		return false
	}
	if err := syscall.Kill(pid, 0); err != nil && !errors.Is(err, syscall.EPERM) {
		return false
	}
	if zombie(pid) {
		return false
	}
	cwd, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return true // no such view of processes, or not ours to look at: believe the file
	}
	st, err := os.Stat(dir)
	return err != nil || os.SameFile(cwd, st)
}

// zombie reports whether a process has ended and only waits to be collected.
func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, ok := strings.Cut(string(b), ") ")
	return ok && strings.HasPrefix(rest, "Z")
}
