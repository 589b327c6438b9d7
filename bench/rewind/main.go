// Command rewind compares dbrewind with pg_rewind on identical copies of an
// old primary, against one live source, in one run:
//
//	go run ./bench/rewind [-scale 200] [-small 5000] [-large 300000] [-rounds 3] [-major 15]
//	go run ./bench/rewind -short                  # a minute, to see that it works
//
// A cluster is filled by pgbench (a scale of 200 makes 3.1 GB, checksums on)
// and copied; the copy follows, is promoted, and both go on writing: that is
// the divergence, a small one and a large one. Each round gives every
// contender a fresh copy of the old primary, all of it on disk and in the page
// cache, and runs one after the other. Others may use the machine meanwhile:
// what counts is the best round, the median stands beside it.
//
// The first result of each contender is started and has to follow the source.
// The clusters are kept in DIR for the next run with the same numbers.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// settings are the flags.
type settings struct {
	dir          string
	major, scale int
	small, large int
	rounds       int
	only         string
	with         string
	flags        string
	strace       string
	cpuprofile   string
}

// scenario is one divergence and what is wanted of the rewind.
type scenario struct {
	name             string
	oldTx, newTx     int     // transactions after the fork on either side
	wanted           float64 // wall time, of pg_rewind's
	pristine, source string  // names of the clusters
}

// What issue and documentation promise besides the times.
const (
	wantedBytes = 1.15 // of what has to travel
	wantedRSS   = 100e6
	wantedCheck = 1.0 // seconds per GB of WAL
)

func main() {
	log.SetFlags(0)
	if len(os.Args) > 1 && os.Args[1] == "profiled" {
		if err := profiled(os.Args[2:]); err != nil {
			log.Fatal(err)
		}
		return
	}
	var s settings
	flag.StringVar(&s.dir, "dir", filepath.Join(os.TempDir(), "tidemark-bench-rewind"), "where the clusters are kept; the servers' user must get there")
	flag.IntVar(&s.major, "major", 15, "major version; pg_rewind and pgbench must lie beside the server")
	flag.IntVar(&s.scale, "scale", 200, "pgbench's scale")
	flag.IntVar(&s.small, "small", 5000, "transactions of the small divergence on the old primary; a fifth on the new one")
	flag.IntVar(&s.large, "large", 300000, "transactions of the large divergence on the old primary; a tenth on the new one")
	flag.IntVar(&s.rounds, "rounds", 3, "how often each contender runs")
	flag.StringVar(&s.only, "only", "", "one scenario: small or large")
	flag.StringVar(&s.with, "with", "", "only the contenders with this in their names, and no check: to look for what takes the time")
	flag.StringVar(&s.flags, "flags", "", "further flags for dbrewind")
	flag.StringVar(&s.cpuprofile, "cpuprofile", "", "run dbrewind in this program and write CPU profiles into files of this prefix")
	flag.StringVar(&s.strace, "strace", "", "count dbrewind's system calls into files of this prefix (spoils the times)")
	short := flag.Bool("short", false, "a short form: scale 10, 1000 and 20000 transactions, one round")
	flag.Parse()
	if *short {
		s.scale, s.small, s.large, s.rounds = 10, 1000, 20000, 1
	}
	begin := time.Now()
	if err := run(context.Background(), s); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("\ntook %s\n", time.Since(begin).Round(time.Second))
}

func run(ctx context.Context, s settings) error {
	b, err := newBench(ctx, s)
	if err != nil {
		return err
	}
	for _, sc := range []scenario{
		{name: "small", oldTx: s.small, newTx: s.small / 5, wanted: 1.0 / 3},
		{name: "large", oldTx: s.large, newTx: s.large / 10, wanted: 1.0 / 2},
	} {
		if s.only != "" && s.only != sc.name {
			continue
		}
		sc.pristine, sc.source = sc.name+"-old", sc.name+"-new"
		if err := b.scenario(ctx, sc); err != nil {
			return fmt.Errorf("%s divergence: %w", sc.name, err)
		}
	}
	return nil
}

// commandFlags splits the further flags for dbrewind.
func (s settings) commandFlags() []string { return strings.Fields(s.flags) }
