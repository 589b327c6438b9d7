package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

type niceCmd struct{ NiceFlag }

// Run prints the nice values of the process's threads, those made later
// included, and its session's group.
func (c *niceCmd) Run(e *Env) error {
	if err := c.StandBack(e); err != nil {
		return err
	}
	var made, end = make(chan struct{}), make(chan struct{})
	for range 4 {
		go func() {
			runtime.LockOSThread()
			made <- struct{}{}
			<-end
		}()
		<-made
	}
	defer close(end)
	stats, err := filepath.Glob("/proc/self/task/*/stat")
	if err != nil {
		return err
	}
	for _, name := range stats {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		fmt.Fprintf(e.Stdout(), "thread %s\n", strings.Fields(rest)[16]) // field 19 of proc(5)
	}
	if text, err := os.ReadFile("/proc/self/autogroup"); err == nil && len(text) > 0 {
		fmt.Fprintf(e.Stdout(), "session %s\n", text)
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// TestStandBack looks at every thread: on Linux each has a nice value of its own.
func TestStandBack(t *testing.T) {
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := os.ReadFile("/proc/self/autogroup")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   []string
		setsid bool
		nice   int
	}{
		{[]string{"nice", "--nice", "0"}, true, 0},
		{[]string{"nice"}, false, DefaultNice},
		{[]string{"nice"}, true, DefaultNice},
		{[]string{"nice", "--nice", "15"}, true, 15},
	} {
		thread := fmt.Sprint(max(20-raw, c.nice)) // never less than this test's own
		cmd, out, errb := process(c.args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: c.setsid}
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v: %v: %s", c.args, err, errb)
		}
		threads := 0
		for _, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
			switch what, rest, _ := strings.Cut(line, " "); what {
			case "thread":
				if threads++; rest != thread {
					t.Errorf("%v: a thread has %s", c.args, rest)
				}
			case "session":
				if c.setsid && !strings.HasSuffix(rest, fmt.Sprint("nice ", c.nice)) {
					t.Errorf("%v, in a session of its own: %s", c.args, rest)
				}
				if !c.setsid && rest != strings.TrimSpace(string(ours)) {
					t.Errorf("%v: another's session became %s", c.args, rest)
				}
			}
		}
		if threads < 5 {
			t.Errorf("%v: %d threads", c.args, threads)
		}
	}
	cmd, _, errb := process("nice", "--nice", "-3")
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != 64 {
		t.Errorf("--nice -3: %v: %s", err, errb)
	}
}
