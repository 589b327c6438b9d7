package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"tidemark/internal/postgres"
	"tidemark/pkg/wal"
)

// contender is one way of reading the WAL.
type contender struct {
	name  string
	cores int
	cmd   func() *exec.Cmd

	wall, cpu time.Duration // of the best round
	records   uint64
}

// compare runs the contenders in turn and prints the table of one workload.
func compare(w workload, rounds int) error {
	list, err := contenders(w)
	if err != nil {
		return err
	}
	for range rounds {
		for _, c := range list {
			if err := c.round(); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	size := float64(w.End - w.Start)
	base := list[0]
	fmt.Printf("\n%s: %.0f MB of WAL, %d records of %.0f bytes\n", w.Name, size/1e6, base.records, size/float64(base.records))
	fmt.Printf("  %-26s %9s %9s %8s %8s   %s\n", "", "wall ms", "CPU ms", "GB/s", "ratio", "wanted")
	for i, c := range list {
		ratio := base.wall.Seconds() / c.wall.Seconds()
		verdict := ""
		if i > 0 {
			verdict = fmt.Sprintf("%.1f", wanted[c.cores])
			if ratio < wanted[c.cores] {
				verdict += "  MISSED"
			}
			if c.records != base.records {
				return fmt.Errorf("%s read %d records, pg_waldump %d", c.name, c.records, base.records)
			}
		}
		fmt.Printf("  %-26s %9.1f %9.1f %8.2f %8.2f   %s\n", c.name, ms(c.wall), ms(c.cpu), size/c.wall.Seconds()/1e9, ratio, verdict)
	}
	return nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func contenders(w workload) ([]*contender, error) {
	bin, err := postgres.Find(major, "")
	if err != nil {
		return nil, err
	}
	if !bin.Has("pg_waldump") {
		return nil, fmt.Errorf("there is no pg_waldump in %s", bin.BinDir)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	scan := func(cores int) func() *exec.Cmd {
		return func() *exec.Cmd {
			cmd := pinned(cores, self, "-scan", w.Dir, w.Start.String(), w.End.String())
			cmd.Env = append(os.Environ(), fmt.Sprintf("GOMAXPROCS=%d", cores))
			return cmd
		}
	}
	return []*contender{
		{name: "pg_waldump --stats", cores: 1, cmd: func() *exec.Cmd {
			return pinned(1, bin.Path("pg_waldump"), "--stats", "-p", w.Dir, "-s", w.Start.String(), "-e", w.End.String())
		}},
		{name: "page map, one core", cores: 1, cmd: scan(1)},
		{name: "page map, two cores", cores: 2, cmd: scan(2)},
	}, nil
}

// pinned keeps a command on the first cores.
func pinned(cores int, name string, args ...string) *exec.Cmd {
	return exec.Command("taskset", append([]string{"-c", fmt.Sprintf("0-%d", cores-1), name}, args...)...)
}

var total = regexp.MustCompile(`(?m)^Total +(\d+) `)

// round runs the contender once and keeps its best times.
func (c *contender) round() error {
	cmd := c.cmd()
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	begin := time.Now()
	err := cmd.Run()
	wall := time.Since(begin)
	m := total.FindSubmatch(out.Bytes())
	if err != nil || m == nil {
		return fmt.Errorf("%v: %s%s", err, out.String(), stderr.String())
	}
	c.records, err = strconv.ParseUint(string(m[1]), 10, 64)
	if err != nil {
		return err
	}
	cpu := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if c.wall == 0 || wall < c.wall {
		c.wall = wall
	}
	if c.cpu == 0 || cpu < c.cpu {
		c.cpu = cpu
	}
	return nil
}

// scanOnce is what the benchmark's child process does.
func scanOnce(dir string, args []string) error {
	if len(args) != 2 {
		return errors.New("want a start and an end")
	}
	start, err := wal.ParseLSN(args[0])
	if err != nil {
		return err
	}
	end, err := wal.ParseLSN(args[1])
	if err != nil {
		return err
	}
	src := wal.SourceFunc(func(_ context.Context, n wal.SegmentNumber) (wal.Segment, error) {
		f, err := os.Open(filepath.Join(dir, wal.SegmentName(1, n, segmentSize)))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, wal.ErrNoSegment
		}
		return f, err
	})
	m, why, err := wal.ScanMap(context.Background(), src, wal.ScanOptions{
		Options: wal.Options{Start: start, End: end, SegmentSize: segmentSize},
	})
	if err != nil || why != nil {
		return errors.Join(err, why)
	}
	fmt.Printf("Total %d records: %v\n", m.Records, m)
	return nil
}
