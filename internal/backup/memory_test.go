package backup_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"tidemark/internal/pgtest"
	"tidemark/internal/repo/storetest"
)

var memoryFiles = flag.Int("memory-files", 50_000, "files of the cluster whose backup is measured")

// memoryBound is what a backup may take, however large the cluster is.
const memoryBound = 256 << 20

// TestMemory: the process that takes a backup of a cluster with many relations,
// into a directory, a bucket and another host at once, stays within its bound;
// so does the one after it, which compares, and one that comes in an order of
// the server's.
func TestMemory(t *testing.T) {
	s3, host := storetest.NewS3(t, false), storetest.NewSFTP(t)
	repos := []string{filepath.Join(t.TempDir(), "here"), s3.Location("pg"), host.Location("/pg")}
	pgtest.MustRun(t, "dbbackup", append([]string{"init"}, named(repos)...)...)
	n := noisy(t, 16)
	count := *memoryFiles
	dir := filepath.Join(n.Dir, "base", n.SQL("SELECT oid FROM pg_database WHERE datname = current_database()"))
	for i := range count {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(10_000_000+i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if i%4 == 0 { // one block, of zeros
			if err := os.Truncate(filepath.Join(dir, fmt.Sprint(10_000_000+i)), 8192); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, what := range []string{"full", "incremental", "streamed"} {
		args := append([]string{"create", "--quiet", "-d", n.ConnInfo()}, named(repos)...)
		if what == "streamed" {
			args = append(args, "--stream")
		}
		rss := measured(t, pgtest.Bin("dbbackup"), args...)
		t.Logf("%s backup of %d files in three repositories: at most %d MB", what, count, rss>>20)
		if rss > memoryBound {
			t.Errorf("the %s backup took %d MB", what, rss>>20)
		}
	}
}

// measureEnv makes the test binary run its arguments as a command and print the
// largest resident set that it had, in bytes. The kernel counts a process from its
// fork on, as large as the one that forked; this one is small, which a test
// binary that has run for minutes is not.
const measureEnv = "TIDEMARK_TEST_MEASURE"

func runMeasured() {
	cmd := exec.Command(os.Args[1], os.Args[2:]...)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss * 1024)
}

// measured runs a command and returns the largest resident set that it had.
func measured(t *testing.T, name string, args ...string) int64 {
	t.Helper()
	// By its path this account may not get at it.
	cmd := exec.Command("/proc/self/exe", append([]string{name}, args...)...)
	cmd.Env = append(os.Environ(), measureEnv+"=1")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	rss, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return rss
}
