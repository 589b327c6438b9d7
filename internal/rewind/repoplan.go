package rewind

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/repo"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// Signal files of the server.
const (
	standbySignal  = "standby.signal"
	recoverySignal = "recovery.signal"
)

// archivedSegment is segment for a repository source: the server will fetch
// what is archived itself, except for a partial segment.
func (p *planner) archivedSegment(n, forkSeg wal.SegmentNumber, mine string, copied map[string]bool) {
	r := p.job.source.repo
	name, ok := r.segmentName(n)
	switch {
	case name == "":
	case ok:
		if r.partial.is(n) {
			copied[r.partial.runningName()] = true
			p.copySegment(r.partial.runningName(), "the end of the source: "+name+" in "+r.where(n))
		}
		p.needs = append(p.needs, walNeed{n, name, r.where(n)})
	case n < forkSeg && mine != "":
		p.needs = append(p.needs, walNeed{n, mine, inTarget})
	default:
		p.needs = append(p.needs, walNeed{n, name, ""})
	}
}

// planSignals removes a signal file that would have the server recover in
// another way than it shall.
func (p *planner) planSignals() {
	other := standbySignal
	if p.WriteRecoveryConf {
		other = recoverySignal
	}
	if _, ok := p.target[other]; ok {
		p.add(blockcopy.Action{Kind: blockcopy.Remove, Path: other, Reason: "the server shall recover in another way"})
	}
}

// usable refuses a repository from which no rewind can be made.
func (r *repoSource) usable(fork wal.LSN) error {
	if err := r.needBackup(); err != nil {
		return err
	}
	return r.reaches(fork)
}

// reaches refuses an archive that ends before the copy is consistent.
func (r *repoSource) reaches(fork wal.LSN) error {
	at, _ := r.consistent(fork)
	if end := r.end(); end < at || end <= fork {
		hint := "archive the WAL of timeline " + r.history.Timeline.String() + " there: dbbackup push --repo " + r.cluster.Repository().Location() + " PATH; the segment that it ends with as a copy named *.partial"
		if r.partial != nil && r.partial.why != "" {
			hint += "\n" + r.partial.why
		}
		return exit.New(exit.Refused, hint, "the archived WAL of timeline %d ends at %s; replay has to go on to behind the fork at %s and to %s", r.history.Timeline, end, fork, at)
	}
	return nil
}

// withoutPlan is the part of a plan that can be made where the repository lacks
// a backup, or WAL behind the fork: where the WAL lies.
func (j *job) withoutPlan(ctx context.Context, d *Divergence, c *changes) (*planner, error) {
	p := &planner{job: j, changes: c, d: d, source: map[string]blockcopy.Entry{}, target: map[string]blockcopy.Entry{}}
	p.meta.SourceEnd = d.Source.End
	ours, err := blockcopy.ListDir(ctx, volume.OS, j.Target)
	if err != nil {
		return nil, err
	}
	for _, e := range ours {
		p.target[e.Path] = e
	}
	forkSeg := j.tc.XLogSegSize.Number(d.Fork.LSN)
	for n := j.tc.XLogSegSize.Number(d.Start.Redo); n < p.lastPlanned(); n++ {
		p.segment(n, forkSeg, map[string]bool{})
	}
	for _, n := range p.needs {
		if n.where == "" {
			p.missing = append(p.missing, n.name)
		}
	}
	return p, nil
}

// wal is what the rewound server replays: archived, or in the target's pg_wal.
func (r *repoSource) wal(target string) wal.Source {
	here := postgres.WALDir{Dir: filepath.Join(target, "pg_wal"), Size: r.size, History: r.history}
	return wal.SourceFunc(func(ctx context.Context, n wal.SegmentNumber) (wal.Segment, error) {
		name, ok := r.segmentName(n)
		if !ok {
			return here.OpenSegment(ctx, n)
		}
		return r.openSegment(ctx, n, name)
	})
}

// finishFromRepository ends a rewind whose source is a repository.
func (j *job) finishFromRepository(m meta, plan *blockcopy.Plan) (blockcopy.Finish, error) {
	r := j.source.repo
	var f blockcopy.Finish
	if err := r.reaches(m.Divergence.Fork.LSN); err != nil {
		return f, err
	}
	at, tli := r.consistent(m.Divergence.Fork.LSN)
	f.Control = newControl(r.control, at, tli)
	f.Label = newLabel(m.Divergence.Start, r.size)
	f.Check = func(ctx context.Context) error { return j.guardWAL(ctx, r.wal(j.Target), m, plan, r.control, at) }
	var err error
	f.Files, err = j.archiveRecovery(m.Recovery)
	for _, name := range m.Done {
		f.Files = append(f.Files, blockcopy.FinalFile{Path: "pg_wal/archive_status/" + name + ".done"})
	}
	return f, err
}

// archiveRecovery are the settings by which the server fetches the WAL, and the
// signal file by which it stays a standby or comes up at the end of the WAL.
func (j *job) archiveRecovery(standby bool) ([]blockcopy.FinalFile, error) {
	conf, err := os.ReadFile(filepath.Join(j.Target, postgres.AutoConfFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	r := j.source.repo
	follow := "latest"
	if !r.newest { // the latest may be the target's own, or another branch
		follow = r.history.Timeline.String()
	}
	repos := []string{r.cluster.Repository().Location()}
	for _, other := range j.Repositories {
		if other == j.SourceRepo {
			continue
		}
		if !strings.Contains(other, "://") { // a directory, and the server's is another
			var err error
			if other, err = filepath.Abs(other); err != nil {
				return nil, err
			}
		}
		repos = append(repos, other)
	}
	settings := []postgres.Setting{
		{Name: "restore_command", Value: repo.FetchCommand(j.FetchProgram, r.cluster.SystemID(), repos...)},
		{Name: "recovery_target_timeline", Value: follow},
	}
	for _, name := range postgres.RecoveryTargets {
		settings = append(settings, postgres.Setting{Name: name})
	}
	signal := recoverySignal
	if standby {
		signal = standbySignal
	}
	return []blockcopy.FinalFile{{Path: postgres.AutoConfFile, Data: postgres.RewriteConf(conf, settings)}, {Path: signal}}, nil
}
