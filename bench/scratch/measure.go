package scratch

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is what a command took, with those that it started and waited for.
type Usage struct {
	Wall, CPU time.Duration
	RSS       int64 // the largest of its processes, bytes
}

// Measured runs a command and returns its standard output, or its messages
// where it printed nothing else.
func Measured(cmd *exec.Cmd) (out []byte, u Usage, err error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	begin := time.Now()
	err = cmd.Run()
	u.Wall = time.Since(begin)
	if err != nil {
		return nil, u, fmt.Errorf("%s: %w\n%s%s", filepath.Base(cmd.Path), err, stdout.Bytes(), stderr.Bytes())
	}
	u.CPU = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if r, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		u.RSS = int64(r.Maxrss) * 1024
	}
	if stdout.Len() == 0 {
		return stderr.Bytes(), u, nil
	}
	return stdout.Bytes(), u, nil
}

// Best and Median sum up the times of several rounds.
func Best(d []time.Duration) time.Duration { return slices.Min(d) }

// Median is the middle one, the later of two.
func Median(d []time.Duration) time.Duration {
	return slices.Sorted(slices.Values(d))[len(d)/2]
}

// Settle writes the file system of dir to disk, so that no contender pays for
// what was written before it.
func Settle(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// Warm reads a directory into the page cache.
func Warm(dir string) error {
	buf := make([]byte, 1<<20)
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		for err == nil {
			_, err = f.Read(buf)
		}
		return f.Close()
	})
}

// SizeOf sums up the files below a directory for which want says yes; nil
// means all of them.
func SizeOf(dir string, want func(path string) bool) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() || want != nil && !want(path) {
			return err
		}
		fi, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			sum += fi.Size()
		}
		return err
	})
	return sum, err
}

// Missed marks a figure in a table that is not as wanted.
func Missed(is bool) string {
	if is {
		return "  MISSED"
	}
	return ""
}

// MB is a size in a table.
func MB(n int64) string { return fmt.Sprintf("%.0f MB", float64(n)/1e6) }
