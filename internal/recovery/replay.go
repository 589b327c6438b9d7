package recovery

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// ReplayOptions say which restored directory to bring to its target.
type ReplayOptions struct {
	DataDir    string
	Bindir     string
	ConfigFile string // postgresql.conf where it lies outside the data directory
	Then       Then   // at the target; where empty, what the restore was told
	Start      bool   // leave the server running, as its own configuration says
	Progress   progress.Reporter
	Log        *slog.Logger
}

// Outcome is where a replay ended, and what proves it.
type Outcome struct {
	DataDir    string      `json:"data_directory"`            // of the recovered cluster
	Reached    bool        `json:"target_reached"`            // the server stopped at the target and did not just run out of WAL; for the latest point the end of the WAL is the target
	Target     Target      `json:"target"`                    // where replay was to stop
	Evidence   string      `json:"evidence,omitempty"`        // the server's own word: its log's line about the stop, or the reason in the new timeline's history
	ReplayedTo wal.LSN     `json:"replayed_to"`               // end of the last record replayed
	LastCommit time.Time   `json:"last_transaction,omitzero"` // when the last transaction that was replayed had ended
	Timeline   timeline.ID `json:"timeline"`                  // of the cluster now
	Then       Then        `json:"then"`                      // what the server was told to do at the target
	State      string      `json:"state"`                     // promoted, paused, or stopped at the target
	Running    bool        `json:"running"`                   // whether the server runs
	ConnInfo   string      `json:"conninfo,omitempty"`        // how to connect to the running server
	WALBytes   int64       `json:"wal_bytes,omitempty"`       // replayed since the backup's redo point
	Took       float64     `json:"took_seconds"`              // from the server's start to its end
}

// The states of an Outcome.
const (
	statePromoted = "promoted"
	statePaused   = "paused"
	stateStopped  = "stopped at the target"
)

// ErrNotRestored is returned for a directory in which no recovery is to be run.
var ErrNotRestored = errors.New("no restored cluster waits for its recovery")

// Replay starts a server on a restored directory, where nobody else can reach
// it, watches it replay, and proves that it stopped at the target. A replay
// that was interrupted goes on where it was.
func Replay(ctx context.Context, o ReplayOptions) (*Outcome, error) {
	begun := time.Now()
	r, err := newReplay(o)
	if err != nil {
		return nil, err
	}
	defer r.close()
	if err := r.run(ctx); err != nil {
		return nil, err
	}
	r.outcome.Took = time.Since(begun).Seconds()
	return r.outcome, nil
}

type replay struct {
	ReplayOptions
	record  *Record // nil where the directory was restored by other means
	control *volume.Control
	server  *postgres.Server
	scratch string // sockets and log of the private server
	keep    bool   // the scratch directory is still in use
	outcome *Outcome
}

func newReplay(o ReplayOptions) (*replay, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Progress = progress.Or(o.Progress)
	r := &replay{ReplayOptions: o}
	if err := r.inspect(); err != nil {
		return nil, err
	}
	server, err := postgres.NewServer(o.DataDir, o.Bindir)
	if err != nil {
		return nil, err
	}
	server.ConfigFile, server.Log, server.DieWithParent = o.ConfigFile, o.Log, true
	r.server = server
	r.outcome = &Outcome{DataDir: o.DataDir, Then: Promote}
	if r.record != nil {
		r.outcome.Target, r.outcome.Then = r.record.Request.Target, r.record.Then
	}
	if o.Then != "" {
		r.outcome.Then = o.Then
	}
	return r, nil
}

// inspect makes sure that the directory is one to run a recovery in.
func (r *replay) inspect() error {
	dir := r.DataDir
	var err error
	if r.control, err = volume.ReadControl(dir); err != nil {
		if stone, e := volume.ReadTombstone(volume.OS, dir); e == nil {
			return exit.New(exit.Refused, "finish it first:\n    "+stone.Command, "%s is not complete: a %s has not ended", dir, stone.Operation)
		}
		return exit.Wrap(err, exit.Failed, "restore a backup into a new directory: dbrecover run --repo DIR -D NEWDIR",
			"%s is not a data directory that can be recovered", dir)
	}
	if stone, err := volume.ReadTombstone(volume.OS, dir); err == nil {
		return exit.New(exit.Refused, "finish it first:\n    "+stone.Command, "%s is not complete: a %s has not ended", dir, stone.Operation)
	}
	if pid, err := volume.RunningServer(volume.OS, dir); err != nil {
		return err
	} else if pid != nil {
		return exit.New(exit.Refused, "stop it first", "a server is running in %s (process %d)", dir, pid.PID)
	}
	r.record, err = ReadRecord(volume.OS, dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if r.record == nil && !r.signalled() {
		return exit.Wrap(ErrNotRestored, exit.Refused, "restore a backup first: dbrecover run --repo DIR -D NEWDIR", "%s", dir)
	}
	return nil
}

func (r *replay) signalled() bool {
	_, err := os.Stat(filepath.Join(r.DataDir, recoverySignal))
	return err == nil
}

func (r *replay) close() {
	if r.scratch != "" && !r.keep {
		if err := os.RemoveAll(r.scratch); err != nil {
			r.Log.Warn("removing the private server's directory", "error", err)
		}
	}
}

func (r *replay) run(ctx context.Context) error {
	if !r.signalled() { // it ended before, and was interrupted while it cleaned up
		return r.finish(ctx, nil)
	}
	var err error
	if r.scratch, err = os.MkdirTemp(shortTemp(), "dbrecover-"); err != nil {
		return err
	}
	r.server.LogFile = filepath.Join(r.scratch, "server.log")
	r.server.Args = privateArgs(r.scratch, r.outcome.Then)
	r.server.DieWithParent = r.outcome.Then != Pause
	err = r.watch(ctx)
	if err != nil {
		return r.stopAfter(err)
	}
	log, err := readServerLog(r.server.LogFile)
	if err != nil {
		return r.stopAfter(err)
	}
	return r.finish(ctx, log)
}

// shortTemp is the directory for temporary files, unless its path is too long
// for a socket below it.
func shortTemp() string {
	if dir := os.TempDir(); len(dir) <= 60 {
		return dir
	}
	return "/tmp"
}

// privateArgs make the server one that only the owner of the data directory
// can reach, that says in English what it does, and that does nothing but
// replay.
func privateArgs(dir string, then Then) []string {
	// Recovery is paused where hot standby wants higher settings than this
	// configuration has, so hot standby is on only where a pause needs it.
	hotStandby := "off"
	if then == Pause {
		hotStandby = "on"
	}
	var args []string
	for _, s := range []string{
		"listen_addresses=", "unix_socket_directories=" + dir, "unix_socket_permissions=0700", "ssl=off",
		"hot_standby=" + hotStandby, "recovery_target_action=" + string(then), "max_logical_replication_workers=0",
		"lc_messages=C", "TimeZone=UTC", "log_timezone=UTC",
		"logging_collector=off", "log_destination=stderr", "log_min_messages=warning", "update_process_title=on",
	} {
		args = append(args, "-c", s)
	}
	return args
}

// stopAfter ends the private server and returns why it did not get there. What
// it has replayed stays, a later run goes on from there.
func (r *replay) stopAfter(cause error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	err := errors.Join(cause, r.server.Stop(ctx, postgres.StopFast))
	code := exit.Partial
	if c := exit.CodeOf(cause); c == exit.Refused || c == exit.Problem {
		code = c
	}
	hint := exit.HintOf(cause)
	if hint != "" {
		hint += "\n"
	}
	return exit.Wrap(err, code, hint+"what was replayed stays: run the same command again to go on", "the recovery in %s did not end", r.DataDir)
}

// watch starts the server and waits until it has reached its target.
func (r *replay) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	started := make(chan error, 1)
	go func() { started <- r.server.Start(ctx) }()
	p := newReplayProgress(r.Progress, r.record, r.control)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	up := false
	for {
		select {
		case <-ctx.Done():
			<-startedOnce(started, up)
			return context.Cause(ctx)
		case err := <-started:
			if err != nil && !r.stoppedAtTarget() {
				return r.explain(err)
			}
			if err != nil {
				return nil
			}
			up, started = true, nil
		case <-tick.C:
		}
		done, err := r.look(up, p)
		if done || err != nil {
			return err
		}
	}
}

// startedOnce is the channel that tells of the start's end, or a closed one
// where it was told already.
func startedOnce(started chan error, up bool) <-chan error {
	if !up {
		return started
	}
	c := make(chan error)
	close(c)
	return c
}

// look takes one look at the server.
func (r *replay) look(up bool, p *replayProgress) (done bool, err error) {
	c, err := volume.ReadControl(r.DataDir)
	if err != nil {
		return false, err
	}
	status, err := r.server.Status()
	if err != nil {
		return false, err
	}
	p.update(c, status.PID)
	if !up {
		return false, nil
	}
	switch {
	case c.State == volume.StateInProduction:
		return true, nil
	case !status.Running:
		if r.stoppedAtTarget() {
			return true, nil
		}
		return false, r.explain(errors.New("the server ended"))
	case r.outcome.Then == Pause:
		log, err := readServerLog(r.server.LogFile)
		if err == nil && log.settings {
			err = exit.New(exit.Partial, "raise the settings that the server's log names in postgresql.conf, or do not pause:\n"+log.tail,
				"the server cannot be looked at while it recovers: its settings are lower than the primary's were")
		}
		return err == nil && log.paused && log.stop != "", err
	}
	return false, nil
}

// stoppedAtTarget tells whether the server ended because it was told to shut
// down at the target.
func (r *replay) stoppedAtTarget() bool {
	if r.outcome.Then != Stopped {
		return false
	}
	c, err := volume.ReadControl(r.DataDir)
	log, logErr := readServerLog(r.server.LogFile)
	return err == nil && logErr == nil && c.State == volume.StateShutdownedRecovery && log.stop != ""
}

// explain turns the end of the server into what went wrong with the recovery.
func (r *replay) explain(cause error) error {
	log, err := readServerLog(r.server.LogFile)
	if err != nil {
		return errors.Join(cause, err)
	}
	if log.endedEarly {
		hint := "see which segments the archive holds, push what is missing, and run the command again"
		return exit.New(exit.Partial, hint, "the WAL ended before the target, %s: the server replayed to %s",
			r.outcome.Target, log.redoneTo)
	}
	if log.fatal != "" {
		return exit.New(exit.Partial, "the server's log ends with:\n"+log.tail, "the server stopped: %s", log.fatal)
	}
	return cause
}

// finish proves where the replay ended and leaves the server as was asked.
func (r *replay) finish(ctx context.Context, log *serverLog) error {
	o := r.outcome
	if log != nil {
		o.Evidence, o.LastCommit, o.ReplayedTo = log.stop, log.lastCommit, log.redoneTo
		o.Reached = log.stop != "" || o.Target.Kind == Latest
	}
	if log != nil && log.paused && o.Then == Pause {
		status, err := r.server.Status()
		if err != nil {
			return err
		}
		o.State, o.Running, o.ConnInfo, r.keep = statePaused, true, status.ConnInfo(), true
		o.Timeline = r.control.Timeline()
		if s := r.expected(); s != nil && o.Reached {
			o.ReplayedTo = s.End
		}
		return r.count()
	}
	if err := r.server.Stop(ctx, postgres.StopFast); err != nil {
		return err
	}
	c, err := volume.ReadControl(r.DataDir)
	if err != nil {
		return err
	}
	o.Timeline = c.Timeline()
	if r.signalled() {
		o.State = stateStopped
		o.ReplayedTo = max(o.ReplayedTo, c.MinRecoveryPoint)
		return r.count()
	}
	o.State = statePromoted
	if err := r.proveFromHistory(c); err != nil {
		return err
	}
	if err := r.count(); err != nil {
		return err
	}
	if err := r.tidy(); err != nil {
		return err
	}
	return r.restart(ctx)
}

// proveFromHistory takes the switch point and the reason that the server wrote
// down when it began the new timeline.
func (r *replay) proveFromHistory(c *volume.Control) error {
	id := c.Timeline()
	data, err := os.ReadFile(filepath.Join(r.DataDir, "pg_wal", wal.HistoryName(id)))
	if err != nil {
		return fmt.Errorf("the recovery ended, but there is no history of timeline %d: %w", id, err)
	}
	h, err := timeline.Parse(id, data)
	if err != nil {
		return err
	}
	if len(h.Entries) == 0 {
		return fmt.Errorf("the history of timeline %d names no parent", id)
	}
	last := h.Entries[len(h.Entries)-1]
	o := r.outcome
	o.ReplayedTo = last.Switch
	if o.Evidence == "" {
		o.Evidence = last.Reason
	}
	o.Reached = o.Reached || o.Target.Kind == Latest || last.Reason != noTarget
	if !o.Reached {
		return exit.New(exit.Problem, "restore again, and look why the server did not find its target",
			"the server was promoted at %s without having reached the target, %s", last.Switch, o.Target)
	}
	if s := r.expected(); s != nil && s.End != last.Switch && s.End.Align() != last.Switch {
		r.Progress.Note("the archive said that replay would end at %s, the server ended it at %s", s.End, last.Switch)
	}
	return nil
}

// noTarget is the reason that a server gives when it was promoted at the end
// of the WAL.
const noTarget = "no recovery target specified"

func (r *replay) expected() *Stop {
	if r.record == nil || r.record.Resolution == nil || r.outcome.Target.Kind == Immediate {
		return nil
	}
	return r.record.Resolution.Stop
}

func (r *replay) count() error {
	if r.record != nil && r.record.Resolution != nil && r.outcome.ReplayedTo > r.record.Resolution.From {
		r.outcome.WALBytes = int64(r.outcome.ReplayedTo - r.record.Resolution.From)
	}
	return nil
}

// tidy removes what the recovery needed, so that a later standby or restart
// does not find an old target.
func (r *replay) tidy() error {
	name := filepath.Join(r.DataDir, postgres.AutoConfFile)
	conf, err := volume.ReadFile(volume.OS, name, 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if r.record != nil {
		if err := volume.WriteFile(volume.OS, name, postgres.RewriteConf(conf, ownSettings()), 0o600); err != nil {
			return err
		}
	}
	return volume.RemoveDurable(volume.OS, filepath.Join(r.DataDir, RecordFile))
}

// restart leaves the server running as its own configuration says, where that
// was asked for.
func (r *replay) restart(ctx context.Context) error {
	if !r.Start {
		return nil
	}
	s, err := postgres.NewServer(r.DataDir, r.Bindir)
	if err != nil {
		return err
	}
	s.ConfigFile, s.Log = r.ConfigFile, r.Log
	if err := s.Start(ctx); err != nil {
		return exit.Wrap(err, exit.Partial, exit.HintOf(err), "the recovery has ended well, but the server did not start")
	}
	status, err := s.Status()
	r.outcome.Running, r.outcome.ConnInfo = true, status.ConnInfo()
	return err
}
