package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"tidemark/bench/scratch"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// archiver is one way to archive WAL.
type archiver struct {
	name    string
	why     string
	prepare func(dir string) error
	command func(dir, data, segment string) *exec.Cmd
	walls   []time.Duration
	size    int64
}

// pushes measures archiving: the segments wait, and the program is called for
// one after another, as the server does.
func (b *bench) pushes(context.Context) error {
	segments, err := b.segments()
	if err != nil {
		return err
	}
	list := b.archivers()
	for range b.rounds {
		for _, a := range list {
			if a.why == "" {
				if err := b.archive(a, segments); err != nil {
					return err
				}
			}
		}
	}
	total := float64(len(segments)) * (16 << 20)
	fmt.Printf("\narchiving %d waiting segments (%s), called one at a time\n", len(segments), scratch.MB(int64(total)))
	fmt.Printf("  %-28s %8s %8s %8s %8s\n", "", "best s", "median s", "MB/s", "size MB")
	rate := map[string]float64{}
	for _, a := range list {
		if a.why != "" {
			fmt.Printf("  %-28s %s\n", a.name, a.why)
			continue
		}
		best := scratch.Best(a.walls).Seconds()
		rate[a.name] = total / best / 1e6
		fmt.Printf("  %-28s %8.2f %8.2f %8.0f %8.1f\n", a.name, best, scratch.Median(a.walls).Seconds(), rate[a.name], float64(a.size)/1e6)
	}
	fmt.Printf("  wanted: at least pgbackrest's rate%s\n", scratch.Missed(rate[list[0].name] < rate[list[1].name]))
	return nil
}

// segments are those of the filling that wait: from all over it, so that
// random bytes have their part.
func (b *bench) segments() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(b.server.Data, "pg_wal"))
	if err != nil {
		return nil, err
	}
	var all []string
	for _, e := range entries {
		if f, ok := wal.ParseFileName(e.Name()); ok && f.Kind == wal.FileSegment {
			all = append(all, e.Name())
		}
	}
	all = all[:max(0, len(all)-2)] // the last ones may not be whole
	if len(all) < b.push {
		return nil, fmt.Errorf("the cluster holds %d segments, not %d", len(all), b.push)
	}
	out := make([]string, b.push)
	for i := range out {
		out[i] = all[i*len(all)/b.push]
	}
	return out, nil
}

func (b *bench) archivers() []*archiver {
	ours := &archiver{name: "dbbackup push",
		prepare: func(dir string) error { return b.run(b.dbbackup, "init", "--repo", dir) },
		command: func(dir, data, segment string) *exec.Cmd {
			cmd := b.place.Command(b.dbbackup, "push", "--repo", dir, "pg_wal/"+segment)
			cmd.Dir = data
			return cmd
		}}
	backrest := &archiver{name: "pgbackrest archive-push async", why: "not installed"}
	if path, err := exec.LookPath("pgbackrest"); err == nil {
		backrest.why = ""
		spool := filepath.Join(b.place.Dir, "pgbackrest.spool")
		backrest.prepare = func(dir string) error {
			if err := errors.Join(os.RemoveAll(spool), os.Mkdir(spool, 0o750), b.place.Chown(spool), b.server.Start()); err != nil {
				return err
			}
			return errors.Join(b.stanza(path, dir), b.server.Stop("fast"))
		}
		backrest.command = func(dir, data, segment string) *exec.Cmd {
			args := append(b.backrest(path, dir, data), "--archive-async", "--spool-path="+spool, "--process-max=2", "--compress-type=zst", "--compress-level=3", "archive-push", "pg_wal/"+segment)
			cmd := b.place.Command(args[0], args[1:]...)
			cmd.Dir = data
			return cmd
		}
	}
	cp := &archiver{name: "cp and fsync", prepare: func(string) error { return nil },
		command: func(dir, data, segment string) *exec.Cmd {
			to := filepath.Join(dir, segment)
			cmd := b.place.Command("sh", "-c", `cp "$1" "$2" && sync "$2"`, "sh", "pg_wal/"+segment, to)
			cmd.Dir = data
			return cmd
		}}
	return []*archiver{ours, backrest, cp}
}

// archive is one round: a data directory with nothing but what archiving
// needs, whose segments are links to the cluster's.
func (b *bench) archive(a *archiver, segments []string) error {
	repo, err := b.empty("archive")
	if err != nil {
		return err
	}
	if err := a.prepare(repo); err != nil {
		return err
	}
	data, err := b.waiting(segments)
	if err != nil {
		return err
	}
	if err := scratch.Settle(b.place.Dir); err != nil {
		return err
	}
	status := filepath.Join(data, "pg_wal", "archive_status")
	begin := time.Now()
	for _, s := range segments {
		if out, err := a.command(repo, data, s).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", a.name, err, out)
		}
		if err := os.Rename(filepath.Join(status, s+".ready"), filepath.Join(status, s+".done")); err != nil {
			return err
		}
	}
	a.walls = append(a.walls, time.Since(begin))
	a.size, err = scratch.SizeOf(repo, nil)
	return errors.Join(err, os.RemoveAll(repo), os.RemoveAll(data))
}

func (b *bench) waiting(segments []string) (string, error) {
	data, err := b.empty("waiting")
	if err != nil {
		return "", err
	}
	for _, dir := range []string{"global", "pg_wal", "pg_wal/archive_status"} {
		path := filepath.Join(data, dir)
		if err := errors.Join(os.Mkdir(path, 0o700), b.place.Chown(path)); err != nil {
			return "", err
		}
	}
	links := []string{volume.ControlPath, "PG_VERSION"}
	for _, s := range segments {
		links = append(links, "pg_wal/"+s)
		ready := filepath.Join(data, "pg_wal", "archive_status", s+".ready")
		if err := errors.Join(os.WriteFile(ready, nil, 0o600), b.place.Chown(ready)); err != nil {
			return "", err
		}
	}
	for _, name := range links {
		if err := os.Link(filepath.Join(b.server.Data, name), filepath.Join(data, name)); err != nil {
			return "", err
		}
	}
	return data, nil
}
