package rewind

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/pkg/volume"
)

// Run rewinds the target, or goes on with an interrupted rewind. Where there is
// nothing to rewind it only sets the standby up, if asked to. An error with
// exit.Partial leaves a target that refuses to start and that the same call
// goes on with; any other leaves it as it was.
func Run(ctx context.Context, o Options) (*Result, error) {
	start := time.Now()
	j, err := open(ctx, o)
	if err != nil {
		return nil, err
	}
	defer j.close()
	if o.WriteRecoveryConf && o.SourceConn == "" && o.SourceRepo == "" {
		return nil, exit.New(exit.Usage, "name the live server with --source-server", "--write-recovery-conf needs a source server")
	}
	if o.SourceRepo != "" && o.FetchProgram == "" && !o.DryRun {
		return nil, exit.New(exit.Usage, "install it beside dbrewind, or in the PATH", "dbrecover is not found: the rewound server fetches its WAL with it")
	}
	if o.Start && !o.DryRun {
		if err := j.mayStart(ctx); err != nil {
			return nil, err
		}
	}
	res, err := j.run(ctx)
	if err == nil && o.Start && !o.DryRun {
		err = j.startAndVerify(ctx, res)
	}
	if res != nil {
		res.Seconds = time.Since(start).Seconds()
		res.Warnings = j.warnings
	}
	return res, err
}

func (j *job) run(ctx context.Context) (*Result, error) {
	pending, err := blockcopy.Pending(volume.OS, j.Target)
	if err != nil {
		return nil, err
	}
	if pending != nil {
		res, err := j.goOn(ctx, pending)
		if res != nil || err != nil {
			return res, err
		}
	}
	if res, err := j.alreadyRewound(ctx); res != nil || err != nil {
		return res, err
	}
	prepare := j.prepare
	if j.Compare {
		prepare = j.prepareCompare
	}
	d, p, err := prepare(ctx, !j.DryRun)
	if err != nil {
		return nil, err
	}
	if !d.Diverged && !j.Compare {
		return j.nothingToDo(d)
	}
	res := &Result{Divergence: *d, DryRun: j.DryRun, Totals: &p.plan.Totals, Bytes: p.plan.Totals.Bytes + p.lateBytes(), Compared: p.compared,
		Estimate: j.estimate(p)}
	if len(p.missing) > 0 {
		return nil, p.missingWAL()
	}
	if err := j.guardAhead(ctx, p); err != nil {
		return nil, err
	}
	if j.DryRun {
		res.Plan = p.plan
		return res, nil
	}
	return res, j.apply(ctx, res, p.plan, false)
}

// prepare is everything up to the plan. The plan is nil where nothing diverged.
func (j *job) prepare(ctx context.Context, mayChange bool) (*Divergence, *planner, error) {
	if err := j.readTarget(mayChange); err != nil {
		return nil, nil, err
	}
	if err := j.check(ctx); err != nil {
		return nil, nil, err
	}
	if err := j.recoverTarget(ctx, mayChange); err != nil {
		return nil, nil, err
	}
	if err := j.readHistories(ctx); err != nil {
		return nil, nil, err
	}
	d, err := j.diverge(ctx)
	if err != nil || !d.Diverged {
		return d, nil, err
	}
	j.Log.Info("diverged", "fork", d.Fork.LSN, "timeline", d.Fork.Timeline, "checkpoint", d.Checkpoint.LSN, "redo", d.Checkpoint.Redo)
	if j.source.live() {
		j.startListing(ctx)
	}
	c, err := j.scan(ctx, d)
	if err != nil {
		return nil, nil, err
	}
	if r := j.source.repo; r != nil {
		if err := r.usable(d.Fork.LSN); err != nil && !j.look {
			return nil, nil, err
		} else if err != nil {
			j.warn("a rewind from this repository would be refused now: %v; %s", err, exit.HintOf(err))
			p, err := j.withoutPlan(ctx, d, c)
			return d, p, err
		}
	}
	p, err := j.makePlan(ctx, d, c)
	return d, p, err
}

// lateBytes bounds what is copied beyond the plan: the running segment.
func (p *planner) lateBytes() int64 {
	if !p.job.source.live() {
		return 0
	}
	return int64(p.tc.XLogSegSize)
}

// apply runs the plan. From here on an interruption leaves a tombstone.
func (j *job) apply(ctx context.Context, res *Result, plan *blockcopy.Plan, resume bool) error {
	m, err := decodeMeta(plan)
	if err != nil {
		return err
	}
	if err := j.openRestored(ctx, m); err != nil {
		return err
	}
	o := blockcopy.Options{Target: j.Target, FS: j.fs, Source: j.source, Jobs: j.Jobs, NoSync: j.NoSync, Progress: j.Progress, Log: j.Log, Resume: resume,
		Finish: func(ctx context.Context) (blockcopy.Finish, error) { return j.finish(ctx, m, plan) }}
	o.Undo, o.UndoFiles, o.UndoCommand = !j.NoUndo, setUpByHand, j.UndoCommand
	if !resume {
		o.Plan = plan
	}
	r, err := blockcopy.Run(ctx, o)
	res.Bytes, res.Skipped, res.Totals, res.Undo = r.FetchedBytes+r.LateBytes, r.SkippedBytes, &r.Totals, r.UndoBytes
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(j.Target, "standby.signal")); err == nil {
		res.Standby = true
	} else if j.source.repo == nil {
		j.warn("the target has no standby.signal: create it and set primary_conninfo before the start (or use -R), or it will come up as a primary")
	}
	return nil
}

// goOn deals with what an earlier run left. A nil result means that the way is
// free for a new one.
func (j *job) goOn(ctx context.Context, p *blockcopy.PendingRun) (*Result, error) {
	if p.Plan.Operation != "rewind" && p.State != blockcopy.Finished {
		return nil, exit.New(exit.Refused, "run that command again: "+p.Plan.Command, "%s holds an unfinished %s", j.Target, p.Plan.Operation)
	}
	if p.Undoing {
		return nil, exit.New(exit.Refused, "go on with the undo: "+p.Plan.Command, "%s holds a rewind that is being undone", j.Target)
	}
	if j.DryRun {
		if p.State != blockcopy.Partial {
			return nil, nil
		}
		return nil, exit.New(exit.Refused, "run the same command without --dry-run to go on", "%s holds an unfinished rewind: %d of %d bytes are copied",
			j.Target, p.DoneBytes, p.Plan.Totals.Bytes)
	}
	if p.State != blockcopy.Partial {
		return nil, blockcopy.Discard(volume.OS, j.Target)
	}
	m, err := decodeMeta(p.Plan)
	if err != nil {
		return nil, err
	}
	if err := j.sameSource(ctx, m, p.Plan.Source); err != nil {
		return nil, err
	}
	j.Progress.Note("going on with the rewind of %s: %d of %d bytes are durable", p.Plan.Created.Format(time.RFC3339), p.DoneBytes, p.Plan.Totals.Bytes)
	j.WriteRecoveryConf = j.WriteRecoveryConf || m.Recovery && j.SourceDir == ""
	res := &Result{Divergence: m.Divergence, Resumed: true}
	if m.Compared {
		j.holdWAL(ctx)
	}
	return res, j.apply(ctx, res, p.Plan, true)
}

// sameSource refuses to mix two sources in one target: blocks of a server that
// is ahead, and a minimum recovery point of one that is behind, would start
// before they are consistent.
func (j *job) sameSource(ctx context.Context, m meta, name string) error {
	sc, err := j.source.control(ctx)
	if err != nil {
		return err
	}
	if sc.SystemIdentifier != m.SystemID {
		return exit.New(exit.Refused, "name the same source as before", "the source is another cluster than the one that was copied from")
	}
	if j.source.Name() != name {
		if err := j.sameUnderAnotherName(ctx, m, sc, name); err != nil {
			return err
		}
	}
	if err := j.source.checkLive(ctx); err != nil {
		return err
	}
	_, _, err = j.source.position(ctx, sc)
	return err
}

// alreadyRewound recognises a target that was rewound (or restored) and not
// started since: it has a valid label, and its WAL is the source's.
func (j *job) alreadyRewound(ctx context.Context) (*Result, error) {
	data, err := os.ReadFile(filepath.Join(j.Target, volume.BackupLabelFile))
	if ignoreMissing(err) != nil || len(data) == 0 {
		return nil, ignoreMissing(err)
	}
	if _, err := volume.ParseBackupLabel(data); err != nil {
		return nil, exit.Wrap(err, exit.Refused, "finish or discard what put it there", "the target's backup_label")
	}
	if j.tc, err = volume.ReadControl(j.Target); err != nil {
		return nil, err
	}
	if err := j.check(ctx); err != nil {
		return nil, err
	}
	j.sh, err = readHistory(j.sourceTimeline(ctx), "the source", j.source.read(ctx))
	if err != nil {
		return nil, err
	}
	if !j.sh.Contains(j.tc.MinRecoveryPointTLI, j.tc.MinRecoveryPoint) {
		return nil, exit.New(exit.Refused, "start it once so that it recovers, stop it, and run this again",
			"the target has a backup_label: it was restored and not started since, and cannot be compared")
	}
	d := &Divergence{Reason: "the target was rewound (or restored) before and lies on the source's history; start it",
		Target: Side{Name: j.targetName(), Timeline: j.tc.MinRecoveryPointTLI, End: j.tc.MinRecoveryPoint, State: j.tc.State.String()},
		Source: Side{Name: j.source.Name(), Timeline: j.sh.Timeline, Spans: j.sh.Spans(), State: j.sc.State.String()}}
	return j.nothingToDo(d)
}

func (j *job) nothingToDo(d *Divergence) (*Result, error) {
	res := &Result{Divergence: *d, DryRun: j.DryRun}
	if !j.WriteRecoveryConf || j.DryRun {
		return res, nil
	}
	if err := j.setUpStandby(); err != nil {
		return res, err
	}
	res.Standby = true
	return res, nil
}
