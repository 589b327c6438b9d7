package postgres_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tidemark/internal/pgtest"
	"tidemark/internal/postgres"
	"tidemark/pkg/wal"
)

func lsn(t *testing.T, text string) wal.LSN {
	t.Helper()
	l, err := wal.ParseLSN(text)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// runReceiver runs r until lsn is durable.
func runReceiver(t *testing.T, r *postgres.Receiver, until wal.LSN) {
	t.Helper()
	r.StopAt(until)
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
	defer cancel()
	if err := r.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if pos := r.Position(); pos.Flushed < until {
		t.Fatalf("ended at %s, before %s", pos.Flushed, until)
	}
}

func sameFile(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if string(x) != string(y) {
		t.Errorf("%s differs from the server's", filepath.Base(a))
	}
}

func TestReceiver(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		t.Parallel()
		n := pgtest.New(t, pgtest.Options{Major: major, WALSegMB: 1, Config: []string{"wal_keep_size = 100MB"}})
		conn, err := postgres.ConnectReplication(t.Context(), n.ConnInfo())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		system, err := conn.IdentifySystem(t.Context())
		if err != nil || system.Timeline != 1 {
			t.Fatalf("%+v, %v", system, err)
		}
		if err := conn.CreateSlot(t.Context(), "r1", postgres.SlotOptions{Reserve: true}); err != nil {
			t.Fatal(err)
		}
		if err := conn.CreateSlot(t.Context(), "r1", postgres.SlotOptions{}); !errors.Is(err, postgres.ErrSlotExists) {
			t.Errorf("the slot again: %v", err)
		}
		if major >= 15 {
			if slot, ok, err := conn.ReadSlot(t.Context(), "r1"); !ok || err != nil || slot.RestartLSN == 0 {
				t.Errorf("%+v %t %v", slot, ok, err)
			}
		}
		first := n.SQL("SELECT pg_walfile_name(restart_lsn) FROM pg_replication_slots")
		dir := t.TempDir()
		o := postgres.ReceiveOptions{ConnInfo: n.ConnInfo(), Slot: "r1", Dir: dir, Start: lsn(t, n.SQL("SELECT restart_lsn FROM pg_replication_slots"))}
		n.Exec("CREATE TABLE t AS SELECT generate_series(1, 20000) AS i")
		middle := n.SwitchWAL()
		n.Exec("INSERT INTO t SELECT generate_series(1, 20000)")
		runReceiver(t, postgres.NewReceiver(o), lsn(t, n.LSN()))
		sameFile(t, filepath.Join(dir, first), filepath.Join(n.Dir, "pg_wal", first))
		sameFile(t, filepath.Join(dir, middle), filepath.Join(n.Dir, "pg_wal", middle))
		partial, _ := filepath.Glob(filepath.Join(dir, "*.partial"))
		if len(partial) != 1 {
			t.Fatalf("partial segments: %v", partial)
		}
		if st, err := os.Stat(partial[0]); err != nil || st.Size() != 1<<20 {
			t.Errorf("the partial segment has %d bytes, %v", st.Size(), err)
		}
		// Going on completes the partial one and follows a promotion.
		standby := n.Standby(pgtest.StandbyOptions{Config: []string{"wal_keep_size = 100MB"}})
		standby.WaitFor(n)
		o.ConnInfo, o.Slot = standby.ConnInfo(), ""
		r := postgres.NewReceiver(o)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		waiting, stop := context.WithTimeout(ctx, pgtest.Patience)
		defer stop()
		if err := r.WaitFlushed(waiting, lsn(t, n.LSN())); err != nil {
			t.Fatal(err)
		}
		n.Stop()
		standby.Promote()
		standby.Exec("INSERT INTO t SELECT generate_series(1, 20000)")
		segment := standby.SwitchWAL()
		end := lsn(t, standby.LSN())
		if err := r.WaitFlushed(waiting, end); err != nil {
			t.Fatalf("%v: %+v; the receiver: %v", err, r.Position(), <-done)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the receiver ended with %v", err)
		}
		sameFile(t, filepath.Join(dir, segment), filepath.Join(standby.Dir, "pg_wal", segment))
		sameFile(t, filepath.Join(dir, "00000002.history"), filepath.Join(standby.Dir, "pg_wal", "00000002.history"))
	})
}

func TestReceiverForPgWAL(t *testing.T) {
	n := pgtest.New(t, pgtest.Options{WALSegMB: 1, Config: []string{"wal_keep_size = 100MB"}})
	dir := t.TempDir()
	start := lsn(t, n.LSN())
	o := postgres.ReceiveOptions{ConnInfo: n.ConnInfo(), Dir: dir, Start: start, PgWAL: true}
	n.Exec("CREATE TABLE t AS SELECT generate_series(1, 20000) AS i")
	runReceiver(t, postgres.NewReceiver(o), lsn(t, n.LSN()))
	n.Exec("CREATE TABLE u AS SELECT generate_series(1, 20000) AS i")
	segment := n.SwitchWAL()
	// A second run goes on in the last segment, which has its final name.
	runReceiver(t, postgres.NewReceiver(o), lsn(t, n.LSN()))
	sameFile(t, filepath.Join(dir, segment), filepath.Join(n.Dir, "pg_wal", segment))
	if _, err := os.Stat(filepath.Join(dir, "archive_status", segment+".done")); err != nil {
		t.Error(err)
	}
	o.SystemID = 1
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := postgres.NewReceiver(o).Run(ctx); err == nil {
		t.Error("another cluster's WAL was received")
	}
}

func TestReceiverOfRemovedWAL(t *testing.T) {
	n := pgtest.New(t, pgtest.Options{WALSegMB: 1, Config: []string{"max_wal_size = 2MB", "min_wal_size = 2MB"}})
	start := lsn(t, n.LSN())
	for range 5 {
		n.SwitchWAL()
		n.Exec("CHECKPOINT")
	}
	r := postgres.NewReceiver(postgres.ReceiveOptions{ConnInfo: n.ConnInfo(), Dir: t.TempDir(), Start: start})
	r.StopAt(lsn(t, n.LSN()))
	if err := r.Run(t.Context()); !errors.Is(err, postgres.ErrWALRemoved) {
		t.Errorf("got %v", err)
	}
}
