package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidemark/bench/scratch"
)

// contender is one way to rewind.
type contender struct {
	name  string
	args  func(target, conninfo string) []string
	bytes func(out []byte) (int64, error) // from what it prints

	walls, cpus []time.Duration
	served      []time.Duration // CPU of the source's sessions
	moved       int64
	rss         int64 // the highest, bytes
}

func (b *bench) contenders() []*contender {
	ours := func(more ...string) func(target, conninfo string) []string {
		return func(target, conninfo string) []string {
			if b.cpuprofile != "" {
				return append([]string{b.self, "profiled"}, append(more, b.cpuprofile+"dbrewind"+strings.Join(more, ""), target, conninfo)...)
			}
			args := append([]string{b.dbrewind, "run", "-D", target, "--source-server", conninfo, "-R", "--json"}, more...)
			return append(args, b.commandFlags()...)
		}
	}
	all := []*contender{
		{name: "pg_rewind", bytes: announced, args: func(target, conninfo string) []string {
			return []string{b.place.Bin.Path("pg_rewind"), "-D", target, "--source-server", conninfo, "-R", "-P"}
		}},
		{name: "dbrewind", bytes: counted, args: ours()},
		{name: "dbrewind --no-undo", bytes: counted, args: ours("--no-undo")},
	}
	return slices.DeleteFunc(all, func(c *contender) bool { return !strings.Contains(c.name, b.with) })
}

var needToCopy = regexp.MustCompile(`\d+/(\d+) kB \(\d+%\) copied`)

// announced is pg_rewind's own figure, in steps of 1 kB.
func announced(out []byte) (int64, error) {
	m := needToCopy.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("pg_rewind does not say how much it copies: %s", out)
	}
	kb, err := strconv.ParseInt(string(m[1]), 10, 64)
	return kb * 1024, err
}

// counted is dbrewind's figure.
func counted(out []byte) (int64, error) {
	var res struct {
		Bytes    int64 `json:"bytes"`
		Diverged bool  `json:"diverged"`
	}
	if err := json.Unmarshal(out, &res); err != nil || !res.Diverged {
		return 0, fmt.Errorf("dbrewind printed %s: %w", out, err)
	}
	return res.Bytes, nil
}

// round gives the contender a fresh copy of the old primary and runs it.
func (b *bench) round(ctx context.Context, sc scenario, source *scratch.Server, c *contender) error {
	work, err := b.place.Cluster(sc.pristine, portOld).CopyTo("work", portWork)
	if err != nil {
		return err
	}
	if err := scratch.Settle(b.place.Dir); err != nil {
		return err
	}
	args := c.args(work.Data, source.Conninfo())
	if b.strace != "" {
		args = append([]string{"strace", "-f", "-c", "-w", "-o", b.strace + sc.name + "-" + fmt.Sprint(len(c.walls)) + c.name}, args...)
	}
	usual, err := source.Processes()
	if err != nil {
		return err
	}
	before, err := source.SessionsCPU(usual)
	if err != nil {
		return err
	}
	out, u, err := scratch.Measured(work.Command(args[0], args[1:]...))
	if err != nil {
		return err
	}
	after, err := source.SessionsCPU(usual)
	if err != nil {
		return err
	}
	c.served = append(c.served, after-before)
	if c.moved, err = c.bytes(out); err != nil {
		return err
	}
	c.walls, c.cpus, c.rss = append(c.walls, u.Wall), append(c.cpus, u.CPU), max(c.rss, u.RSS)
	if len(c.walls) > 1 {
		return nil
	}
	return follows(ctx, work, source)
}

const sums = "SELECT concat_ws(' ', count(*), sum(delta), (SELECT sum(abalance) FROM pgbench_accounts)) FROM pgbench_history"

// follows starts the result as a standby and waits until it is where the
// source is.
func follows(ctx context.Context, work, source *scratch.Server) (err error) {
	if err := work.Start(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, work.Stop("immediate")) }()
	if err := caughtUp(ctx, work, source); err != nil {
		return err
	}
	want, err := source.Text(ctx, sums)
	if err != nil {
		return err
	}
	if got, err := work.Text(ctx, sums); err != nil || got != want {
		return fmt.Errorf("the rewound server has %s, its source %s: %w", got, want, err)
	}
	return nil
}
