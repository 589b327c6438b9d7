package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// What a backup costs those who work on the server: pgbench runs at a steady
// rate, and of every transaction the time from when it was due to its end is
// noted. The windows in which a backup runs are compared with those in which
// none does, of the same run.
const (
	steadyRate    = 300 // transactions per second
	steadyClients = 4
	quietWindow   = 10 * time.Second
	longestWindow = 25 * time.Second // a backup that takes longer is interrupted
	gentleRate    = "30MB"
)

// What is wanted of the 99th percentile while a backup runs, in units of that
// without one.
const (
	wantedLatency = 2.0
	wantedGentle  = 1.25 // "does not move": as far as that can be told
)

// window is a part of the run.
type window struct {
	name       string
	from, to   time.Time
	latencies  []time.Duration
	wanted     float64
	wantedFrom int // index of the window to compare with
}

// latency measures and prints the table.
func (b *bench) latency(ctx context.Context) (err error) {
	if err := b.server.Start(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.server.Stop("fast")) }()
	dir, err := b.empty("latency")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	logs, err := b.empty("latency-logs")
	if err != nil {
		return err
	}
	defer os.RemoveAll(logs)
	s := b.server
	load := b.place.Command(b.place.Bin.Path("pgbench"), "-n", "-M", "prepared", "-c", fmt.Sprint(steadyClients), "-j", "2", "-R", fmt.Sprint(steadyRate),
		"-T", "600", "--log", "--log-prefix="+filepath.Join(logs, "tx"), "-h", s.Dir, "-p", fmt.Sprint(s.Port), "-U", "postgres", "postgres")
	// A session of its own, as that of an application elsewhere; commits are
	// waited for, as by default.
	load.SysProcAttr.Setsid = true
	load.Env = append(load.Env, "PGOPTIONS=-c synchronous_commit=on")
	if err := load.Start(); err != nil {
		return err
	}
	windows, err := b.windows(ctx, dir)
	load.Process.Signal(syscall.SIGTERM)
	load.Wait() // it was told to end
	if err != nil {
		return err
	}
	if err := readLatencies(logs, windows); err != nil {
		return err
	}
	printLatencies(windows)
	return nil
}

// windows runs the backups, each behind a time of rest.
func (b *bench) windows(ctx context.Context, dir string) ([]*window, error) {
	var out []*window
	time.Sleep(3 * time.Second) // pgbench connects
	add := func(name string, wanted float64, do func() error) error {
		w := &window{name: name, from: time.Now(), wanted: wanted, wantedFrom: len(out) - 1}
		err := do()
		w.to = time.Now()
		out = append(out, w)
		return err
	}
	rest := func() error { time.Sleep(quietWindow); return nil }
	create := func(repo string, flags ...string) func() error {
		return func() error {
			args := append([]string{"create", "--full", "--quiet", "--repo", filepath.Join(dir, repo), "-d", b.server.Conninfo()}, append(flags, b.commandFlags()...)...)
			return interrupted(ctx, b.place.Command(b.dbbackup, args...))
		}
	}
	for _, step := range []struct {
		name   string
		wanted float64
		do     func(repo string) func() error
	}{
		{"dbbackup create", wantedLatency, func(repo string) func() error { return create(repo) }},
		{"dbbackup create --rate " + gentleRate, wantedGentle, func(repo string) func() error { return create(repo, "--rate", gentleRate) }},
	} {
		repo := fmt.Sprint("repo", len(out))
		if err := b.run(b.dbbackup, "init", "--repo", filepath.Join(dir, repo)); err != nil {
			return nil, err
		}
		// The checkpoint belongs to the backup, and to no other window.
		if err := errors.Join(b.server.Exec(ctx, "CHECKPOINT"), add("none", 0, rest), add(step.name, step.wanted, step.do(repo))); err != nil {
			return nil, err
		}
		if err := os.RemoveAll(filepath.Join(dir, repo)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// interrupted runs a command, and ends it after the longest window.
func interrupted(ctx context.Context, cmd *exec.Cmd) error {
	var text strings.Builder
	cmd.Stdout, cmd.Stderr = &text, &text
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := time.AfterFunc(longestWindow, func() { cmd.Process.Signal(os.Interrupt) })
	defer stop.Stop()
	err := cmd.Wait()
	if err != nil && cmd.ProcessState.ExitCode() != 130 {
		return fmt.Errorf("%w\n%s", err, text.String())
	}
	return ctx.Err()
}

// readLatencies sorts pgbench's lines into the windows: of each transaction
// its client, number, microseconds, script, and when it ended.
func readLatencies(dir string, windows []*window) error {
	files, err := filepath.Glob(filepath.Join(dir, "tx*"))
	if err != nil {
		return err
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) < 6 {
				continue
			}
			took, err1 := strconv.ParseInt(fields[2], 10, 64)
			sec, err2 := strconv.ParseInt(fields[4], 10, 64)
			usec, err3 := strconv.ParseInt(fields[5], 10, 64)
			if err := errors.Join(err1, err2, err3); err != nil {
				continue // cut off, or skipped
			}
			end := time.Unix(sec, usec*1000)
			for _, w := range windows {
				if end.After(w.from) && end.Before(w.to) {
					w.latencies = append(w.latencies, time.Duration(took)*time.Microsecond)
				}
			}
		}
		if err := errors.Join(lines.Err(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (w *window) percentile(p float64) time.Duration {
	if len(w.latencies) == 0 {
		return 0
	}
	slices.Sort(w.latencies)
	return w.latencies[min(int(float64(len(w.latencies))*p/100), len(w.latencies)-1)]
}

func printLatencies(windows []*window) {
	fmt.Printf("\npgbench at %d transactions per second with %d clients, while this runs:\n", steadyRate, steadyClients)
	fmt.Printf("  %-30s %8s %8s %8s %8s %8s %8s %8s\n", "", "s", "tx", "p50 ms", "p99 ms", "max ms", "ratio", "wanted")
	for _, w := range windows {
		p99 := w.percentile(99)
		ratio, wanted := "", ""
		if w.wanted > 0 {
			r := p99.Seconds() / max(windows[w.wantedFrom].percentile(99).Seconds(), 1e-6)
			ratio, wanted = fmt.Sprintf("%.2f", r), fmt.Sprintf("%.2f", w.wanted)
			if r > w.wanted {
				wanted += "  MISSED"
			}
		}
		fmt.Printf("  %-30s %8.1f %8d %8.2f %8.2f %8.2f %8s %8s\n", w.name, w.to.Sub(w.from).Seconds(), len(w.latencies), ms(w.percentile(50)), ms(p99), ms(w.percentile(100)), ratio, wanted)
	}
}

func ms(d time.Duration) float64 { return d.Seconds() * 1000 }
