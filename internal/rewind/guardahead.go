package rewind

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// flushed is the redo point of the source's last completed checkpoint: what it
// wrote to its WAL before is in its files. A stopped one has written it all,
// and a backup was judged by itself, up to where it ended.
func (j *job) flushed(d *Divergence) wal.LSN {
	switch {
	case j.source.repo != nil && j.source.repo.backup != nil:
		return max(d.Fork.LSN, j.source.repo.backup.Summary().Stop.LSN)
	case !j.source.live():
		return d.Source.End
	}
	return j.sc.CheckPointCopy.Redo
}

// guardAhead is the guard before anything is written: it refuses what is
// already to be seen in the source's WAL. The guard at the end of the run sees
// what comes meanwhile, and leaves a target that has to be undone.
//
// A live source's WAL travels once more for that, and has to be kept somewhere
// until then: for a divergence whose WAL is a sixth of all that is copied, that
// alone is more than what a rewind may fetch beyond the necessary. So it is
// looked at where something else gives reason to (suspicious), which what the
// guard refuses leaves behind:
//
//	it refuses                       and this is its trace
//	a database made by copying       a directory that the target lacks; or has by the same number, its own WAL
//	                                 tells; one made on the common history is in the target's WAL
//	such a database, dropped again   none, and none is needed: it is no reason (walguard)
//	CREATE TABLESPACE elsewhere      a link that the target lacks, or has with another target
//	full_page_writes off             settings read since the last checkpoint; of a standby's primary nobody
//	                                 tells: a standby's WAL is always looked at, from its restartpoint on
//	wal_level = minimal              none, where it was raised again since: left to the guard at the end. The new
//	                                 primary would have been restarted twice, without a standby or an archive
func (j *job) guardAhead(ctx context.Context, p *planner) error {
	if j.source.live() && !j.sc.CheckPointCopy.FullPageWrites {
		return exit.New(exit.Refused, "run CHECKPOINT there, now that full_page_writes is on, and then this again",
			"full_page_writes was off at the source's last checkpoint: what it changed since then could not be repaired by replay")
	}
	start := p.d.Start.Redo
	if j.source.live() {
		var err error
		if start, err = j.suspicious(ctx, p); start == 0 || err != nil {
			return err
		}
	}
	j.Progress.Phase("looking through the source's WAL", 0, progress.Items)
	g := newReplayGuard(j.Target, p.meta, p.plan, j.sc)
	g.ahead = true
	w := j.wal
	if w == nil { // by comparison
		w = newTargetWAL(j.Target, j.sh, j.sc.XLogSegSize, j.search)
		w.source, w.common = j.source, j.sh
		defer w.close()
	}
	r, err := g.rules().Read(ctx, j.replayed(w), j.guardOptions(j.sc, start, p.d.Source.End))
	if err != nil {
		return err
	}
	u := g.judge(r.Finding)
	if u == nil {
		if !r.Reached(p.d.Source.End) {
			j.Log.Info("the source's WAL could not be looked through beforehand", "end", r.End, "cause", r.Stop)
		}
		return nil
	}
	return exit.Wrap(u, exit.Refused, u.hint, "nothing was changed: replay of the source's WAL would not give what the source has")
}

// suspicious returns where the WAL of a live source has to be looked at from;
// 0 where nothing gives reason to.
func (j *job) suspicious(ctx context.Context, p *planner) (wal.LSN, error) {
	if p.copiedFiles() || p.otherPlaces() {
		return p.d.Start.Redo, nil
	}
	recent := max(p.d.Start.Redo, j.sc.CheckPointCopy.Redo)
	if j.sc.State == volume.StateInArchiveRecovery {
		return recent, nil
	}
	// full_page_writes changes when the settings are read anew.
	var loaded int64
	if err := j.source.server.Query(ctx, "SELECT extract(epoch FROM pg_conf_load_time())::int8", nil, &loaded); err != nil {
		j.Log.Debug("asking the source when it read its settings", "error", err)
		return recent, ctx.Err()
	}
	if loaded < j.sc.CheckPointCopy.Time.Unix() {
		return 0, nil
	}
	return recent, nil
}

// copiedFiles tells whether the source may have made a database by copying
// files: it has a directory of its own, or one that the target made, too, under
// the same number, or did so on the common history.
func (p *planner) copiedFiles() bool {
	for _, a := range p.dirs {
		if a.Kind == blockcopy.CreateDir && databaseDir(a.Path, p.sc.VersionDir()) {
			return true
		}
	}
	if p.changes.pages == nil {
		return false
	}
	for _, e := range p.changes.pages.Databases {
		if e.Create == nil {
			continue
		}
		if p.d.Fork == nil || e.LSN < p.d.Fork.LSN {
			if e.Create.FileCopy {
				return true
			}
			continue
		}
		probe := volume.RelSegment{RelFile: wal.RelFile{Tablespace: e.Create.Tablespace, Database: e.Create.Database, Relation: 1}}
		if _, both := p.source[path.Dir(probe.Path(p.sc.VersionDir()))]; both {
			return true
		}
	}
	return false
}

// otherPlaces tells whether a tablespace lies at the source and not here, or
// elsewhere here.
func (p *planner) otherPlaces() bool {
	for _, a := range p.dirs {
		if a.Kind == blockcopy.CreateLink {
			return true
		}
	}
	for name, e := range p.source {
		if t, both := p.target[name]; both && e.Type == blockcopy.Link && t.Type == blockcopy.Link && e.LinkTarget != t.LinkTarget {
			return true
		}
	}
	return false
}

// databaseDir tells whether a path is the directory of a database.
func databaseDir(path, versionDir string) bool {
	parts := strings.Split(path, "/")
	return len(parts) == 2 && parts[0] == "base" || len(parts) == 4 && parts[0] == "pg_tblspc" && parts[2] == versionDir
}

// replayed is the WAL that the target will replay, as long as the source's part
// of it is not here; w reads the target's own, and fetches.
func (j *job) replayed(w *targetWAL) wal.Source {
	if r := j.source.repo; r != nil {
		return r.wal(j.Target)
	}
	if j.source.dir != "" {
		return wal.SourceFunc(func(ctx context.Context, n wal.SegmentNumber) (wal.Segment, error) {
			s, err := postgres.WALDir{Dir: filepath.Join(j.source.dir, "pg_wal"), Size: j.sc.XLogSegSize, History: j.sh}.OpenSegment(ctx, n)
			if errors.Is(err, wal.ErrNoSegment) && n < w.fork {
				return w.OpenSegment(ctx, n)
			}
			return s, err
		})
	}
	return wal.SourceFunc(func(ctx context.Context, n wal.SegmentNumber) (wal.Segment, error) {
		if n < w.fork {
			return w.OpenSegment(ctx, n)
		}
		f, err := w.borrow(ctx, n)
		if err == nil && f == nil {
			err = fmt.Errorf("segment %d at the source: %w", n, wal.ErrNoSegment)
		}
		if err != nil {
			return nil, err
		}
		return loan{f}, nil
	})
}
