package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"tidemark/bench/scratch"
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

type bench struct {
	settings
	place    *scratch.Server
	server   *scratch.Server
	dbbackup string
}

func newBench(ctx context.Context, s settings) (*bench, error) {
	place, err := scratch.Keep(s.major, filepath.Join(s.dir, fmt.Sprintf("%d-scale-%d-%d", s.major, s.scale, s.noise)))
	if err != nil {
		return nil, err
	}
	b := &bench{settings: s, place: place, server: place.Cluster("data", port), dbbackup: filepath.Join(place.Dir, "dbbackup")}
	if !place.Bin.Has("pgbench") {
		return nil, fmt.Errorf("there is no pgbench in %s", place.Bin.BinDir)
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", b.dbbackup, "./cmd/dbbackup")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building dbbackup: %w\n%s", err, out)
	}
	return b, b.fill(ctx)
}

// noiseTable holds four rows of random bytes a page. From a row's number
// alone: the bytes are the hashes of numbers, which needs no extension.
const noiseTable = `INSERT INTO noise SELECT g, (SELECT string_agg(sha512((g * 64 + i)::text::bytea), '') FROM generate_series(1, 30) i)
	FROM generate_series(%d, %d) g`

// fill makes the cluster, once.
func (b *bench) fill(ctx context.Context) error {
	mark := filepath.Join(b.place.Dir, "filled.done")
	if _, err := os.Stat(mark); err == nil {
		return nil
	}
	fmt.Printf("filling a cluster of scale %d with %d MB of random bytes in %s ...\n", b.scale, b.noise, b.place.Dir)
	if err := os.RemoveAll(b.server.Data); err != nil {
		return err
	}
	if err := b.server.Init(scratch.Options{SegmentMB: 16, Checksums: true, Config: config}); err != nil {
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
		b.server.Stop("fast"))
	if err != nil {
		return err
	}
	return os.WriteFile(mark, nil, 0o644)
}

func (b *bench) pgbench(args ...string) error {
	s := b.server
	return s.Run("pgbench", append(args, "-h", s.Dir, "-p", fmt.Sprint(s.Port), "-U", "postgres", "postgres")...)
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
