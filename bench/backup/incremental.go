package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"tidemark/bench/scratch"
	"tidemark/internal/postgres"
)

// summarizing is the version to compare incremental backups on: the newest that
// summarizes its WAL, 0 where there is none. The other parts' version will do.
func summarizing(major int) int {
	if major >= 17 {
		return major
	}
	newest := 0
	for _, i := range postgres.Installations() {
		if i.Major >= 17 && postgres.Supported(i.Major) {
			newest = max(newest, i.Major)
		}
	}
	return newest
}

// incremental measures incremental backups of a server that summarizes its WAL.
func (b *bench) incremental(ctx context.Context) (err error) {
	list, err := b.incrementals(ctx)
	if err != nil {
		return err
	}
	if err := b.server.Start(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.server.Stop("fast")) }()
	if err := scratch.Warm(b.server.Data); err != nil {
		return err
	}
	for range b.rounds {
		if err := b.round(ctx, list); err != nil {
			return err
		}
	}
	fmt.Printf("\nincremental backup after %d pgbench transactions, PostgreSQL %s with summarize_wal = on\n", b.tx, b.place.Bin.Version)
	table(list, func(p *program) *runs { return &p.incrRuns }, wantIncremental(list))
	return nil
}

// incrementals are the programs to compare: pg_basebackup itself where it is
// installed, and what it sends otherwise. Their full backups are there to
// begin from.
func (b *bench) incrementals(ctx context.Context) ([]*program, error) {
	list := []*program{b.ours()}
	if b.place.Bin.Has("pg_basebackup") {
		return append(list, b.basebackups()...), nil
	}
	path := filepath.Join(b.place.Dir, "basebackup")
	for _, method := range []string{"zstd", "none"} {
		run := func(dir, name string, flags ...string) []string {
			return append([]string{path, "-d", b.server.Conninfo(), "-D", filepath.Join(dir, name), "-compress", method}, flags...)
		}
		list = append(list, &program{name: "BASE_BACKUP INCREMENTAL " + method, checks: true, base: method != "none",
			full: func(dir string) []string { return run(dir, "full", "-manifest-only") },
			incremental: func(dir string) []string {
				return run(dir, "incremental", "-incremental", filepath.Join(dir, "full", "backup_manifest"))
			}})
	}
	fmt.Println("there is no pg_basebackup of this version: BASE_BACKUP INCREMENTAL is what it sends, with -X fetch; zstd as by --compress=client-zstd:3")
	return list, build(ctx, path, "./bench/basebackup")
}
