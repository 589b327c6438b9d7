package replication

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// SeedOptions say what to copy and where to. Dir and ConnInfo are needed.
type SeedOptions struct {
	Dir      string // the new data directory: missing, empty, or an unfinished seed
	ConnInfo string // the source, primary or standby; libpq's environment fills in the rest
	Slot     string // replication slot at the source; default: DefaultSlot(Dir)
	Jobs     int    // sessions that copy files, blockcopy.DefaultJobs where 0
	// Tablespaces maps a tablespace's directory at the source to the one here.
	Tablespaces map[string]string
	DryRun      bool   // plan only: no slot, no checkpoint, nothing written
	Command     string // the command line to run again, for hints
	FS          volume.FS
	Progress    progress.Reporter
	Log         *slog.Logger
}

// SeedResult is what a seed did, or for a dry run would do.
type SeedResult struct {
	Dir        string         `json:"data_directory"`           // the new data directory
	Source     string         `json:"source"`                   // the server that was copied
	SystemID   uint64         `json:"system_identifier,string"` // of the cluster
	Slot       string         `json:"slot"`                     // the replication slot at the source, kept for the standby
	Timeline   wal.TimelineID `json:"timeline"`                 // at the end
	Start      wal.LSN        `json:"start_lsn"`                // the redo point where replay begins
	End        wal.LSN        `json:"end_lsn"`                  // where the standby is consistent
	Files      int            `json:"files"`                    // files in the plan
	TotalBytes int64          `json:"total_bytes"`              // size of the files in the plan
	Copied     int64          `json:"copied_bytes"`             // by this run
	Kept       int64          `json:"kept_bytes"`               // durable from earlier runs, not copied again
	WAL        int64          `json:"wal_bytes"`                // from start to end
	Resumed    bool           `json:"resumed"`                  // this run went on where another had stopped
	Restarts   int            `json:"restarts"`                 // how often it had to start again from a later checkpoint
	DryRun     bool           `json:"dry_run"`                  // nothing was done
	Elapsed    float64        `json:"elapsed_seconds"`          // of this run
	// Plan is what would be done, of a dry run only.
	Plan *blockcopy.Plan `json:"plan,omitempty"`
}

// maxRestarts bounds how often a seed starts again by itself.
const maxRestarts = 5

// operation is the name of a seed in its tombstone and journal.
const operation = "seed"

// seedMeta is what a resumed seed must know; it is kept in the plan.
type seedMeta struct {
	SystemID   uint64          `json:"system_identifier,string"`
	Timeline   wal.TimelineID  `json:"timeline"` // of the checkpoint
	Redo       wal.LSN         `json:"redo"`
	Checkpoint wal.LSN         `json:"checkpoint"`
	Slot       string          `json:"slot"`
	SlotMade   bool            `json:"slot_made"` // by the seed: it may drop it
	Standby    bool            `json:"from_standby"`
	Templates  []string        `json:"template_directories"` // directories of the template databases
	Size       wal.SegmentSize `json:"wal_segment_size"`
}

// startAgain is returned when the copy begun cannot become right: it must
// start from a later checkpoint.
type startAgain struct{ why string }

func (e *startAgain) Error() string { return e.why }

// Seed makes a standby of a running server in o.Dir, or goes on with a seed
// that was cut off.
func Seed(ctx context.Context, o SeedOptions) (SeedResult, error) {
	began := time.Now()
	o, err := o.withDefaults()
	if err != nil {
		return SeedResult{}, err
	}
	slotMade := false
	for restarts := 0; ; restarts++ {
		s := &seeder{SeedOptions: o, slotMade: slotMade}
		err := s.run(ctx)
		slotMade = s.slotMade || s.meta.SlotMade
		s.close()
		s.result.Restarts = restarts
		s.result.Elapsed = time.Since(began).Seconds()
		var again *startAgain
		if !errors.As(err, &again) || o.DryRun {
			return s.result, err
		}
		if restarts == maxRestarts {
			return s.result, exit.Wrap(err, exit.Partial, "create databases and tablespaces at another time, then run the same command again",
				"started again %d times, and each time the copy could not be made consistent", restarts)
		}
		o.Progress.Note("starting again from a later checkpoint: %s", again.why)
		if err := wipe(o.FS, o.Dir); err != nil {
			return s.result, exit.Wrap(err, exit.Partial, "run the same command again", "removing what was copied from %s", o.Dir)
		}
	}
}

func (o SeedOptions) withDefaults() (SeedOptions, error) {
	if o.Dir == "" {
		return o, exit.New(exit.Usage, "name the new data directory with -D", "no data directory is given")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return o, err
	}
	o.Dir = dir
	if o.FS == nil {
		o.FS = volume.OS
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Progress = progress.Or(o.Progress)
	for from, to := range o.Tablespaces {
		if !filepath.IsAbs(from) || !filepath.IsAbs(to) {
			return o, exit.New(exit.Usage, "give both as absolute paths: --tablespace /srv/fast=/data/fast", "tablespace mapping %s=%s", from, to)
		}
	}
	return o, nil
}

// seeder is one attempt.
type seeder struct {
	SeedOptions
	meta     seedMeta
	plan     *blockcopy.Plan
	pending  *blockcopy.PendingRun
	src      *postgres.ServerSource
	source   *watchedSource
	stream   *stream
	result   SeedResult
	madeDir  bool
	slotMade bool // by this command, now or in the run that it resumes
	// templatesAt is a position (wal.LSN) before which the template databases
	// were copied, 0 where it is not known.
	templatesAt atomic.Uint64
	booted      time.Time // when the source's server was started, to tell it from another one
}

func (s *seeder) close() {
	if s.stream != nil {
		s.stream.stop()
	}
	if s.src != nil {
		s.src.Close()
	}
}

func (s *seeder) run(ctx context.Context) error {
	if err := s.inspect(); err != nil {
		return err
	}
	var err error
	if s.src, err = postgres.OpenSource(ctx, s.ConnInfo); err != nil {
		return err
	}
	s.result.Dir, s.result.Source, s.result.DryRun = s.Dir, s.src.Name(), s.DryRun
	source, err := s.examine(ctx)
	if err != nil {
		return err
	}
	if s.pending != nil {
		err = s.resume(ctx, source)
	} else {
		err = s.begin(ctx, source)
	}
	if err != nil {
		return err
	}
	s.result.SystemID, s.result.Slot, s.result.Start, s.result.Timeline = s.meta.SystemID, s.meta.Slot, s.meta.Redo, s.meta.Timeline
	s.result.Files, s.result.TotalBytes = s.plan.Totals.Copied, s.plan.Totals.CopiedBytes
	if s.DryRun {
		s.result.Plan = s.plan
		return nil
	}
	if s.pending != nil && s.pending.State == blockcopy.Finished {
		// Whole already, perhaps running: only the journal is left.
		s.result.Kept = s.plan.Totals.CopiedBytes
		return blockcopy.Discard(s.FS, s.Dir)
	}
	return s.copy(ctx)
}

// inspect looks at the target before anything else is done.
func (s *seeder) inspect() error {
	entries, err := s.FS.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && len(entries) == 0) {
		return nil
	}
	if err != nil {
		return err
	}
	stone, err := volume.ReadTombstone(s.FS, s.Dir)
	if err == nil && stone.Operation == operation && !hasJournal(s.FS, s.Dir) {
		// The removal of an abandoned seed was cut off.
		if s.DryRun {
			return nil
		}
		return wipe(s.FS, s.Dir)
	}
	pending, err := blockcopy.Pending(s.FS, s.Dir)
	if err != nil {
		return err
	}
	switch {
	case pending == nil:
		if running, _ := postgres.IsRunning(s.Dir); running {
			return exit.New(exit.Refused, "name a new directory", "a server is running in %s", s.Dir)
		}
		return exit.New(exit.Refused, "name a new directory, or empty this one first", "%s is not empty", s.Dir)
	case pending.Plan.Operation != operation:
		return exit.New(exit.Refused, "finish that first: "+pending.Plan.Command, "%s holds an unfinished %s", s.Dir, pending.Plan.Operation)
	case pending.State == blockcopy.Planned && len(entries) == 1 && !s.DryRun:
		return blockcopy.Discard(s.FS, s.Dir) // nothing was done: a new plan is better
	}
	s.pending, s.plan = pending, pending.Plan
	if err := json.Unmarshal(pending.Plan.Meta, &s.meta); err != nil {
		return exit.Wrap(err, exit.Refused, "remove the directory and seed it anew", "the plan in %s cannot be read", s.Dir)
	}
	return nil
}

func hasJournal(fsys volume.FS, dir string) bool {
	_, err := fsys.Lstat(filepath.Join(dir, blockcopy.JournalDir))
	return err == nil
}

// resume checks that the seed that was cut off can be finished from this source.
func (s *seeder) resume(ctx context.Context, source *sourceFacts) error {
	if source.system.ID != s.meta.SystemID {
		return exit.New(exit.Refused, "connect to a server of the cluster that the seed began from, or remove the directory",
			"%s holds an unfinished seed of the cluster with system identifier %d, the source's is %d", s.Dir, s.meta.SystemID, source.system.ID)
	}
	if s.Slot != "" && s.Slot != s.meta.Slot {
		return exit.New(exit.Refused, "leave --slot out, or give the same one", "the unfinished seed in %s uses the slot %s", s.Dir, s.meta.Slot)
	}
	if source.control.CheckPointCopy.Redo < s.meta.Redo {
		return exit.New(exit.Refused, "use the server that the seed began from, or wait until this one has replayed more",
			"the source is behind the start of the seed: its last checkpoint begins at %s, the seed's at %s", source.control.CheckPointCopy.Redo, s.meta.Redo)
	}
	if source.system.Timeline != s.meta.Timeline {
		return &startAgain{fmt.Sprintf("the source is on timeline %d now, the seed began on %d", source.system.Timeline, s.meta.Timeline)}
	}
	s.result.Resumed = true
	s.meta.Standby = source.standby
	if s.DryRun || s.pending.State == blockcopy.Finished {
		return nil
	}
	return s.ensureSlot(ctx, source)
}

// begin fixes the start of a new seed and plans it.
func (s *seeder) begin(ctx context.Context, source *sourceFacts) error {
	if s.Slot == "" {
		s.Slot = DefaultSlot(s.Dir)
	}
	s.meta = seedMeta{SystemID: source.system.ID, Slot: s.Slot, Standby: source.standby, Size: source.control.XLogSegSize}
	if err := s.checkSource(source); err != nil {
		return errors.Join(err, s.dropOwnSlot())
	}
	control := source.control
	if !s.DryRun {
		var err error
		if control, err = s.startPoint(ctx, source); err != nil {
			return errors.Join(err, s.dropOwnSlot())
		}
	}
	s.meta.SlotMade = s.slotMade
	s.meta.Redo, s.meta.Checkpoint, s.meta.Timeline = control.CheckPointCopy.Redo, control.CheckPoint, control.CheckPointCopy.ThisTimeLineID
	err := s.makePlan(ctx, source)
	if err == nil && !s.DryRun {
		err = s.makeDir(source.dirMode)
	}
	if err != nil {
		return errors.Join(err, s.dropOwnSlot())
	}
	return nil
}

func (s *seeder) makeDir(mode fs.FileMode) error {
	made, err := volume.MkdirAll(s.FS, s.Dir, mode)
	if err != nil {
		return err
	}
	s.madeDir = len(made) > 0
	if err := s.FS.Chmod(s.Dir, mode); err != nil {
		return err
	}
	for _, dir := range made {
		if err := s.FS.SyncDir(filepath.Dir(dir)); err != nil && !errors.Is(err, os.ErrPermission) {
			return err
		}
	}
	return nil
}

// copy runs the receiver beside the block copy.
func (s *seeder) copy(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.source = newWatchedSource(s.src, s.plan, s.meta.Templates)
	s.stream = startStream(ctx, streamOptions{
		receive: postgres.ReceiveOptions{ConnInfo: s.ConnInfo, Slot: s.meta.Slot, Dir: filepath.Join(s.Dir, "pg_wal"), FS: s.FS,
			SystemID: s.meta.SystemID, Start: s.meta.Redo, Timeline: s.meta.Timeline, PgWAL: true, Log: s.Log},
		progress: s.Progress, log: s.Log,
		failed: func(err error) { cancel(err) },
	})
	s.source.ready = s.stream.ready
	o := blockcopy.Options{Target: s.Dir, FS: s.FS, Source: s.source, Jobs: s.Jobs, Finish: s.finish, Progress: s.Progress, Log: s.Log}
	if s.pending != nil {
		o.Resume = true
	} else {
		o.Plan = s.plan
	}
	s.Progress.Phase("making the directory", 0, progress.Items)
	go s.noteTemplates(ctx)
	stopWatch := s.watchSlot(ctx, func(err error) { cancel(err) })
	result, err := blockcopy.Run(ctx, o)
	stopWatch()
	s.result.Copied, s.result.Kept = result.FetchedBytes, result.SkippedBytes
	if err != nil {
		s.undoNothing()
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			err = s.partial(cause)
		}
		if errors.Is(err, postgres.ErrWALRemoved) {
			return &startAgain{"the WAL that the seed needs is gone from the source"}
		}
		return err
	}
	return nil
}

// undoNothing removes what a run left that failed before it began: an empty
// directory and a slot that would hold back WAL for nobody.
func (s *seeder) undoNothing() {
	entries, err := s.FS.ReadDir(s.Dir)
	if err != nil || len(entries) > 0 {
		return
	}
	if s.madeDir {
		if err := s.FS.Remove(s.Dir); err != nil {
			s.Log.Warn("removing the empty directory", "error", err)
		}
	}
	s.stream.stop()
	if err := s.dropOwnSlot(); err != nil {
		s.Log.Warn("dropping the replication slot", "slot", s.meta.Slot, "error", err)
	}
}

// partial says what an error in the middle leaves behind.
func (s *seeder) partial(err error) error {
	hint := exit.HintOf(err)
	if hint != "" {
		hint += "\n"
	}
	hint += "the data directory is incomplete and refuses to start; run the same command again, it goes on where it stopped"
	return exit.Wrap(err, exit.Partial, hint, "stopped part-way")
}

// finish is called by the block copy after all files are durable.
func (s *seeder) finish(ctx context.Context) (blockcopy.Finish, error) {
	var f blockcopy.Finish
	end, control, err := s.endPoint(ctx)
	if err != nil {
		return f, err
	}
	s.Progress.Phase("waiting for the WAL up to "+end.String(), 0, progress.Items)
	if err := s.stream.wait(ctx, end); err != nil {
		return f, err
	}
	position := s.stream.position()
	history, err := postgres.ReadHistory(s.FS, filepath.Join(s.Dir, "pg_wal"), position.Timeline)
	if err != nil {
		return f, err
	}
	if err := s.checkHistory(ctx, history); err != nil {
		return f, err
	}
	s.Progress.Phase("reading the received WAL", int64(end-s.meta.Redo), progress.Bytes)
	if err := s.guard(ctx, history, control, end); err != nil {
		return f, err
	}
	f.Files, err = s.standbyFiles(ctx)
	if err != nil {
		return f, err
	}
	control.State = volume.StateInArchiveRecovery
	control.Time = time.Now()
	control.MinRecoveryPoint = end
	control.MinRecoveryPointTLI = history.TimelineAt(end - 1)
	control.BackupStartPoint, control.BackupEndPoint, control.BackupEndRequired = 0, 0, false
	f.Control = control.Encode()
	label := volume.BackupLabel{
		StartWAL: s.meta.Redo, WALFile: wal.SegmentName(s.meta.Timeline, s.meta.Size.Number(s.meta.Redo), s.meta.Size), Checkpoint: s.meta.Checkpoint,
		Method: volume.MethodRewind, From: volume.FromStandby, StartTime: volume.LabelTime(time.Now()),
	}
	f.Label = label.Format()
	s.result.End, s.result.Timeline = end, control.MinRecoveryPointTLI
	s.result.WAL = int64(end - s.meta.Redo)
	return f, nil
}

// standbyFiles are the settings that make the copy a standby of its source.
func (s *seeder) standbyFiles(ctx context.Context) ([]blockcopy.FinalFile, error) {
	old, err := s.src.ReadFile(ctx, postgres.AutoConfFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	conninfo, err := postgres.ForStandby(s.ConnInfo)
	if err != nil {
		return nil, err
	}
	conninfo = conninfo.With("dbname", "", "connect_timeout", "")
	return []blockcopy.FinalFile{
		{Path: postgres.AutoConfFile, Data: postgres.RewriteConf(old, postgres.StandbySettings(conninfo.String(), s.meta.Slot))},
		{Path: "standby.signal"},
	}, nil
}

// checkHistory makes sure that all the blocks come from one line of history.
func (s *seeder) checkHistory(ctx context.Context, history *timeline.History) error {
	if !history.Contains(s.meta.Timeline, s.meta.Redo) {
		return &startAgain{fmt.Sprintf("timeline %d of the source does not contain the start of the seed", history.Timeline)}
	}
	if history.Timeline == s.meta.Timeline {
		return nil
	}
	// A standby that was promoted meanwhile goes on with the blocks that we
	// have. Another server that took over may never have had some of them.
	booted, err := s.bootTime(ctx)
	if err != nil {
		return err
	}
	if s.result.Resumed || !booted.Equal(s.booted) {
		return &startAgain{fmt.Sprintf("the source moved from timeline %d to %d", s.meta.Timeline, history.Timeline)}
	}
	return nil
}
