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
)

// commonTx are transactions before the fork: both sides have their WAL.
const commonTx = 20000

const (
	portOld  = 54301
	portNew  = 54302
	portWork = 54303
)

// The seed is filled without WAL. What pg_wal holds is then what the last
// common transactions and the divergence wrote, as in a cluster of some age.
const seedConfig = `
wal_level = minimal
max_wal_senders = 0
shared_buffers = 256MB
synchronous_commit = off
max_wal_size = 4GB
`

const divergeConfig = `
wal_level = replica
max_wal_senders = 10
hot_standby = on
max_wal_size = 1GB
wal_keep_size = 4GB
`

type bench struct {
	settings
	place    *scratch.Server
	dbrewind string
	self     string // this program, where the servers' user can run it
}

func newBench(ctx context.Context, s settings) (*bench, error) {
	place, err := scratch.Keep(s.major, filepath.Join(s.dir, fmt.Sprintf("%d-scale-%d", s.major, s.scale)))
	if err != nil {
		return nil, err
	}
	for _, program := range []string{"pg_rewind", "pgbench"} {
		if !place.Bin.Has(program) {
			return nil, fmt.Errorf("there is no %s in %s", program, place.Bin.BinDir)
		}
	}
	b := &bench{settings: s, place: place, dbrewind: filepath.Join(place.Dir, "dbrewind")}
	build := exec.CommandContext(ctx, "go", "build", "-o", b.dbrewind, "./cmd/dbrewind")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building dbrewind: %w\n%s", err, out)
	}
	if b.cpuprofile != "" {
		b.self = filepath.Join(place.Dir, "bench")
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", b.self, "./bench/rewind").CombinedOutput(); err != nil {
			return nil, fmt.Errorf("building the benchmark: %w\n%s", err, out)
		}
	}
	return b, b.seed(ctx)
}

// done tells whether something was made in an earlier run, and mark says so.
func (b *bench) done(what string) bool {
	_, err := os.Stat(filepath.Join(b.place.Dir, what+".done"))
	return err == nil
}

func (b *bench) mark(what string) error {
	return os.WriteFile(filepath.Join(b.place.Dir, what+".done"), nil, 0o644)
}

// seed makes the cluster that all others are copies of. Its last transactions
// were looked at: hint bits and pruning of pages are not all in the WAL, so a
// standby would write its own after the fork, even while others measure.
func (b *bench) seed(ctx context.Context) error {
	mark := fmt.Sprintf("seed-%d", commonTx)
	if b.done(mark) {
		return nil
	}
	fmt.Printf("filling a cluster of scale %d in %s ...\n", b.scale, b.place.Dir)
	seed := b.place.Cluster("seed", portOld)
	if err := os.RemoveAll(seed.Data); err != nil {
		return err
	}
	if err := seed.Init(scratch.Options{SegmentMB: 16, Checksums: true, Config: seedConfig}); err != nil {
		return err
	}
	if err := seed.Start(); err != nil {
		return err
	}
	err := b.pgbench(seed, "-i", "-q", "-s", fmt.Sprint(b.scale))
	if err := errors.Join(err, seed.Stop("fast"), seed.Configure(divergeConfig), seed.Start()); err != nil {
		return err
	}
	err = b.transactions(seed, commonTx)
	if err == nil {
		_, err = seed.Text(ctx, sums)
	}
	if err := errors.Join(err, seed.Exec(ctx, "CHECKPOINT"), seed.Stop("fast")); err != nil {
		return err
	}
	return b.mark(mark)
}

func (b *bench) pgbench(s *scratch.Server, args ...string) error {
	return s.Run("pgbench", append(args, "-h", s.Dir, "-p", fmt.Sprint(s.Port), "-U", "postgres", "postgres")...)
}

// transactions runs about n of them.
func (b *bench) transactions(s *scratch.Server, n int) error {
	const clients = 4
	return b.pgbench(s, "-n", "-M", "prepared", "-c", fmt.Sprint(clients), "-j", "2", "-t", fmt.Sprint(max(1, n/clients)))
}

// diverge makes the old and the new primary of a scenario, both stopped.
func (b *bench) diverge(ctx context.Context, sc scenario) error {
	mark := fmt.Sprintf("%s-%d-%d-%d", sc.name, commonTx, sc.oldTx, sc.newTx)
	if b.done(mark) {
		return nil
	}
	fmt.Printf("making the %s divergence: %d transactions on the old primary, %d on the new one ...\n", sc.name, sc.oldTx, sc.newTx)
	seed := b.place.Cluster("seed", portOld)
	old, err := seed.CopyTo(sc.pristine, portOld)
	if err != nil {
		return err
	}
	source, err := seed.CopyTo(sc.source, portNew)
	if err != nil {
		return err
	}
	err = errors.Join(source.Configure(fmt.Sprintf("primary_conninfo = '%s'\n", old.Conninfo())),
		source.WriteFile("standby.signal", ""))
	if err != nil {
		return err
	}
	if err := b.part(ctx, old, source, sc); err != nil {
		return err
	}
	return b.mark(mark)
}

// part starts both, parts them, and stops them.
func (b *bench) part(ctx context.Context, old, source *scratch.Server, sc scenario) (err error) {
	for _, s := range []*scratch.Server{old, source} {
		if err := s.Start(); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Stop("fast")) }()
	}
	if err := caughtUp(ctx, source, old); err != nil {
		return err
	}
	if err := source.Exec(ctx, "CHECKPOINT", "SELECT pg_promote()", "CHECKPOINT"); err != nil {
		return err
	}
	if err := b.transactions(old, sc.oldTx); err != nil {
		return err
	}
	if err := b.transactions(source, sc.newTx); err != nil {
		return err
	}
	if _, err := source.Text(ctx, sums); err != nil {
		return err
	}
	return source.Exec(ctx, "CHECKPOINT")
}

// caughtUp waits until a standby has replayed what its primary has written.
func caughtUp(ctx context.Context, standby, primary *scratch.Server) error {
	lsn, err := primary.Text(ctx, "SELECT pg_current_wal_lsn()::text")
	if err != nil {
		return err
	}
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		there, err := standby.Text(ctx, fmt.Sprintf("SELECT (pg_last_wal_replay_lsn() >= '%s')::text", lsn))
		if err != nil {
			return err
		}
		if there == "true" {
			return nil
		}
	}
	return fmt.Errorf("the standby did not reach %s", lsn)
}
