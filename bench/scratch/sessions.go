package scratch

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// SessionsCPU is the time that the running server's sessions took since its
// start. It waits until there are no more processes than usual, for what runs
// is not counted yet.
func (s *Server) SessionsCPU(usual int) (sum time.Duration, err error) {
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		n, err := s.Processes()
		if err != nil || n <= usual {
			break
		}
		if time.Now().After(end) {
			return 0, fmt.Errorf("the server has %d processes, not %d", n, usual)
		}
	}
	stat, err := s.proc("stat")
	if err != nil {
		return 0, err
	}
	// Behind the program's name in parentheses: cutime and cstime, in hundredths of a second.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 15 {
		return 0, fmt.Errorf("/proc/PID/stat holds %s", stat)
	}
	for _, field := range fields[13:15] {
		n, err := strconv.Atoi(string(field))
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * 10 * time.Millisecond
	}
	return sum, nil
}

// Processes is how many processes the running server has started.
func (s *Server) Processes() (int, error) {
	pid, err := s.pid()
	if err != nil {
		return 0, err
	}
	children, err := s.proc(filepath.Join("task", pid, "children"))
	return len(bytes.Fields(children)), err
}

func (s *Server) pid() (string, error) {
	data, err := os.ReadFile(filepath.Join(s.Data, "postmaster.pid"))
	pid, _, _ := bytes.Cut(data, []byte{'\n'})
	return string(pid), err
}

func (s *Server) proc(name string) ([]byte, error) {
	pid, err := s.pid()
	if err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join("/proc", pid, name))
}
