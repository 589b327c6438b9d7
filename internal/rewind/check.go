package rewind

import (
	"context"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/pkg/volume"
)

// Check finds out whether the target diverged, what a rewind would move, and
// which transactions it would lose. It changes nothing.
func Check(ctx context.Context, o Options) (*Report, error) {
	o.DryRun = true
	j, err := open(ctx, o)
	if err != nil {
		return nil, err
	}
	defer j.close()
	j.look = true
	pending, err := blockcopy.Pending(volume.OS, j.Target)
	if err != nil {
		return nil, err
	}
	if pending != nil && pending.State == blockcopy.Partial {
		return j.pendingReport(pending)
	}
	if res, err := j.alreadyRewound(ctx); res != nil || err != nil {
		if err != nil {
			return nil, err
		}
		return &Report{Divergence: res.Divergence}, nil
	}
	if j.Compare {
		return j.checkByComparison(ctx)
	}
	d, p, err := j.prepare(ctx, false)
	if err != nil {
		return nil, err
	}
	rep := &Report{Divergence: *d}
	if d.Diverged {
		err = j.fill(ctx, rep, p)
	}
	rep.Warnings = j.warnings
	return rep, err
}

// checkByComparison tells what a rewind by comparison would move. Which
// transactions it loses only the target's WAL could tell.
func (j *job) checkByComparison(ctx context.Context) (*Report, error) {
	d, p, err := j.prepareCompare(ctx, false)
	if err != nil {
		return nil, err
	}
	rep := &Report{Divergence: *d, Plan: &p.plan.Totals, LateBytes: p.lateBytes(), Missing: p.missing, Compared: p.compared,
		Blocks: p.compared.DifferingBytes / int64(j.tc.BlockSize), Warnings: j.warnings}
	return rep, nil
}

func (j *job) fill(ctx context.Context, rep *Report, p *planner) (err error) {
	rep.LateBytes, rep.Missing, rep.Blocks = p.lateBytes(), p.missing, p.blocks
	if p.plan != nil { // there is none without a backup in the repository
		rep.Plan, rep.Estimate = &p.plan.Totals, j.estimate(p)
	}
	rep.WAL = &WALNeeds{Target: runs(j.wal.needs(rep.Checkpoint.Redo)), Replay: runs(p.needs)}
	rep.LostBytes = int64(rep.Target.End - rep.Fork.LSN)
	if p.plan != nil && len(p.missing) == 0 {
		if err := j.guardAhead(ctx, p); exit.CodeOf(err) == exit.Refused {
			j.warn("a rewind would be refused now: %v; %s", err, exit.HintOf(err))
		} else if err != nil {
			return err
		}
	}
	err = j.describeLost(ctx, rep)
	if j.crashed {
		j.warn("the target was not shut down cleanly; a rewind recovers it first, and aborts its open transactions")
	}
	return err
}

// pendingReport tells of an unfinished rewind what its plan says.
func (j *job) pendingReport(p *blockcopy.PendingRun) (*Report, error) {
	m, err := decodeMeta(p.Plan)
	if err != nil {
		return nil, err
	}
	rep := &Report{Divergence: m.Divergence, Plan: &p.Plan.Totals, Pending: p.State.String()}
	rep.Warnings = []string{"a rewind of this target was interrupted; run the same command again, it goes on where it stopped: " + p.Plan.Command}
	if p.Undoing {
		rep.Warnings = []string{"the undo of a rewind of this target was interrupted; run it again, it goes on: " + p.Plan.Command}
	}
	return rep, nil
}
