// Command backup compares dbbackup with other programs for PostgreSQL backups,
// on one cluster and in one run:
//
//	go run ./bench/backup [-scale 140] [-noise 1100] [-rounds 3] [-tx 20000] [-major 15] [-only create|incremental|latency|push]
//	go run ./bench/backup -short                  # a minute, to see that it works
//
// A cluster is filled by pgbench (a scale of 140 makes 2.1 GB, checksums on)
// and by a table of random bytes, which is about a third of it: pgbench alone
// compresses 20:1. Each round takes a full backup with every program, runs TX
// transactions, and takes an incremental backup with every program that can,
// one after another, each into an empty repository of its own. All of the
// cluster is in the page cache and on disk when a program begins. Others may
// use the machine meanwhile: what counts is the best round, the median stands
// beside it.
//
// What a backup costs others is measured by a pgbench that runs at a steady
// rate: its 99th percentile while a backup runs, and while none does.
//
// pg_basebackup takes incremental backups from 17 on. Where such a server is
// found besides, the incremental part runs on a cluster of it, with the same
// data and summarize_wal on. Without its pg_basebackup, bench/basebackup sends
// the server what that one sends.
//
// `push` is measured on segments that the filling wrote, called one at a time
// as the server calls its archive_command.
//
// The cluster is kept in DIR for the next run with the same numbers.
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
	dir                 string
	major, scale, noise int
	tx, rounds, push    int
	only, flags         string
}

// What is wanted of dbbackup.
const (
	wantedFull = 0.8 // wall time of a full backup, of the fastest peer's that checks pages
	wantedSize = 1.05
	wantedIncr = 0.5 // of pg_basebackup --incremental's
	wantedRSS  = 256e6
)

func main() {
	log.SetFlags(0)
	var s settings
	flag.StringVar(&s.dir, "dir", filepath.Join(os.TempDir(), "tidemark-bench-backup"), "where the cluster is kept; the server's user must get there")
	flag.IntVar(&s.major, "major", 15, "major version; pgbench and pg_basebackup are run where they lie beside the server")
	flag.IntVar(&s.scale, "scale", 140, "pgbench's scale")
	flag.IntVar(&s.noise, "noise", 1100, "MB of random bytes")
	flag.IntVar(&s.tx, "tx", 20000, "transactions between the full and the incremental backup")
	flag.IntVar(&s.rounds, "rounds", 3, "how often each program runs")
	flag.IntVar(&s.push, "segments", 96, "segments that wait to be archived")
	flag.StringVar(&s.only, "only", "", "one part: create, incremental, latency or push")
	flag.StringVar(&s.flags, "flags", "", "further flags for dbbackup create")
	short := flag.Bool("short", false, "a short form: scale 10, 75 MB of random bytes, 2000 transactions, 12 segments, one round")
	flag.Parse()
	if *short {
		s.scale, s.noise, s.tx, s.rounds, s.push = 10, 75, 2000, 1, 12
	}
	begin := time.Now()
	if err := run(context.Background(), s); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("\ntook %s\n", time.Since(begin).Round(time.Second))
}

func run(ctx context.Context, s settings) error {
	for _, part := range []struct {
		name  string
		major int
		do    func(*bench, context.Context) error
	}{
		{"create", s.major, (*bench).create}, {"incremental", summarizing(s.major), (*bench).incremental},
		{"latency", s.major, (*bench).latency}, {"push", s.major, (*bench).pushes},
	} {
		if s.only != "" && s.only != part.name {
			continue
		}
		if part.major == 0 {
			fmt.Printf("\n%s: left out, there is no server of version 17 or later\n", part.name)
			continue
		}
		of := s
		of.major = part.major
		b, err := newBench(ctx, of)
		if err != nil {
			return err
		}
		if err := part.do(b, ctx); err != nil {
			return err
		}
	}
	return nil
}

// commandFlags splits the further flags for dbbackup create.
func (s settings) commandFlags() []string { return strings.Fields(s.flags) }
