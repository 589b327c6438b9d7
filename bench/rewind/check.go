package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"tidemark/bench/scratch"
	"tidemark/pkg/wal"
)

// checked is the best of what `dbrewind check` took, in one form of its
// output, and how much WAL it read.
type checked struct {
	form string
	wall time.Duration
	rss  int64 // the highest, bytes
	wal  int64
}

// check times `dbrewind check` as text and as JSON.
func (b *bench) check(sc scenario, source *scratch.Server) ([]checked, error) {
	out := []checked{{form: "--json"}, {form: "as text"}}
	for range b.rounds {
		for i := range out {
			if err := b.checkOnce(&out[i], sc, source); err != nil {
				return nil, err
			}
		}
	}
	out[1].wal = out[0].wal // only JSON tells
	return out, nil
}

func (b *bench) checkOnce(c *checked, sc scenario, source *scratch.Server) error {
	args := []string{"check", "-D", b.place.Cluster(sc.pristine, portOld).Data, "--source-server", source.Conninfo()}
	if c.form == "--json" {
		args = append(args, c.form)
	}
	report, err := os.Create(filepath.Join(b.place.Dir, "check.out"))
	if err != nil {
		return err
	}
	defer report.Close()
	cmd := b.place.Command(b.dbrewind, args...)
	cmd.Stdout = report
	begin := time.Now()
	err = cmd.Run()
	wall := time.Since(begin)
	var status *exec.ExitError
	if !errors.As(err, &status) || status.ExitCode() != 3 { // they diverged
		return fmt.Errorf("dbrewind check: %w", err)
	}
	if r, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		c.rss = max(c.rss, int64(r.Maxrss)*1024)
	}
	if c.wall == 0 || wall < c.wall {
		c.wall = wall
	}
	if c.form == "--json" && c.wal == 0 {
		c.wal, err = walRead(report)
		return err
	}
	return nil
}

var (
	targetEnd  = regexp.MustCompile(`(?s)"target": \{.*?\n    "end": "([0-9A-F/]+)"`)
	commonRedo = regexp.MustCompile(`(?s)"checkpoint": \{.*?"redo": "([0-9A-F/]+)"`)
)

// walRead is how much WAL lies between the last common checkpoint's redo point
// and the target's end. Both stand at the report's beginning; all of it would
// make this program large, and a child's memory is measured from its parent's.
func walRead(report *os.File) (int64, error) {
	head := make([]byte, 8<<10)
	n, err := report.ReadAt(head, 0)
	if n == 0 {
		return 0, err
	}
	end, redo := targetEnd.FindSubmatch(head[:n]), commonRedo.FindSubmatch(head[:n])
	if end == nil || redo == nil {
		return 0, fmt.Errorf("dbrewind check printed %s", head[:n])
	}
	to, err := wal.ParseLSN(string(end[1]))
	if err != nil {
		return 0, err
	}
	from, err := wal.ParseLSN(string(redo[1]))
	return int64(to - from), err
}

func (c *checked) print() {
	perGB := c.wall.Seconds() / (float64(c.wal) / 1e9)
	fmt.Printf("  dbrewind check, %-8s %.2f s for %s of WAL, %.2f s/GB   wanted %.1f   RSS %.0f MB%s%s\n", c.form+":", c.wall.Seconds(), scratch.MB(c.wal),
		perGB, wantedCheck, float64(c.rss)/1e6,
		// Of less than a GB it is the connection and the list of files that take the time.
		scratch.Missed(perGB > wantedCheck && c.wall > time.Second), scratch.Missed(float64(c.rss) > wantedRSS))
}
