package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"

	"tidemark/bench/scratch"
)

// scenario makes one divergence, measures it and prints its table.
func (b *bench) scenario(ctx context.Context, sc scenario) (err error) {
	if err := b.diverge(ctx, sc); err != nil {
		return err
	}
	source := b.place.Cluster(sc.source, portNew)
	if err := source.Start(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.Stop("fast")) }()
	for _, name := range []string{sc.pristine, sc.source} {
		if err := scratch.Warm(b.place.Cluster(name, 0).Data); err != nil {
			return err
		}
	}
	n, err := b.needed(ctx, sc, source)
	if err != nil {
		return err
	}
	var checked []checked
	if b.with == "" {
		if checked, err = b.check(sc, source); err != nil {
			return err
		}
	}
	if err := forget(); err != nil {
		return err
	}
	list := b.contenders()
	for range b.rounds {
		for _, c := range list {
			if err := b.round(ctx, sc, source, c); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	size, err := scratch.SizeOf(source.Data, nil)
	if err != nil {
		return err
	}
	fmt.Printf("\n%s divergence: %d transactions on the old primary, %d on the new one; source %s\n", sc.name, sc.oldTx, sc.newTx, scratch.MB(size))
	fmt.Printf("  has to travel: %s of changed blocks, %s of other files that differ, %s of WAL after the fork: %s\n", scratch.MB(n.blocks), scratch.MB(n.other), scratch.MB(n.wal), scratch.MB(n.total()))
	table(sc, list, n)
	if b.with != "" {
		return nil
	}
	for _, c := range checked {
		c.print()
	}
	return nil
}

func table(sc scenario, list []*contender, n need) {
	fmt.Printf("  %-20s %8s %8s %8s %8s %8s %8s %8s %7s %6s\n", "", "best s", "median s", "CPU s", "source's", "ratio", "wanted", "moved MB", "of need", "RSS MB")
	base := list[0]
	for i, c := range list {
		ratio := scratch.Best(c.walls).Seconds() / scratch.Best(base.walls).Seconds()
		of := float64(c.moved) / float64(n.total())
		fmt.Printf("  %-20s %8.2f %8.2f %8.2f %8.2f %8.2f", c.name, scratch.Best(c.walls).Seconds(), scratch.Median(c.walls).Seconds(), scratch.Best(c.cpus).Seconds(), scratch.Best(c.served).Seconds(), ratio)
		if i == 0 {
			fmt.Printf(" %8s %8.0f %7.2f %6.0f\n", "", float64(c.moved)/1e6, of, float64(c.rss)/1e6)
			continue
		}
		fmt.Printf(" %8.2f %8.0f %7.2f %6.0f", sc.wanted, float64(c.moved)/1e6, of, float64(c.rss)/1e6)
		fmt.Println(scratch.Missed(ratio > sc.wanted), scratch.Missed(of > wantedBytes), scratch.Missed(float64(c.rss) > wantedRSS))
	}
}

// forget makes this program small again: a child's highest memory use begins
// at its parent's.
func forget() error {
	debug.FreeOSMemory()
	err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
