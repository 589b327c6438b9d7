package rewind

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/pkg/timeline"
	"tidemark/pkg/wal"
)

// DefaultStartTimeout bounds the wait until a started standby has caught up.
const DefaultStartTimeout = 10 * time.Minute

// Started is the proof that the target follows its source.
type Started struct {
	State     string      `json:"state"`           // of its WAL receiver: streaming
	Timeline  timeline.ID `json:"timeline"`        // that it receives
	Sender    string      `json:"sender"`          // the server that it receives from: host and port
	SourceTLI timeline.ID `json:"source_timeline"` // that the source writes
	SourceLSN wal.LSN     `json:"source_lsn"`      // the source's position when the wait began
	Replayed  wal.LSN     `json:"replayed_lsn"`    // by the target, at or behind it
	Seconds   float64     `json:"elapsed_seconds"` // from the start on
}

// mayStart refuses, before anything is done, what could not be started as a
// standby: it would come up as a second primary.
func (j *job) mayStart(ctx context.Context) error {
	if !j.source.live() {
		return exit.New(exit.Usage, "start it by hand once a primary runs", "--start needs a live source: a stopped one cannot be followed")
	}
	if j.WriteRecoveryConf {
		return nil
	}
	if _, err := os.Stat(filepath.Join(j.Target, "standby.signal")); err == nil {
		return nil
	}
	if _, err := j.source.ReadFile(ctx, "standby.signal"); err == nil {
		return nil // the run gives the target one as well
	}
	return exit.New(exit.Refused, "use -R, or create standby.signal and set primary_conninfo before",
		"the target has no standby.signal: started, it would come up as a second primary")
}

// start starts the target and waits until it streams and has replayed what the
// source had when the wait began.
func (j *job) start(ctx context.Context) (*Started, error) {
	begin := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, cmp.Or(j.StartTimeout, DefaultStartTimeout), errLate)
	defer cancel()
	s := &Started{}
	var err error
	if s.SourceLSN, s.SourceTLI, err = j.source.replayable(ctx); err != nil {
		return nil, notStarted(err, "")
	}
	server, err := j.server()
	if err != nil {
		return nil, notStarted(err, "")
	}
	j.Progress.Phase("starting the server", 0, progress.Items)
	if err := server.Start(ctx); err != nil {
		if errors.Is(err, errLate) {
			return nil, late(err, s)
		}
		return nil, notStarted(err, exit.HintOf(err))
	}
	err = j.catchUp(ctx, server, s)
	s.Seconds = time.Since(begin).Seconds()
	return s, err
}

// errLate ends a wait that took too long.
var errLate = errors.New("the time for it is over")

// notStarted is the error of a target that is rewound and does not run.
func notStarted(err error, hint string) error {
	if hint != "" {
		hint += "\n"
	}
	return exit.Wrap(err, exit.Partial, hint+"the rewind itself is done: mend what is wrong and run the same command again, or start the server by hand", "starting the rewound target")
}

// late is the error of a target that runs and has not caught up.
func late(err error, s *Started) error {
	return exit.Wrap(err, exit.Problem, "it is left running, and goes on; look at it with dbrepl status, and give it more time with --start-timeout",
		"the target has not caught up: it replayed up to %s of %s, its receiver is %s", s.Replayed, s.SourceLSN, cmp.Or(s.State, "not there"))
}

// catchUp waits until the running target is where s says the source was.
func (j *job) catchUp(ctx context.Context, server *postgres.Server, s *Started) error {
	j.Progress.Phase("catching up with the source", 0, progress.Bytes)
	var conn *pgx.Conn
	defer func() { closeConn(conn) }()
	for {
		before := s.Replayed
		err := s.look(ctx, &conn, j.Target)
		st, serr := server.Status()
		switch {
		case ctx.Err() != nil && errors.Is(context.Cause(ctx), errLate):
			return late(errors.Join(errLate, err), s)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case serr == nil && !st.Running:
			return notStarted(postgres.ErrNotRunning, server.LogTail())
		case exit.CodeOf(err) == exit.Problem:
			return err
		case err == nil && s.State == "streaming" && s.Replayed >= s.SourceLSN:
			return nil
		}
		if before == 0 && s.Replayed > 0 && s.Replayed < s.SourceLSN {
			j.Progress.Grow(int64(s.SourceLSN - s.Replayed))
		} else if before > 0 && s.Replayed > before {
			j.Progress.Add(int64(min(s.Replayed, s.SourceLSN) - min(before, s.SourceLSN)))
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func closeConn(conn *pgx.Conn) {
	if conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		conn.Close(ctx)
	}
}

// look reads how far the server in dir is. The session is opened where there is
// none, and dropped where it broke.
func (s *Started) look(ctx context.Context, conn **pgx.Conn, dir string) error {
	err := s.query(ctx, conn, dir)
	if err != nil {
		closeConn(*conn)
		*conn = nil
	}
	return err
}

func (s *Started) query(ctx context.Context, conn **pgx.Conn, dir string) error {
	if *conn == nil {
		conninfo, err := postgres.LocalConnInfo(dir)
		if err != nil {
			return err
		}
		if *conn, err = postgres.Connect(ctx, conninfo); err != nil {
			return err
		}
	}
	var recovers bool
	var replayed string
	err := postgres.Query(ctx, *conn, `SELECT pg_is_in_recovery(), coalesce(pg_last_wal_replay_lsn(), '0/0')::text, coalesce(status, ''), coalesce(received_tli, 0),
			coalesce(sender_host || ':' || sender_port, '')
		FROM (SELECT 1) AS one LEFT JOIN pg_stat_wal_receiver ON true`, nil, &recovers, &replayed, &s.State, &s.Timeline, &s.Sender)
	if err != nil {
		return err
	}
	if !recovers {
		return exit.New(exit.Problem, "stop it: it is not a standby of the source", "the target came up as a primary")
	}
	s.Replayed, err = wal.ParseLSN(replayed)
	return err
}

// replayable is how far a follower of the source can replay now. It asks for no
// privilege.
func (s *source) replayable(ctx context.Context) (wal.LSN, timeline.ID, error) {
	conn, err := postgres.Connect(ctx, s.conn)
	if err != nil {
		return 0, 0, err
	}
	defer closeConn(conn)
	var lsn string
	err = postgres.Query(ctx, conn, `SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END::text`, nil, &lsn)
	if err != nil {
		return 0, 0, err
	}
	pos, err := wal.ParseLSN(lsn)
	if err != nil {
		return 0, 0, err
	}
	c, err := s.control(ctx)
	if err != nil {
		return 0, 0, err
	}
	_, tli, err := s.position(ctx, c)
	return pos, tli, err
}
