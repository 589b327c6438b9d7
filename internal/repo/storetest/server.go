// Package storetest gives tests real stores: versitygw, an S3 server over a
// directory, and sshd with its sftp subsystem, both on a port of their own and
// as an unprivileged user, with nothing left behind; and a proxy that makes a
// store misbehave.
package storetest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
)

// startLimit bounds how long a server may take to listen.
const startLimit = 30 * time.Second

// program finds a program on PATH, else in the given directories. Where it is
// missing the test is skipped, or fails if TIDEMARK_STORES=required.
func program(t testing.TB, name string, dirs ...string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		if abs, err := filepath.Abs(path); err == nil {
			return abs
		}
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if st, err := os.Stat(path); err == nil && st.Mode()&0o111 != 0 {
			return path
		}
	}
	const advice = "scripts/stores.sh installs it"
	if os.Getenv("TIDEMARK_STORES") == "required" {
		t.Fatalf("%s is missing; %s", name, advice)
	}
	t.Skipf("%s is missing; %s", name, advice)
	return ""
}

// cacheDirs are where scripts/stores.sh puts what it builds.
func cacheDirs() []string {
	dirs := []string{"/var/cache/tidemark/bin"}
	if d := os.Getenv("TIDEMARK_STORES_CACHE"); d != "" {
		dirs = append([]string{d}, dirs...)
	}
	if d, err := os.UserCacheDir(); err == nil {
		dirs = append(dirs, filepath.Join(d, "tidemark", "bin"))
	}
	return dirs
}

// freePort returns a port on which nothing listens now.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// process is a server of a test.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	mu   sync.Mutex
	log  bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (p *process) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// start runs a server until the test ends, or this process does, and waits
// until it listens on a port.
func start(t testing.TB, port int, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p, p
	cmd.WaitDelay = time.Second // its children hold the log open as well
	dieWithParent(cmd)
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the kernel's parent is this thread
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.stop()
		if t.Failed() && testing.Verbose() {
			t.Logf("%s:\n%s", filepath.Base(cmd.Path), p)
		}
	})
	if err := p.awaitPort(port); err != nil {
		t.Fatalf("%v\n%s", err, p)
	}
	return p
}

func (p *process) awaitPort(port int) error {
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	for deadline := time.Now().Add(startLimit); time.Now().Before(deadline); {
		select {
		case <-p.done:
			return fmt.Errorf("%s has ended", filepath.Base(p.cmd.Path))
		default:
		}
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			c.Close()
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%s does not listen on %s", filepath.Base(p.cmd.Path), addr)
}

func (p *process) stop() {
	p.cmd.Process.Kill()
	<-p.done
}
