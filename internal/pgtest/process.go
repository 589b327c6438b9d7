package pgtest

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidemark/internal/postgres"
)

// Start starts the node and fails the test where it does not come up.
func (n *Node) Start() {
	n.t.Helper()
	if err := n.TryStart(); err != nil {
		n.t.Fatalf("starting %s: %v\n%s", n.Name, err, tail(n.LogFile, 20))
	}
}

// TryStart starts the node and returns why it did not come up. A port that
// another process took meanwhile is replaced.
func (n *Node) TryStart() error {
	ctx, cancel := n.Context()
	defer cancel()
	for try := 0; ; try++ {
		err := n.Server.Start(ctx)
		if err == nil || try == 3 || !n.tcp || !strings.Contains(tail(n.LogFile, 5), "Address already in use") {
			return err
		}
		n.Port = freePort(n.t)
		n.Configure(fmt.Sprintf("port = %d", n.Port))
	}
}

// Stop stops the node fast.
func (n *Node) Stop() { n.t.Helper(); n.StopMode(postgres.StopFast) }

// StopMode stops the node as told.
func (n *Node) StopMode(mode postgres.StopMode) {
	n.t.Helper()
	ctx, cancel := n.Context()
	defer cancel()
	if err := n.Server.Stop(ctx, mode); err != nil {
		n.t.Fatalf("stopping %s: %v", n.Name, err)
	}
}

// Restart stops and starts the node.
func (n *Node) Restart() { n.t.Helper(); n.Stop(); n.Start() }

// Reload makes the node read its configuration again.
func (n *Node) Reload() {
	n.t.Helper()
	if err := n.Server.Reload(); err != nil {
		n.t.Fatal(err)
	}
}

// Running reports whether the node runs.
func (n *Node) Running() bool {
	running, _ := postgres.IsRunning(n.Dir)
	return running
}

// Kill ends every process of the node with SIGKILL, as a power failure would.
func (n *Node) Kill() {
	n.t.Helper()
	if !n.kill() {
		n.t.Fatalf("%s: its processes do not end", n.Name)
	}
}

// kill ends the postmaster and its children at once. The postmaster is stopped
// first, so that it starts no more of them.
func (n *Node) kill() bool {
	st, err := n.Server.Status()
	if err != nil || !st.Running {
		return true
	}
	syscall.Kill(st.PID, syscall.SIGSTOP)
	memory := sharedMemory(n.Dir)
	all := append(children(st.PID), st.PID)
	for _, pid := range all {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	deadline := time.Now().Add(Patience)
	for _, pid := range all {
		for processAlive(pid) {
			if time.Now().After(deadline) {
				return false
			}
			time.Sleep(2 * time.Millisecond)
		}
	}
	removeSharedMemory(memory)
	n.dropStaleLock(st.PID)
	return true
}

// sharedMemory returns the identifier of the System V segment that a running
// server notes in its postmaster.pid, or -1.
func sharedMemory(dir string) int {
	const line = 6 // "key id"
	b, _ := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if lines := strings.Split(string(b), "\n"); len(lines) > line {
		if f := strings.Fields(lines[line]); len(f) == 2 {
			if id, err := strconv.Atoi(f[1]); err == nil {
				return id
			}
		}
	}
	return -1
}

// dropStaleLock removes postmaster.pid and the socket's lock where the killed
// process still has its entry in the process table: one that a command under
// test started belongs to the system's first process, which in a container may
// never collect it, and the server takes the entry for a living one.
func (n *Node) dropStaleLock(pid int) {
	for deadline := time.Now().Add(time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			os.Remove(filepath.Join(n.Dir, "postmaster.pid"))
			os.Remove(filepath.Join(n.SocketDir, fmt.Sprintf(".s.PGSQL.%d.lock", n.Port)))
			return
		}
	}
}

// processAlive reports whether a process runs; one that only waits to be
// collected does not.
func processAlive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// children returns the processes whose parent is pid.
func children(pid int) []int {
	out, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		out, _ = exec.Command("pgrep", "-P", strconv.Itoa(pid)).Output()
	}
	var pids []int
	for _, word := range strings.Fields(string(out)) {
		if n, err := strconv.Atoi(word); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}

// Log returns what the node's server has written.
func (n *Node) Log() string {
	b, _ := os.ReadFile(n.LogFile)
	return string(b)
}

func (n *Node) printLog() {
	n.t.Logf("the log of %s (PostgreSQL %d) ends with:\n%s", n.Name, n.Major, tail(n.LogFile, 60))
}

func tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "(no log)"
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// freePort asks the kernel for a port nobody listens on.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
