package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidemark/internal/progress"
)

// The tests of what changes a whole process run this test binary again as one
// of these commands.
type processGrammar struct {
	Hang   hangCmd   `cmd:"" help:"Wait for a signal."`
	Become becomeCmd `cmd:"" help:"Become a directory's owner."`
	Ask    askCmd    `cmd:"" help:"Ask."`
	Draw   drawCmd   `cmd:"" help:"Show progress."`
	Nice   niceCmd   `cmd:"" help:"Stand back."`
}

type hangCmd struct {
	Stubborn bool `help:"Ignore the first signal."`
}

func (c *hangCmd) Run(ctx context.Context, e *Env) error {
	fmt.Fprintln(e.Stdout(), "ready")
	<-ctx.Done()
	fmt.Fprintln(e.Stdout(), "cancelled")
	if c.Stubborn {
		select {}
	}
	return ctx.Err()
}

type becomeCmd struct {
	DataDirFlag
	OwnerFlag
}

func (c *becomeCmd) Run(e *Env) error {
	if err := BecomeOwner(c.PGData, c.Owner); err != nil {
		return err
	}
	path := filepath.Join(c.PGData, "written")
	if err := os.MkdirAll(c.PGData, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	_, err := fmt.Fprintf(e.Stdout(), "%d %d %s\n", os.Getuid(), os.Geteuid(), os.Getenv("HOME"))
	return err
}

type askCmd struct{}

func (askCmd) Run(e *Env) error { return e.Confirm("Remove it all?") }

type drawCmd struct{}

func (drawCmd) Run(e *Env) error {
	p := e.Progress()
	p.Phase("copying files", 100<<20, progress.Bytes)
	for range 8 {
		p.Add(10 << 20)
		time.Sleep(barEvery / 2)
	}
	p.Note("a note above the bar")
	return e.Render(map[string]int{"copied": 80}, func(t *Text) { t.Line("copied 80") })
}

func TestMain(m *testing.M) {
	if os.Getenv("TIDEMARK_TEST_PROCESS") != "" {
		os.Exit(Main("process", "For tests.", &processGrammar{}))
	}
	os.Exit(m.Run())
}

func process(args ...string) (*exec.Cmd, *bytes.Buffer, *bytes.Buffer) {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "TIDEMARK_TEST_PROCESS=1")
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	return cmd, &out, &errb
}

// signalled starts a hanging process and sends it signals, one after each of
// the lines that it prints.
func signalled(t *testing.T, args ...string) (code int, stderr string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "TIDEMARK_TEST_PROCESS=1")
	var errb bytes.Buffer
	cmd.Stderr = &errb
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	for {
		if _, err := pipe.Read(buf); err != nil {
			break
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
	}
	_ = cmd.Wait()
	return cmd.ProcessState.ExitCode(), errb.String()
}

func TestSignals(t *testing.T) {
	for _, args := range [][]string{{"hang"}, {"hang", "--stubborn"}} {
		code, stderr := signalled(t, args...)
		if code != 130 || !strings.Contains(stderr, "ending cleanly; a second signal ends at once") {
			t.Errorf("%v: code %d, %q", args, code, stderr)
		}
	}
}

func TestConfirmOffTerminal(t *testing.T) {
	cmd, _, errb := process("ask")
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != 6 || !strings.Contains(errb.String(), "hint: run it again with --yes") {
		t.Errorf("%v: %s", err, errb)
	}
	cmd, _, errb = process("ask", "--yes")
	if err := cmd.Run(); err != nil {
		t.Errorf("--yes: %v: %s", err, errb)
	}
}

func TestBecomeOwner(t *testing.T) {
	if os.Getuid() != 0 {
		cmd, out, errb := process("become", "-D", filepath.Join(t.TempDir(), "new"))
		if err := cmd.Run(); err != nil || !strings.HasPrefix(out.String(), fmt.Sprint(os.Getuid())) {
			t.Errorf("%v: %s%s", err, out, errb)
		}
		return
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "tidemark-owner")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	new := filepath.Join(dir, "deep", "new")

	cmd, _, errb := process("become", "-D", new)
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != 6 || !strings.Contains(errb.String(), "hint: name the user that PostgreSQL runs as with --owner") {
		t.Errorf("root's directory: %v: %s", err, errb)
	}
	var uid, gid int
	fmt.Sscan(nobody.Uid+" "+nobody.Gid, &uid, &gid)
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	cmd, out, errb := process("become", "-D", new)
	if err := cmd.Run(); err != nil || !strings.HasPrefix(out.String(), nobody.Uid+" "+nobody.Uid+" "+nobody.HomeDir) {
		t.Errorf("%v: %s%s", err, out, errb)
	}
	info, err := os.Stat(filepath.Join(new, "written"))
	if err != nil || info.Sys().(*syscall.Stat_t).Uid != uint32(uid) {
		t.Errorf("the file does not belong to nobody: %v", err)
	}
	cmd, _, errb = process("become", "-D", filepath.Join(dir, "other"), "--owner", "root")
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != 6 {
		t.Errorf("--owner root: %v: %s", err, errb)
	}
}

// TestBar draws on a terminal, as script(1) provides one.
func TestBar(t *testing.T) {
	script, err := exec.LookPath("script")
	if err != nil {
		t.Fatal("script(1) of util-linux, which gives a program a terminal, is not installed")
	}
	cmd := exec.Command(script, "-qec", os.Args[0]+" draw", "/dev/null")
	cmd.Env = append(os.Environ(), "TIDEMARK_TEST_PROCESS=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"copying files", "%", "MiB/s", "a note above the bar\r\n", "copied 80\r\n"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q lacks %q", out, want)
		}
	}
}
