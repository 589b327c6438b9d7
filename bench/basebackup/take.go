package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

type options struct {
	conninfo, dir, since, compress string
	manifestOnly                   bool
}

// take takes one backup.
func take(ctx context.Context, o options) error {
	cfg, err := pgconn.ParseConfig(o.conninfo)
	if err != nil {
		return err
	}
	cfg.RuntimeParams["replication"] = "true"
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if err := os.Mkdir(o.dir, 0o700); err != nil {
		return err
	}
	what := []string{"LABEL 'pg_basebackup base backup'", "PROGRESS", "CHECKPOINT 'fast'", "WAL", "MANIFEST 'yes'", "TARGET 'client'"}
	if o.since != "" {
		if err := upload(ctx, conn, o.since); err != nil {
			return fmt.Errorf("UPLOAD_MANIFEST: %w", err)
		}
		what = append(what, "INCREMENTAL")
	}
	out := &archives{o: o}
	err = command(ctx, conn, "BASE_BACKUP ("+strings.Join(what, ", ")+")", func(m pgproto3.BackendMessage) error {
		if data, ok := m.(*pgproto3.CopyData); ok {
			return out.message(data.Data)
		}
		return nil
	})
	return errors.Join(err, out.finish())
}

// uploadBytes is how much of the manifest goes into one message.
const uploadBytes = 64 << 10

// upload shows the server the manifest of the previous backup.
func upload(ctx context.Context, conn *pgconn.PgConn, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, uploadBytes)
	return command(ctx, conn, "UPLOAD_MANIFEST", func(m pgproto3.BackendMessage) error {
		if _, ok := m.(*pgproto3.CopyInResponse); !ok {
			return nil
		}
		for {
			n, err := f.Read(buf)
			if n > 0 {
				conn.Frontend().Send(&pgproto3.CopyData{Data: buf[:n]})
				if err := conn.Frontend().Flush(); err != nil {
					return err
				}
			}
			if errors.Is(err, io.EOF) {
				conn.Frontend().Send(&pgproto3.CopyDone{})
				return conn.Frontend().Flush()
			}
			if err != nil {
				return err
			}
		}
	})
}

// command sends one and hands on what the server answers, until it is ready for
// the next.
func command(ctx context.Context, conn *pgconn.PgConn, text string, each func(pgproto3.BackendMessage) error) error {
	conn.Frontend().SendQuery(&pgproto3.Query{String: text})
	if err := conn.Frontend().Flush(); err != nil {
		return err
	}
	for {
		msg, err := conn.ReceiveMessage(ctx)
		if err != nil {
			return err
		}
		switch msg := msg.(type) {
		case *pgproto3.ErrorResponse:
			return pgconn.ErrorResponseToPgError(msg)
		case *pgproto3.ReadyForQuery:
			return nil
		}
		if err := each(msg); err != nil {
			return err
		}
	}
}
