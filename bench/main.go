// Command bench compares the scan of WAL into a page map with
// `pg_waldump --stats`, the fastest reading that PostgreSQL itself offers:
// same files, same run, checksums verified by both, files in the page cache.
//
//	go run ./bench [-rounds 7] [-dir DIR]
//
// The WAL is written by a real server of PostgreSQL 15 and kept in DIR for the
// next run. Each round runs the contenders one after the other; what counts is
// the best round, as others may use the machine meanwhile. The CPU time beside it
// hardly depends on them.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
)

// wanted are the ratios that the table is held against: at least as fast on
// one core, at least 1.7 times as fast with two.
var wanted = map[int]float64{1: 1.0, 2: 1.7}

func main() {
	log.SetFlags(0)
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := flag.String("dir", filepath.Join(cache, "tidemark", "bench-wal"), "where the WAL is kept")
	rounds := flag.Int("rounds", 7, "how often each contender runs")
	child := flag.String("scan", "", "scan a range once (how the benchmark runs itself)")
	flag.Parse()
	if *child != "" {
		if err := scanOnce(*child, flag.Args()); err != nil {
			log.Fatal(err)
		}
		return
	}
	ctx := context.Background()
	logs, err := prepare(ctx, *dir)
	if err != nil {
		log.Fatalf("cannot prepare WAL to read: %v", err)
	}
	for _, l := range logs {
		if err := compare(l, *rounds); err != nil {
			log.Fatal(fmt.Errorf("%s: %w", l.Name, err))
		}
	}
}
