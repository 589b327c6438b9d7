// Package pgtest gives tests real PostgreSQL servers: any installed major
// version, as root or not, several at once, nothing left behind.
//
// A test package calls Main from TestMain:
//
//	func TestMain(m *testing.M) { pgtest.Main(m, "dbbackup", "dbrecover") }
//
// and asks for servers with New. The servers listen on sockets of their own (on
// TCP only where a test wants it), run without fsync unless a test wants it, and
// end with the test, also when the test process is killed.
package pgtest

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"tidemark/internal/postgres"
)

// base is the directory of this test process; everything lies below it. Its
// path is short, for a socket's path may have no more than 107 bytes.
var base string

// Main builds the named commands, gives up root where the process has it
// (PostgreSQL does not run as root), runs the tests and exits.
func Main(m *testing.M, commands ...string) {
	flag.Parse()
	if fuzzing() {
		os.Exit(m.Run())
	}
	if err := setUp(commands); err != nil {
		fmt.Fprintln(os.Stderr, "pgtest:", err)
		os.Exit(2)
	}
	// The tests' results depend on installed servers, which go test's cache
	// does not see: leave no log for it (it could not be written either).
	flag.Set("test.testlogfile", "")
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-signals
		tearDown()
		os.Exit(130)
	}()
	code := m.Run()
	tearDown()
	os.Exit(code)
}

// fuzzing tells whether `go test -fuzz` runs: fuzz targets need no server, and
// write what they find where only the user who started them may.
func fuzzing() bool {
	f := flag.Lookup("test.fuzz")
	return f != nil && f.Value.String() != ""
}

func setUp(commands []string) error {
	var err error
	if base, err = os.MkdirTemp(scratch(), "tm"); err != nil {
		return err
	}
	if err := build(commands); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		if err := dropRoot(); err != nil {
			return err
		}
	}
	for _, name := range []string{"tmp", "home", "s", "tmpl"} {
		if err := os.Mkdir(filepath.Join(base, name), 0o700); err != nil {
			return err
		}
	}
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "PG") || (strings.HasPrefix(name, "TIDEMARK_") && !forTests(name)) {
			os.Unsetenv(name)
		}
	}
	os.Setenv("TIDEMARK_PG_CACHE", postgres.CacheDir()) // found by the old HOME
	os.Setenv("TMPDIR", filepath.Join(base, "tmp"))
	os.Setenv("HOME", filepath.Join(base, "home"))
	os.Setenv("PATH", filepath.Join(base, "bin")+string(os.PathListSeparator)+os.Getenv("PATH"))
	os.Setenv("PGUSER", "postgres")
	os.Setenv("LC_ALL", "C")
	os.Setenv("TZ", "UTC")
	return janitor()
}

// forTests tells whether a variable says to the tests, and not to the commands
// under test, what to do.
func forTests(name string) bool {
	return strings.HasPrefix(name, "TIDEMARK_PG_") || strings.HasPrefix(name, "TIDEMARK_STORES")
}

// scratch is where the base directory is made: where TMPDIR says (unless that
// path is too long), else in memory where there is room, else in /tmp.
func scratch() string {
	dir := os.Getenv("TMPDIR")
	if dir == "" {
		dir = memoryDir()
	}
	if dir == "" || len(dir) > 40 {
		return "/tmp"
	}
	return dir
}

// janitor starts a process that removes the base directory once this one has
// ended, however it ended: its standard input then reports the end of file.
func janitor() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command("/bin/sh", "-c", `trap '' INT TERM HUP; cat >/dev/null; i=0; while rm -rf "$0" 2>/dev/null; [ -e "$0" ] && [ $i -lt 50 ]; do sleep 0.1; i=$((i+1)); done`, base)
	cmd.Stdin = r
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	janitorPipe = w // held open for as long as this process lives
	return nil
}

var janitorPipe *os.File

// build compiles the commands into base/bin, still as the user who has the
// build cache.
func build(commands []string) error {
	bin := filepath.Join(base, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil || len(commands) == 0 {
		return err
	}
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	args := []string{"build", "-o", bin + string(filepath.Separator)}
	for _, name := range commands {
		args = append(args, "./cmd/"+name)
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", strings.Join(commands, ", "), err, out)
	}
	return nil
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", fmt.Errorf("no go.mod above the working directory")
		}
		dir = up
	}
}

// dropRoot makes the whole process an unprivileged one: user postgres where
// there is one, else nobody.
func dropRoot() error {
	u, err := user.Lookup("postgres")
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			return fmt.Errorf("the tests run as root and need user postgres or nobody: %w", err)
		}
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return err
	}
	openTestOutputs(uid, gid)
	if err := filepath.WalkDir(base, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, gid)
	}); err != nil {
		return err
	}
	if err := syscall.Setgroups([]int{gid}); err != nil {
		return err
	}
	if err := syscall.Setgid(gid); err != nil {
		return err
	}
	os.Setenv("USER", u.Username)
	os.Setenv("LOGNAME", u.Username)
	return syscall.Setuid(uid)
}

// openTestOutputs lets the unprivileged process write the files that go test
// asked for (profiles), which lie in a directory of root's.
func openTestOutputs(uid, gid int) {
	for _, name := range []string{"coverprofile", "cpuprofile", "memprofile", "mutexprofile", "blockprofile", "trace", "gocoverdir"} {
		f := flag.Lookup("test." + name)
		if f == nil || f.Value.String() == "" {
			continue
		}
		path := f.Value.String()
		if name != "gocoverdir" {
			if out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644); err == nil {
				out.Close()
			}
		}
		os.Chown(path, uid, gid)
		for dir := filepath.Dir(path); strings.Contains(dir, "go-build"); dir = filepath.Dir(dir) {
			if st, err := os.Stat(dir); err == nil {
				os.Chmod(dir, st.Mode().Perm()|0o011)
			}
		}
	}
}

var running struct {
	sync.Mutex
	nodes map[*Node]bool
}

func register(n *Node) {
	running.Lock()
	defer running.Unlock()
	if running.nodes == nil {
		running.nodes = map[*Node]bool{}
	}
	running.nodes[n] = true
}

// tearDown ends what tests may have left and removes the base directory.
func tearDown() {
	running.Lock()
	defer running.Unlock()
	for n := range running.nodes {
		n.kill()
	}
	if base != "" {
		os.RemoveAll(base)
	}
	if janitorPipe != nil {
		janitorPipe.Close()
	}
}

// Bin returns the path of a command that Main has built.
func Bin(command string) string { return filepath.Join(base, "bin", command) }

// BinDir is the directory of the commands that Main has built; it comes first on PATH.
func BinDir() string { return filepath.Join(base, "bin") }

// Result is how a command ended.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Run runs a command that Main has built and returns what it wrote and its exit
// code. It does not judge the code.
func Run(t testing.TB, command string, args ...string) Result {
	t.Helper()
	return RunEnv(t, nil, command, args...)
}

// RunEnv is Run with further environment variables ("NAME=value").
func RunEnv(t testing.TB, env []string, command string, args ...string) Result {
	t.Helper()
	if !filepath.IsAbs(command) {
		command = Bin(command)
	}
	cmd := exec.CommandContext(t.Context(), command, args...)
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatalf("running %s: %v", command, err)
	}
	code := cmd.ProcessState.ExitCode()
	if code < 0 {
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			code = 128 + int(ws.Signal())
		}
	}
	return Result{stdout.String(), stderr.String(), code}
}

// MustRun is Run for a command that has to succeed; it returns its standard output.
func MustRun(t testing.TB, command string, args ...string) string {
	t.Helper()
	r := Run(t, command, args...)
	if r.Code != 0 {
		t.Fatalf("%s %s: exit code %d\n%s%s", command, strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}
