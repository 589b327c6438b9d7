package rewind

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// sides are sessions on a standby and on its source.
type sides struct {
	dir      string
	source   *source
	src, own *pgx.Conn
}

func openSides(ctx context.Context, src *source, dir string) (*sides, error) {
	conninfo, err := postgres.LocalConnInfo(dir)
	if err != nil {
		return nil, err
	}
	s := &sides{dir: dir, source: src}
	if s.own, err = postgres.Connect(ctx, conninfo); err != nil {
		return nil, err
	}
	var recovers bool
	err = postgres.Query(ctx, s.own, "SELECT pg_is_in_recovery()", nil, &recovers)
	if err == nil && !recovers {
		err = exit.New(exit.Refused, "name a standby's data directory with -D", "the server in %s is a primary", dir)
	}
	if err == nil {
		s.src, err = postgres.Connect(ctx, src.conn)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *sides) close() {
	closeConn(s.src)
	closeConn(s.own)
}

// settle brings changes into the files of both sides, and returns the LSN up to
// which all are there.
func (s *sides) settle(ctx context.Context, o *VerifyOptions) (wal.LSN, error) {
	o.Progress.Phase("checkpoint at the source", 0, progress.Items)
	if err := checkpoint(ctx, s.src, "the source"); err != nil {
		return 0, err
	}
	pos, _, err := s.source.replayable(ctx)
	if err != nil {
		return 0, err
	}
	if err := s.await(ctx, pos, o); err != nil {
		return 0, err
	}
	o.Progress.Phase("checkpoint at the standby", 0, progress.Items)
	if err := checkpoint(ctx, s.own, "the standby"); err != nil {
		return 0, err
	}
	sc, err := s.source.control(ctx)
	if err != nil {
		return 0, err
	}
	tc, err := postgres.ReadControl(ctx, blockcopy.NewDirSource(s.dir, false))
	if err != nil {
		return 0, err
	}
	common := min(sc.CheckPointCopy.Redo, tc.CheckPointCopy.Redo)
	o.Log.Info("both sides are in their files", "lsn", common, "source", sc.CheckPointCopy.Redo, "standby", tc.CheckPointCopy.Redo)
	return common, nil
}

func checkpoint(ctx context.Context, conn *pgx.Conn, side string) error {
	err := postgres.Exec(ctx, conn, "CHECKPOINT")
	if err != nil {
		return exit.Wrap(err, exit.CodeOf(err), "a verification needs checkpoints on both sides: GRANT pg_checkpoint TO the role (from 15 on), or use a superuser",
			"CHECKPOINT at %s", side)
	}
	return nil
}

// await waits until the standby has replayed up to pos.
func (s *sides) await(ctx context.Context, pos wal.LSN, o *VerifyOptions) error {
	o.Progress.Phase("waiting for the standby to replay", 0, progress.Bytes)
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, errLate)
	defer cancel()
	at := wal.LSN(0)
	for {
		var text string
		err := postgres.Query(ctx, s.own, "SELECT coalesce(pg_last_wal_replay_lsn(), '0/0')::text", nil, &text)
		if err == nil {
			at, err = wal.ParseLSN(text)
		}
		switch {
		case errors.Is(context.Cause(ctx), errLate):
			return exit.New(exit.Problem, "does it stream? look at it with dbrepl status", "the standby has not replayed up to %s: it is at %s", pos, at)
		case err != nil:
			return err
		case at >= pos:
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// name finds the relations of what differs, and drops files of no relation: a
// crash left them on one side.
func (v *verifier) name(ctx context.Context) error {
	n := namer{source: v.source, databases: map[uint32]*pgx.Conn{}, names: map[wal.RelFile]string{}}
	defer n.close()
	kept := v.result.Differences[:0]
	orphans := map[string]bool{}
	for _, d := range v.result.Differences {
		rel, _ := volume.ParseRelPath(d.File)
		var err error
		if d.Database, d.Relation, err = n.name(ctx, rel.RelFile); err != nil {
			return err
		}
		if d.Relation == "" && v.oneSided(ctx, d.File) {
			if !orphans[d.File] {
				orphans[d.File] = true
				v.result.Orphans = append(v.result.Orphans, d.File)
			}
			continue
		}
		kept = append(kept, d)
	}
	v.result.Differences = kept
	return nil
}

// oneSided tells whether a file exists on one side only.
func (v *verifier) oneSided(ctx context.Context, path string) bool {
	here, herr := readRanges(ctx, v.target, []blockcopy.Range{{Path: path, Length: 1}})
	there, terr := readRanges(ctx, v.source, []blockcopy.Range{{Path: path, Length: 1}})
	return herr == nil && terr == nil && (len(here[0]) == 0) != (len(there[0]) == 0)
}

// namer asks the source for the names of relations.
type namer struct {
	source    *source
	databases map[uint32]*pgx.Conn // nil where there is none of that number
	names     map[wal.RelFile]string
}

func (n *namer) close() {
	for _, conn := range n.databases {
		closeConn(conn)
	}
}

// name returns the names of a file's database and relation, empty where they
// are not known.
func (n *namer) name(ctx context.Context, f wal.RelFile) (database, relation string, err error) {
	f.Fork = wal.ForkMain
	conn, ok := n.databases[f.Database]
	if !ok {
		if conn, err = n.connect(ctx, f.Database); err != nil {
			return "", "", err
		}
		n.databases[f.Database] = conn
	}
	if conn == nil {
		return "", "", nil
	}
	if f.Database != 0 {
		database = conn.Config().Database
	}
	name, ok := n.names[f]
	if !ok {
		err = postgres.Query(ctx, conn, "SELECT coalesce(pg_filenode_relation($1::oid, $2::oid)::regclass::text, '')", []any{fmt.Sprint(f.Tablespace), fmt.Sprint(f.Relation)}, &name)
		if err != nil {
			return "", "", err
		}
		n.names[f] = name
	}
	return database, name, nil
}

// connect opens a session in the database of a number; nil where it cannot be
// connected to.
func (n *namer) connect(ctx context.Context, database uint32) (*pgx.Conn, error) {
	conn, err := postgres.Connect(ctx, n.source.conn)
	if err != nil || database == 0 {
		return conn, err
	}
	defer closeConn(conn)
	var name string
	err = postgres.Query(ctx, conn, "SELECT coalesce((SELECT datname FROM pg_database WHERE oid = $1::oid AND datallowconn), '')", []any{fmt.Sprint(database)}, &name)
	if err != nil || name == "" {
		return nil, err
	}
	conninfo, err := postgres.Append(n.source.conn, "dbname", name)
	if err != nil {
		return nil, err
	}
	return postgres.Connect(ctx, conninfo)
}
