package rewind

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// job is one look at a target and its source.
type job struct {
	Options
	source   *source
	tc, sc   *volume.Control
	th, sh   *timeline.History
	wal      *targetWAL
	warns    sync.Mutex
	warnings []string
	search   *walSearch // for WAL that neither side has; nil before the histories are read
	hold     *pgx.Conn  // holds the source's WAL; nil where nothing does
	look     bool       // no more than that is wanted
	listing  *listing   // of the source, where begun ahead
	needsWAL bool       // the target's, whatever --compare could do without it
	crashed  bool       // the target was not shut down, and is looked at as it is
}

// open opens the source. Nothing of the target is looked at yet.
func open(ctx context.Context, o Options) (*job, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Progress = progress.Or(o.Progress)
	o.Jobs = cmp.Or(o.Jobs, max(blockcopy.DefaultJobs, runtime.NumCPU()))
	if o.Target == "" {
		return nil, exit.New(exit.Usage, "name it with -D (--target-pgdata)", "no target data directory given")
	}
	if _, err := os.Stat(filepath.Join(o.Target, volume.ControlPath)); errors.Is(err, fs.ErrNotExist) {
		return nil, exit.New(exit.Failed, "name the data directory of a cluster with -D", "%s is not a PostgreSQL data directory: it has no %s", o.Target, volume.ControlPath)
	}
	running, err := postgres.IsRunning(o.Target)
	if err != nil {
		return nil, err
	}
	if running {
		return nil, exit.New(exit.Refused, "stop it first: pg_ctl -D "+o.Target+" stop -m fast", "a server is running on the target %s", o.Target)
	}
	src, err := openSource(ctx, o)
	if err != nil {
		return nil, err
	}
	return &job{Options: o, source: src}, nil
}

func (j *job) close() {
	if j.listing != nil {
		<-j.listing.done // it uses a session
	}
	if j.wal != nil {
		j.wal.close()
	}
	j.letGo()
	if err := j.source.Close(); err != nil {
		j.Log.Debug("closing the source", "error", err)
	}
	j.search.close()
}

func (j *job) warn(format string, args ...any) {
	j.warns.Lock()
	defer j.warns.Unlock()
	j.warnings = append(j.warnings, fmt.Sprintf(format, args...))
}

func (j *job) targetName() string { return "directory " + j.Target }

// readTarget reads the target's pg_control.
func (j *job) readTarget(mayChange bool) error {
	if mayChange {
		if err := postgres.RestoreSignalFiles(j.Target); err != nil { // a killed recovery may have left them aside
			return err
		}
	}
	var err error
	if j.tc, err = volume.ReadControl(j.Target); err != nil {
		return exit.Wrap(err, exit.Failed, "the target cannot be read: seed it anew (dbrepl seed)", "the target's control file")
	}
	switch major, err := postgres.DataDirMajor(j.Target); {
	case err != nil:
		return err
	case major != j.tc.Major():
		return exit.New(exit.Refused, "one of the two files is not this cluster's; seed the node anew (dbrepl seed)",
			"the target's PG_VERSION says %d, its pg_control is of PostgreSQL %d", major, j.tc.Major())
	}
	return nil
}

// recoverTarget has a crashed target recovered, unless nothing may be changed.
func (j *job) recoverTarget(ctx context.Context, mayChange bool) error {
	if j.tc.State.Clean() {
		return nil
	}
	if j.NoEnsureShutdown {
		return exit.New(exit.Refused, "start and stop it once, or leave out --no-ensure-shutdown", "the target was not shut down cleanly: its state is %q", j.tc.State)
	}
	if !mayChange {
		j.crashed = true
		return nil
	}
	server, err := j.server()
	if err != nil {
		return err
	}
	j.Log.Info("recovering the crashed target", "state", j.tc.State)
	j.Progress.Phase("crash recovery of the target", 0, progress.Items)
	// Its checkpoint must not recycle WAL that is still to be read.
	server.Args = []string{"-c", "wal_keep_size=2147483647"}
	if err := server.Recover(ctx); err != nil {
		return err
	}
	if j.tc, err = volume.ReadControl(j.Target); err != nil {
		return err
	}
	if !j.tc.State.Clean() {
		return exit.New(exit.Failed, "start and stop it once by hand", "the target is still %q after crash recovery", j.tc.State)
	}
	return nil
}

func (j *job) server() (*postgres.Server, error) {
	s, err := postgres.NewServer(j.Target, j.Bindir)
	if err != nil {
		return nil, err
	}
	s.ConfigFile, s.Log = j.ConfigFile, j.Log
	return s, nil
}

// check reads the source and refuses pairs that do not fit.
func (j *job) check(ctx context.Context) (err error) {
	if j.sc, err = j.source.control(ctx); err != nil {
		return err
	}
	t, s := j.tc, j.sc
	refuse := func(hint, format string, args ...any) error { return exit.New(exit.Refused, hint, format, args...) }
	switch {
	case t.SystemIdentifier != s.SystemIdentifier:
		return refuse("they are not copies of one cluster; check -D and the source", "target and source have different system identifiers (%d and %d)", t.SystemIdentifier, s.SystemIdentifier)
	case t.PgControlVersion != s.PgControlVersion || t.CatalogVersionNo != s.CatalogVersionNo:
		return refuse("a major version upgrade lies between them: seed the node anew", "target is PostgreSQL %d, source is PostgreSQL %d", t.Major(), s.Major())
	case t.BlockSize != s.BlockSize || t.RelSegSize != s.RelSegSize || t.XLogSegSize != s.XLogSegSize || t.XLogBlockSize != s.XLogBlockSize:
		return refuse("seed the node anew", "target and source differ in block or segment sizes")
	case !t.Checksums() && !t.WalLogHints && !j.Compare:
		return refuse("its WAL does not tell all changes; find them by hashes on both sides (--compare), or seed the node anew, and set wal_log_hints = on (or enable checksums) for the next time",
			"the target has neither data checksums nor wal_log_hints = on")
	case !j.source.live() && j.source.repo == nil && !s.State.Clean():
		return refuse("start and stop it once, or use it as a live source", "the source was not shut down cleanly: its state is %q", s.State)
	}
	return j.source.checkLive(ctx)
}

// readHistories reads both histories, and opens the target's WAL.
func (j *job) readHistories(ctx context.Context) error {
	if err := j.openSearch(ctx); err != nil {
		return err
	}
	var err error
	j.th, err = readHistory(j.tc.Timeline(), "the target", j.orArchived(ctx, func(path string) ([]byte, error) {
		return os.ReadFile(filepath.Join(j.Target, path))
	}))
	if err != nil {
		return err
	}
	j.wal = newTargetWAL(j.Target, j.th, j.tc.XLogSegSize, j.search)
	j.sh, err = readHistory(j.sourceTimeline(ctx), "the source", j.orArchived(ctx, j.source.read(ctx)))
	j.wal.source, j.wal.common = j.source, j.sh
	return err
}

// orArchived is a read function for readHistory that searches for what the
// side itself does not have.
func (j *job) orArchived(ctx context.Context, read func(string) ([]byte, error)) func(string) ([]byte, error) {
	return func(path string) ([]byte, error) {
		data, err := read(path)
		name := filepath.Base(path)
		if !errors.Is(err, fs.ErrNotExist) || name == wal.HistoryName(1) {
			return data, err
		}
		l, serr := j.search.find(ctx, name)
		if serr != nil {
			return nil, serr
		}
		if l.path == "" {
			return nil, errors.Join(err, l.fault)
		}
		return os.ReadFile(l.path)
	}
}

// sourceTimeline is pg_control's, or for a live primary the one it writes now.
func (j *job) sourceTimeline(ctx context.Context) timeline.ID {
	if j.source.repo != nil {
		return j.source.repo.history.Timeline
	}
	tli := j.sc.Timeline()
	if _, now, err := j.source.position(ctx, j.sc); err == nil {
		tli = max(tli, now)
	}
	return j.source.heading(ctx, j.sc, tli)
}

// walOptions are the options with which all of the target's WAL is read.
func (j *job) walOptions(start wal.LSN) wal.Options {
	return wal.Options{Start: start, SegmentSize: j.tc.XLogSegSize, PageSize: j.tc.XLogBlockSize, BlockSize: j.tc.BlockSize,
		SystemID: j.tc.SystemIdentifier, Major: j.tc.Major()}
}
