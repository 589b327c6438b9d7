package main

import (
	"bufio"
	"cmp"
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

	"tidemark/bench/scratch"
)

// What a backup costs those who work on the server: pgbench runs at a steady
// rate, and of every transaction the time from when it was due to its end is
// noted. The windows in which a backup runs are compared with those in which
// none does, of the same run. The p99 of seconds is a matter of chance as well:
// the median of the rounds' ratios counts, of those in which the machine had its
// processors to itself, if it had so in any.
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
	mostStolen    = 0.04 // of the processors' time, by others on the same host
)

// window is a part of the run.
type window struct {
	name      string
	from, to  time.Time
	latencies []time.Duration
	stolen    float64 // part of the processors' time
	wanted    float64 // 0: none
	rest      *window // to compare with
}

// latency measures and prints the table.
func (b *bench) latency(ctx context.Context) (err error) {
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
	if err := errors.Join(b.server.Start(), scratch.Warm(b.server.Data)); err != nil {
		return err
	}
	unused, err := b.recycled(ctx, recycledSegments)
	defer func() { err = errors.Join(err, b.server.Stop("fast"), unused()) }()
	if err != nil {
		return err
	}
	windows, err := b.underLoad(ctx, dir, filepath.Join(logs, "tx"))
	if err != nil {
		return err
	}
	if err := readLatencies(logs, windows); err != nil {
		return err
	}
	printLatencies(windows)
	return nil
}

// underLoad runs the rounds beside pgbench, which notes its transactions in
// files that begin with prefix.
func (b *bench) underLoad(ctx context.Context, dir, prefix string) (out []*window, err error) {
	load := b.place.Command(b.pgbenchPath, b.pgbenchArgs("-n", "-M", "prepared", "-c", fmt.Sprint(steadyClients), "-j", "2", "-R", fmt.Sprint(steadyRate),
		"-T", "3600", "--log", "--log-prefix="+prefix)...)
	// A session of its own, as that of an application elsewhere; commits are
	// waited for, as by default.
	load.SysProcAttr.Setsid = true
	load.Env = append(load.Env, "PGOPTIONS=-c synchronous_commit=on")
	if err := load.Start(); err != nil {
		return nil, err
	}
	defer func() {
		load.Process.Signal(syscall.SIGTERM)
		load.Wait() // it was told to end
	}()
	time.Sleep(3 * time.Second) // it connects
	for range b.rounds {
		w, err := b.windows(ctx, dir)
		if err != nil {
			return nil, err
		}
		out = append(out, w...)
	}
	return out, nil
}

// windows runs the backups, each behind a time of rest.
func (b *bench) windows(ctx context.Context, dir string) ([]*window, error) {
	var out []*window
	add := func(name string, wanted float64, do func() error) error {
		w := &window{name: name, from: time.Now(), wanted: wanted}
		if wanted > 0 {
			w.rest = out[len(out)-1]
		}
		ticks, stolen := scratch.Stolen()
		err := do()
		w.to = time.Now()
		t, s := scratch.Stolen()
		w.stolen = float64(s-stolen) / float64(max(t-ticks, 1))
		out = append(out, w)
		return err
	}
	rest := func() error { time.Sleep(quietWindow); return nil }
	create := func(repo string, flags ...string) func() error {
		return func() error {
			args := append([]string{"create", "--full", "--quiet", "--repo", filepath.Join(dir, repo), "-d", b.server.Conninfo()}, append(flags, b.commandFlags()...)...)
			cmd := b.place.Command(b.dbbackup, args...)
			cmd.SysProcAttr.Setsid = true // as cron starts it
			return interrupted(ctx, cmd)
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
		// The checkpoint belongs to the backup, and to no other window; nor does
		// the removal of the backup before.
		if err := errors.Join(scratch.Settle(b.place.Dir), b.server.Exec(ctx, "CHECKPOINT"), add("none", 0, rest), add(step.name, step.wanted, step.do(repo))); err != nil {
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

// ratio is the 99th percentile in units of that at rest.
func (w *window) ratio() float64 {
	return w.percentile(99).Seconds() / max(w.rest.percentile(99).Seconds(), 1e-6)
}

func (w *window) undisturbed() bool { return max(w.stolen, w.rest.stolen) <= mostStolen }

func printLatencies(windows []*window) {
	fmt.Printf("\npgbench at %d transactions per second with %d clients, while this runs:\n", steadyRate, steadyClients)
	fmt.Printf("  %-30s %8s %8s %8s %8s %8s %8s %8s\n", "", "s", "tx", "p50 ms", "p99 ms", "max ms", "stolen %", "ratio")
	var names []string
	with := map[string][]*window{}
	for _, w := range windows {
		ratio := ""
		if w.rest != nil {
			if with[w.name] == nil {
				names = append(names, w.name)
			}
			with[w.name] = append(with[w.name], w)
			ratio = fmt.Sprintf("%.2f", w.ratio())
		}
		fmt.Printf("  %-30s %8.1f %8d %8.2f %8.2f %8.2f %8.1f %8s\n", w.name, w.to.Sub(w.from).Seconds(), len(w.latencies),
			ms(w.percentile(50)), ms(w.percentile(99)), ms(w.percentile(100)), 100*w.stolen, ratio)
	}
	for _, name := range names {
		counted := slices.DeleteFunc(slices.Clone(with[name]), func(w *window) bool { return !w.undisturbed() })
		how := fmt.Sprintf("of %d undisturbed rounds", len(counted))
		if len(counted) == 0 {
			counted, how = with[name], "every round was disturbed"
		}
		slices.SortFunc(counted, func(a, b *window) int { return cmp.Compare(a.ratio(), b.ratio()) })
		median := counted[len(counted)/2]
		fmt.Printf("  %s: ratio %.2f (median, %s), wanted %.2f%s\n", name, median.ratio(), how, median.wanted, scratch.Missed(median.ratio() > median.wanted))
	}
}

func ms(d time.Duration) float64 { return d.Seconds() * 1000 }
