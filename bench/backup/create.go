package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"tidemark/bench/scratch"
)

// create measures full and incremental backups, and prints the tables.
func (b *bench) create(ctx context.Context) (err error) {
	if err := b.server.Start(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.server.Stop("fast")) }()
	if err := scratch.Warm(b.server.Data); err != nil {
		return err
	}
	list := b.programs()
	for range b.rounds {
		if err := b.round(ctx, list); err != nil {
			return err
		}
	}
	size, err := scratch.SizeOf(b.server.Data, func(path string) bool { return !strings.Contains(path, "/pg_wal/") })
	if err != nil {
		return err
	}
	fmt.Printf("\nfull backup: %s without WAL, %d of it random bytes; %d rounds\n", scratch.MB(size), b.noise, b.rounds)
	table(list, func(p *program) *runs { return &p.fullRuns }, wantFull(list))
	fmt.Printf("\nincremental backup after %d pgbench transactions\n", b.tx)
	table(list, func(p *program) *runs { return &p.incrRuns }, wantIncremental(list))
	return nil
}

func (b *bench) round(ctx context.Context, list []*program) (err error) {
	defer func() {
		for _, p := range list {
			p.remove()
		}
	}()
	for _, p := range list {
		if p.why != "" {
			continue
		}
		if p.dir, err = b.empty(p.path(b)); err != nil {
			return err
		}
		if p.prepare != nil {
			if err := p.prepare(p.dir); err != nil {
				return err
			}
		}
		if err := b.once(ctx, p, p.full, &p.fullRuns); err != nil {
			return err
		}
	}
	if err := b.transactions(b.tx); err != nil {
		return err
	}
	for _, p := range list {
		if p.why == "" && p.incremental != nil {
			if err := b.once(ctx, p, p.incremental, &p.incrRuns); err != nil {
				return err
			}
		}
	}
	return nil
}

// once takes one backup. The WAL of before lies in segments that it does not
// need, whichever program's turn it is.
func (b *bench) once(ctx context.Context, p *program, command func(string) []string, r *runs) error {
	if err := errors.Join(b.server.Exec(ctx, "SELECT pg_switch_wal()"), b.server.Exec(ctx, "CHECKPOINT"), scratch.Settle(b.place.Dir)); err != nil {
		return err
	}
	before, err := scratch.SizeOf(p.dir, nil)
	if err != nil {
		return err
	}
	args := command(p.dir)
	_, u, err := scratch.Measured(b.place.Command(args[0], args[1:]...))
	if err != nil {
		return err
	}
	after, err := scratch.SizeOf(p.dir, nil)
	r.walls, r.cpus, r.rss, r.size = append(r.walls, u.Wall), append(r.cpus, u.CPU), max(r.rss, u.RSS), after-before
	return err
}

// wanted are the limits for dbbackup's backup.
type wanted struct {
	wall     time.Duration // 0: nobody to compare with
	size     int64
	comments []string
}

func wantFull(list []*program) wanted {
	var w wanted
	for _, p := range list[1:] {
		if len(p.fullRuns.walls) == 0 {
			continue
		}
		if t := scratch.Best(p.fullRuns.walls); p.checks && (w.wall == 0 || t < w.wall) {
			w.wall = t
		}
		if w.size == 0 || p.fullRuns.size < w.size {
			w.size = p.fullRuns.size
		}
	}
	w.comments = []string{fmt.Sprintf("%.2f of the fastest peer that checks pages", wantedFull), fmt.Sprintf("%.2f of the smallest", wantedSize)}
	w.wall, w.size = time.Duration(float64(w.wall)*wantedFull), int64(float64(w.size)*wantedSize)
	return w
}

func wantIncremental(list []*program) wanted {
	var w wanted
	for _, p := range list[1:] {
		if !p.base || len(p.incrRuns.walls) == 0 {
			continue
		}
		if t := scratch.Best(p.incrRuns.walls); w.wall == 0 || t < w.wall {
			w.wall = t
		}
		if w.size == 0 || p.incrRuns.size < w.size {
			w.size = p.incrRuns.size
		}
	}
	w.comments = []string{fmt.Sprintf("%.2f of pg_basebackup --incremental", wantedIncr), "its size"}
	if w.wall == 0 {
		w.comments = []string{"pg_basebackup --incremental: needs a server of 17 or later, see there"}
	}
	w.wall = time.Duration(float64(w.wall) * wantedIncr)
	return w
}

func table(list []*program, of func(*program) *runs, w wanted) {
	fmt.Printf("  %-28s %8s %8s %8s %8s %8s %8s\n", "", "best s", "median s", "CPU s", "size MB", "ratio", "RSS MB")
	base := of(list[0])
	for _, p := range list {
		r := of(p)
		switch {
		case p.why != "":
			fmt.Printf("  %-28s %s\n", p.name, p.why)
			continue
		case len(r.walls) == 0:
			fmt.Printf("  %-28s has none\n", p.name)
			continue
		}
		best := scratch.Best(r.walls)
		fmt.Printf("  %-28s %8.2f %8.2f %8.2f %8.1f %8.2f %8.0f\n", p.name, best.Seconds(), scratch.Median(r.walls).Seconds(),
			slices.Min(r.cpus).Seconds(), float64(r.size)/1e6, scratch.Best(base.walls).Seconds()/best.Seconds(), float64(r.rss)/1e6)
	}
	if w.wall > 0 {
		fmt.Printf("  wanted: wall %.2f s (%s)%s, size %.1f MB (%s)%s\n", w.wall.Seconds(), w.comments[0], scratch.Missed(scratch.Best(base.walls) > w.wall),
			float64(w.size)/1e6, w.comments[1], scratch.Missed(base.size > w.size))
	} else {
		fmt.Printf("  %s\n", w.comments[0])
	}
	fmt.Printf("  wanted: memory %.0f MB%s\n", wantedRSS/1e6, scratch.Missed(float64(base.rss) > wantedRSS))
}
