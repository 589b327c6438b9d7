package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/pkg/volume"
)

// StandbyOptions name a standby on this machine by its data directory, or for
// what needs no data directory by ConnInfo alone.
type StandbyOptions struct {
	Dir        string
	ConnInfo   string        // how to reach the standby; default: the socket that its postmaster.pid names
	Bindir     string        // the server's programs, found by itself where empty
	ConfigFile string        // postgresql.conf outside the data directory
	LogFile    string        // of a server that is started here
	Timeout    time.Duration // of waits; DefaultTimeout where 0
	FS         volume.FS
	Progress   progress.Reporter
	Log        *slog.Logger
}

// DefaultTimeout bounds the wait for a stream to begin or a position to be reached.
const DefaultTimeout = time.Minute

type standby struct{ StandbyOptions }

func newStandby(o StandbyOptions) (*standby, error) {
	if o.Dir != "" {
		dir, err := filepath.Abs(o.Dir)
		if err != nil {
			return nil, err
		}
		o.Dir = dir
	}
	if o.FS == nil {
		o.FS = volume.OS
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	o.Progress = progress.Or(o.Progress)
	return &standby{o}, nil
}

// needDir checks that the data directory is a whole cluster.
func (s *standby) needDir() error {
	if s.Dir == "" {
		return exit.New(exit.Usage, "name it with -D, or in PGDATA", "no data directory is given")
	}
	if _, err := postgres.DataDirMajor(s.Dir); err != nil {
		return err
	}
	if _, err := volume.ReadControl(s.Dir); err != nil && !s.unfinished() {
		return exit.Wrap(err, exit.Refused, "is this the data directory of a PostgreSQL 13 to 18 cluster?", "%s", s.Dir)
	}
	return s.refuseUnfinished()
}

func (s *standby) unfinished() bool {
	_, err := volume.ReadTombstone(s.FS, s.Dir)
	return err == nil
}

// refuseUnfinished refuses a directory on which another command has not ended.
func (s *standby) refuseUnfinished() error {
	p, err := blockcopy.Pending(s.FS, s.Dir)
	if err != nil {
		return err
	}
	if p != nil && p.State == blockcopy.Partial {
		return exit.New(exit.Refused, "run that again first, it goes on where it stopped: "+p.Plan.Command, "%s holds an unfinished %s", s.Dir, p.Plan.Operation)
	}
	return nil
}

func (s *standby) server() (*postgres.Server, error) {
	srv, err := postgres.NewServer(s.Dir, s.Bindir)
	if err != nil {
		return nil, err
	}
	srv.ConfigFile, srv.LogFile, srv.Log = s.ConfigFile, s.LogFile, s.Log
	return srv, nil
}

// connect opens a session on the standby itself.
func (s *standby) connect(ctx context.Context) (*pgx.Conn, error) {
	if s.ConnInfo != "" {
		return postgres.Connect(ctx, s.ConnInfo)
	}
	if s.Dir == "" {
		return postgres.Connect(ctx, "")
	}
	conninfo, err := postgres.LocalConnInfo(s.Dir)
	if err != nil {
		return nil, err
	}
	return postgres.Connect(ctx, conninfo)
}

// Start starts the standby's server if it does not run, turns receiving on,
// and proves that WAL streams.
func Start(ctx context.Context, o StandbyOptions) (*Status, error) {
	s, err := newStandby(o)
	if err != nil {
		return nil, err
	}
	if err := s.needDir(); err != nil {
		return nil, err
	}
	if _, err := s.FS.Lstat(filepath.Join(s.Dir, "standby.signal")); err != nil {
		return nil, exit.New(exit.Refused, "make it a standby first: dbctl rejoin, or dbrewind -R", "%s is not a standby: it has no standby.signal", s.Dir)
	}
	changed, err := s.receivingOn()
	if err != nil {
		return nil, err
	}
	srv, err := s.server()
	if err != nil {
		return nil, err
	}
	st, err := srv.Status()
	if err != nil {
		return nil, err
	}
	switch {
	case !st.Running:
		s.Progress.Phase("starting the server", 0, progress.Items)
		err = s.startServer(ctx, srv)
	case changed:
		err = srv.Reload()
	}
	if err != nil {
		return nil, err
	}
	return s.awaitStreaming(ctx)
}

// startServer starts the server and waits until it is consistent, however long
// it replays, unless it waits for WAL that it cannot get.
func (s *standby) startServer(ctx context.Context, srv *postgres.Server) error {
	srv.StartTimeout = s.Timeout
	for {
		err := srv.Start(ctx)
		if !errors.Is(err, postgres.ErrNotReady) {
			return err
		}
		conninfo, serr := srv.Setting(ctx, "primary_conninfo")
		if serr != nil {
			return errors.Join(err, serr)
		}
		if conninfo == "" {
			return exit.Wrap(err, exit.Failed, "set primary_conninfo (dbctl rejoin does), or a restore_command", "it has no primary to get WAL from")
		}
		repl, rerr := postgres.ConnectReplication(ctx, conninfo)
		if rerr != nil {
			return exit.Wrap(rerr, exit.Failed, exit.HintOf(rerr), "%s", err)
		}
		repl.Close()
		s.Progress.Note("the server replays and is not consistent yet; still waiting")
	}
}

// awaitStreaming waits until the standby's receiver streams.
func (s *standby) awaitStreaming(ctx context.Context) (*Status, error) {
	s.Progress.Phase("waiting for the stream of WAL", 0, progress.Items)
	deadline := time.Now().Add(s.Timeout)
	for {
		streaming, err := s.isStreaming(ctx)
		if err != nil {
			return nil, err
		}
		if streaming {
			return s.status(ctx)
		}
		if time.Now().After(deadline) {
			return s.notStreaming(ctx)
		}
		if !pause(ctx, 50*time.Millisecond) {
			return nil, ctx.Err()
		}
	}
}

func (s *standby) isStreaming(ctx context.Context) (streaming bool, err error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return streaming, postgres.Query(ctx, conn, "SELECT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')", nil, &streaming)
}

// notStreaming says why no WAL comes, by trying what the standby tries.
func (s *standby) notStreaming(ctx context.Context) (*Status, error) {
	st, err := s.status(ctx)
	if err != nil {
		return nil, err
	}
	hint := "look into the server's log"
	var why error
	conninfo := s.upstream(ctx)
	if conninfo == "" {
		why = errors.New("primary_conninfo is empty")
		hint = "set primary_conninfo (dbctl rejoin does), then run dbrepl start again"
	} else if repl, err := postgres.ConnectReplication(ctx, conninfo); err != nil {
		why, hint = err, exit.HintOf(err)
	} else {
		repl.Close()
		hint += "; the primary does accept replication sessions. Is the WAL that the standby needs still there?"
	}
	return st, exit.Wrap(why, exit.Failed, hint, "the server runs, but receives no WAL after %s", s.Timeout)
}

// upstream returns primary_conninfo as the running server has it.
func (s *standby) upstream(ctx context.Context) string {
	conn, err := s.connect(ctx)
	if err != nil {
		return ""
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var value string
	if err := postgres.Query(ctx, conn, "SELECT current_setting('primary_conninfo')", nil, &value); err != nil {
		return ""
	}
	return value
}

// StopOptions say how far Stop goes.
type StopOptions struct {
	StandbyOptions
	Server bool // stop the server too
	Mode   postgres.StopMode
}

// StopResult is what Stop did.
type StopResult struct {
	Dir       string `json:"data_directory"`       // the standby
	Receiving bool   `json:"receiving"`            // whether it still receives WAL: false
	Running   bool   `json:"running"`              // whether its server runs
	Changed   bool   `json:"changed"`              // false when there was nothing to do
	Replayed  string `json:"replay_lsn,omitempty"` // how far it had replayed, while the server runs
}

// Stop turns receiving off. The server stays up and readable unless told.
func Stop(ctx context.Context, o StopOptions) (StopResult, error) {
	s, err := newStandby(o.StandbyOptions)
	if err != nil {
		return StopResult{}, err
	}
	r := StopResult{Dir: s.Dir}
	if err := s.needDir(); err != nil {
		return r, err
	}
	if _, err := s.FS.Lstat(filepath.Join(s.Dir, "standby.signal")); err != nil {
		return r, exit.New(exit.Refused, "dbctl stop stops a primary", "%s is not a standby: it has no standby.signal", s.Dir)
	}
	if r.Changed, err = s.receivingOff(); err != nil {
		return r, err
	}
	srv := &postgres.Server{DataDir: s.Dir, LogFile: s.LogFile}
	st, err := srv.Status()
	if err != nil {
		return r, err
	}
	if !st.Running {
		return r, nil
	}
	if o.Server {
		ctx, cancel := context.WithTimeoutCause(ctx, s.Timeout, fmt.Errorf("no end after %s", s.Timeout))
		defer cancel()
		r.Changed = true
		return r, srv.Stop(ctx, o.Mode)
	}
	r.Running = true
	if err := srv.Reload(); err != nil {
		return r, err
	}
	r.Replayed, err = s.awaitSilence(ctx)
	return r, err
}

// awaitSilence waits until the receiver has ended and returns the replay position.
func (s *standby) awaitSilence(ctx context.Context) (replayed string, err error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	deadline := time.Now().Add(s.Timeout)
	for {
		var receiving bool
		err := postgres.Query(ctx, conn, "SELECT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE pid IS NOT NULL), coalesce(pg_last_wal_replay_lsn()::text, '')", nil, &receiving, &replayed)
		if err != nil || !receiving {
			return replayed, err
		}
		if time.Now().After(deadline) {
			return replayed, exit.New(exit.Failed, "look into the server's log", "the server still receives WAL after %s", s.Timeout)
		}
		if !pause(ctx, 50*time.Millisecond) {
			return replayed, ctx.Err()
		}
	}
}

// sanitized strips what a connection string may hold of secrets.
func sanitized(conninfo string) string {
	if strings.TrimSpace(conninfo) == "" {
		return ""
	}
	return postgres.Redact(conninfo)
}
