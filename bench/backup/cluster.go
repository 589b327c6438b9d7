package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"tidemark/bench/scratch"
	"tidemark/internal/postgres"
)

const port = 54311

// The WAL of the filling stays: it is what is pushed, and where an incremental
// backup looks for what changed.
const config = `
wal_level = replica
max_wal_senders = 10
shared_buffers = 256MB
synchronous_commit = off
max_wal_size = 4GB
wal_keep_size = 100GB
`

// From version 17 on.
const summaries = "summarize_wal = on\n"

// A cluster is filled without waiting for the disk, and measured as one that is
// in use.
const filled = "fsync = on\n"

type bench struct {
	settings
	place       *scratch.Server
	server      *scratch.Server
	dbbackup    string
	pgbenchPath string
}

func newBench(ctx context.Context, s settings) (*bench, error) {
	place, err := scratch.Keep(s.major, filepath.Join(s.dir, fmt.Sprintf("%d-scale-%d-%d", s.major, s.scale, s.noise)))
	if err != nil {
		return nil, err
	}
	b := &bench{settings: s, place: place, server: place.Cluster("data", port), dbbackup: filepath.Join(place.Dir, "dbbackup")}
	if b.pgbenchPath, err = findProgram(place.Bin, "pgbench"); err != nil {
		return nil, err
	}
	if err := build(ctx, b.dbbackup, "./cmd/dbbackup"); err != nil {
		return nil, err
	}
	return b, b.fill(ctx)
}

// build builds a program of this module.
func build(ctx context.Context, path, pkg string) error {
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", path, pkg).CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// findProgram looks for a client beside a server, and beside those of other
// versions, which it works with as well.
func findProgram(beside postgres.Installation, name string) (string, error) {
	for _, i := range append([]postgres.Installation{beside}, postgres.Installations()...) {
		if i.Has(name) {
			return i.Path(name), nil
		}
	}
	return "", fmt.Errorf("there is no %s", name)
}

// noiseTable holds four rows of random bytes a page. From a row's number
// alone: the bytes are the hashes of numbers, which needs no extension.
const noiseTable = `INSERT INTO noise SELECT g, (SELECT string_agg(sha512((g * 64 + i)::text::bytea), '') FROM generate_series(1, 30) i)
	FROM generate_series(%d, %d) g`

// fill makes the cluster, once.
func (b *bench) fill(ctx context.Context) error {
	mark := filepath.Join(b.place.Dir, "filled-2.done")
	if _, err := os.Stat(mark); err == nil {
		return nil
	}
	fmt.Printf("filling a cluster of scale %d with %d MB of random bytes in %s ...\n", b.scale, b.noise, b.place.Dir)
	if err := os.RemoveAll(b.server.Data); err != nil {
		return err
	}
	set := config
	if b.major >= 17 {
		set += summaries
	}
	if err := b.server.Init(scratch.Options{SegmentMB: 16, Checksums: true, Config: set}); err != nil {
		return err
	}
	if err := b.server.Start(); err != nil {
		return err
	}
	statements := []string{"CREATE TABLE noise (id int8, data bytea)", "ALTER TABLE noise ALTER data SET STORAGE PLAIN"}
	const step = 20000
	for at, rows := 0, b.noise*128*4; at < rows; at += step {
		statements = append(statements, fmt.Sprintf(noiseTable, at, min(at+step, rows)-1))
	}
	err := errors.Join(b.pgbench("-i", "-q", "-s", fmt.Sprint(b.scale)), b.server.Exec(ctx, append(statements, "VACUUM (FREEZE) noise", "CHECKPOINT")...),
		b.server.Stop("fast"), b.server.Configure(filled))
	if err != nil {
		return err
	}
	return os.WriteFile(mark, nil, 0o644)
}

func (b *bench) pgbench(args ...string) error {
	return b.run(append([]string{b.pgbenchPath}, b.pgbenchArgs(args...)...)...)
}

func (b *bench) pgbenchArgs(args ...string) []string {
	return append(args, "-h", b.server.Dir, "-p", fmt.Sprint(b.server.Port), "-U", "postgres", "postgres")
}

// transactions runs about n of them.
func (b *bench) transactions(n int) error {
	const clients = 4
	return b.pgbench("-n", "-M", "prepared", "-c", fmt.Sprint(clients), "-j", "2", "-t", fmt.Sprint(max(1, n/clients)))
}

// empty makes a directory that holds nothing and belongs to the server's user.
func (b *bench) empty(name string) (string, error) {
	dir := filepath.Join(b.place.Dir, name)
	return dir, errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o750), b.place.Chown(dir))
}

// run runs a program as the server's user.
func (b *bench) run(args ...string) error {
	_, _, err := scratch.Measured(b.place.Command(args[0], args[1:]...))
	return err
}
