package rewind

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"time"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/postgres"
)

// holdWAL keeps a live source from recycling WAL as long as this job lasts, by
// a temporary replication slot: it is gone with its session, however that ends.
// A role that may not have one goes without: what is missing in the end is
// found then.
func (j *job) holdWAL(ctx context.Context) {
	if !j.source.live() || j.hold != nil {
		return
	}
	conn, err := postgres.Connect(ctx, j.source.conn)
	if err != nil {
		j.Log.Info("the source's WAL is not held", "error", err)
		return
	}
	if err := createHoldingSlot(ctx, conn); err != nil {
		conn.Close(context.WithoutCancel(ctx))
		j.Progress.Note("the source's WAL is not held by a replication slot (%v): it must not recycle what it writes meanwhile", err)
		return
	}
	j.hold = conn
}

func createHoldingSlot(ctx context.Context, conn *pgx.Conn) error {
	var id [6]byte
	rand.Read(id[:])
	return postgres.Exec(ctx, conn, "SELECT pg_create_physical_replication_slot($1, true, true)", "dbrewind_"+hex.EncodeToString(id[:]))
}

// letGo ends the session that holds the source's WAL.
func (j *job) letGo() {
	if j.hold == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := j.hold.Close(ctx); err != nil {
		j.Log.Debug("closing the session that held the source's WAL", "error", err)
	}
	j.hold = nil
}
