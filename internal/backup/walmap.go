package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"tidemark/internal/repo"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// An incremental backup reads what the WAL says has changed since the previous
// one, its base, began: from the base's starting checkpoint to its own. Blocks
// that are not in that range of WAL were on disk, as they still are, when the
// base was copied. What changes after its own start is made good by replay.
//
// The map sees main forks only, and only what is logged; walmap_files.go says
// what is read in full. A hash of every block remains the truth: nothing here
// decides that a block is stored, only that it is not looked at, and every
// Options.Rehash all of them are.

// DefaultRehash is for how long blocks may go unread that the WAL proves
// unchanged.
const DefaultRehash = 7 * 24 * time.Hour

// mapLimit is how much WAL, in sizes of the cluster, is read to save reading
// the cluster. WAL is read several times as fast as blocks are hashed.
const mapLimit = 2

// unproven says why everything has to be read.
type unproven struct{ why string }

func (u *unproven) Error() string { return u.why }

func unprovenf(format string, args ...any) error { return &unproven{fmt.Sprintf(format, args...)} }

// skipUnchanged finds out what need not be read, and leaves it out of the
// job's files. Where that cannot be proved everything is read; people are told
// why, for it takes longer.
func (j *job) skipUnchanged(ctx context.Context, parent string) error {
	if parent == "" || j.Rehash < 0 {
		return nil
	}
	base, err := j.cluster.OpenBase(ctx, parent)
	if err == nil {
		err = j.proveAndSkip(ctx, base)
	}
	var why *unproven
	var bad *repo.CorruptError
	switch {
	case errors.As(err, &why), errors.As(err, &bad), errors.Is(err, repo.ErrNotExist), errors.Is(err, repo.ErrNoKey):
		j.Progress.Note("every block is read: %v", err)
		j.files.readAll()
		j.hashed, j.proof = time.Time{}, ""
		return nil
	}
	return err
}

func (j *job) proveAndSkip(ctx context.Context, base *repo.Manifest) error {
	if !j.cluster.Comparable(&base.Summary) {
		return unprovenf("backup %s was made with another compare key than the one this account has", base.ID)
	}
	if err := j.comparable(&base.Summary); err != nil {
		return err
	}
	j.Progress.Phase("finding what changed", 0, 0)
	m, proof, err := j.changed(ctx, &base.Summary)
	if err != nil {
		return err
	}
	j.Log.Info("what changed since the previous backup is known", "base", base.ID, "from", proof, "map", m.String())
	if err := mapIsWhole(m); err != nil {
		return err
	}
	j.proof = proof
	j.hashed = base.Hashed
	if j.hashed.IsZero() {
		j.hashed = base.Began
	}
	return j.files.skip(ctx, base, newUnchanged(m, &base.Summary, j.control))
}

// comparable checks what must be so before any WAL is read.
func (j *job) comparable(base *repo.Summary) error {
	hashed := base.Hashed
	if hashed.IsZero() {
		hashed = base.Began
	}
	switch age := j.began.Sub(hashed); {
	case age >= j.Rehash:
		return unprovenf("that was last done %s ago", age.Round(time.Hour))
	case base.FindingCount > int64(len(base.Findings)):
		return unprovenf("backup %s found more damaged blocks than it lists", base.ID)
	case j.start.Redo < base.Start.LSN:
		return unprovenf("backup %s began later in the WAL, at %s", base.ID, base.Start.LSN)
	case j.server.inRecovery && j.control.MinRecoveryPoint < base.Stop.LSN:
		return unprovenf("the standby is not as far as backup %s, at %s", base.ID, base.Stop.LSN)
	case base.Checksums != j.control.Checksums():
		return unprovenf("pg_checksums rewrote every page since backup %s", base.ID)
	case base.Major != j.control.Major() || base.CatalogVersion != j.control.CatalogVersionNo:
		return unprovenf("backup %s is of another version of the server", base.ID)
	}
	return nil
}

// changed finds out what changed from the start of the base to the start of this
// backup, and says what proves it: the server's summaries where they cover that
// range, its WAL otherwise.
func (j *job) changed(ctx context.Context, base *repo.Summary) (*wal.Map, string, error) {
	for _, s := range *j.scanned {
		if s.base.SameAs(base) {
			return s.m, s.proof, nil
		}
	}
	proof := ProofSummaries
	m, err := j.summarized(ctx, base)
	var why *unproven
	if errors.As(err, &why) {
		j.Log.Debug("the WAL is read", "because", why)
		proof = ProofWAL
		m, err = j.scan(ctx, base)
	}
	if err == nil {
		*j.scanned = append(*j.scanned, scanned{base, m, proof})
	}
	return m, proof, err
}

// scan reads the WAL from the start of the base to the start of this backup.
func (j *job) scan(ctx context.Context, base *repo.Summary) (*wal.Map, error) {
	if int64(j.start.Redo-base.Start.LSN) > mapLimit*j.files.bytes {
		return nil, unprovenf("there is more WAL since backup %s than there is data", base.ID)
	}
	src, err := j.walSince(ctx, base)
	if err != nil {
		return nil, err
	}
	opt := j.walOptions()
	opt.Start, opt.End = base.Start.LSN, j.start.Redo
	if err := sameCheckpoint(ctx, src, opt, base); err != nil {
		return nil, err
	}
	m, end, err := wal.ScanMap(ctx, src, wal.ScanOptions{Options: opt, Workers: j.Jobs})
	switch {
	case errors.Is(err, wal.ErrNoSegment):
		return nil, walGone(base, err)
	case err != nil:
		return nil, err
	case errors.Is(end, wal.ErrNoSegment):
		return nil, walGone(base, end)
	case end != nil:
		return nil, unprovenf("the WAL since backup %s is not whole: %v", base.ID, end)
	}
	return m, nil
}

func walGone(base *repo.Summary, err error) error {
	return unprovenf("WAL since backup %s is neither in the repository nor on the server: %v", base.ID, err)
}

// sameCheckpoint proves that the WAL is that of the server which the base was
// taken from: it holds the very checkpoint that the base's pg_control names.
// Timelines alone prove nothing: two servers may each have made a second one.
func sameCheckpoint(ctx context.Context, src wal.Source, opt wal.Options, base *repo.Summary) error {
	control, err := volume.ParseControl(base.Control)
	if err != nil {
		return &repo.CorruptError{Object: "the manifest of " + base.ID, Offset: -1, Err: err}
	}
	opt.End = 0
	r, err := wal.NewReader(ctx, src, opt)
	if err != nil {
		return err
	}
	defer r.Close()
	rec, err := r.ReadAt(control.CheckPoint)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return unprovenf("the checkpoint of backup %s at %s is not in the WAL: %v", base.ID, control.CheckPoint, err)
	}
	d, err := wal.Decode(rec)
	c, ok := d.(*wal.Checkpoint)
	was := control.CheckPointCopy
	if err != nil || !ok || c.Redo != was.Redo || c.Timeline != was.ThisTimeLineID || c.NextXID != was.NextXid || c.NextOID != was.NextOid || !c.Time.Equal(was.Time) {
		return unprovenf("the WAL at %s is not that of the server that backup %s was taken from", control.CheckPoint, base.ID)
	}
	return nil
}

// walSince finds the segments since the base: those that the base needs in the
// repository, so that a branch of the WAL that is not the base's shows, and
// later ones where they are quickest to read.
func (j *job) walSince(ctx context.Context, base *repo.Summary) (wal.Source, error) {
	history, err := j.historyOf(ctx, j.start.Timeline)
	if err != nil {
		return nil, unprovenf("%v", err)
	}
	if !history.Contains(base.Stop.Timeline, base.Stop.LSN) {
		return nil, unprovenf("backup %s ends at %s, which timeline %s does not come from", base.ID, base.Stop, j.start.Timeline)
	}
	size := j.control.XLogSegSize
	last := size.NumberBefore(base.Stop.LSN)
	return continued(base, size, wal.SourceFunc(func(ctx context.Context, n wal.SegmentNumber) (wal.Segment, error) {
		tli := history.TimelineAt(size.End(n) - 1)
		stored := archived(j.cluster, tli, size)
		inside := base.Tail != "" && n == last && tli == base.Stop.Timeline
		if j.access == "files" && (n > last || tli != base.Stop.Timeline || inside) {
			f, err := os.Open(filepath.Join(j.server.localDir, "pg_wal", wal.SegmentName(tli, n, size)))
			if err == nil {
				return f, nil
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
		f, err := stored.OpenSegment(ctx, n)
		if errors.Is(err, wal.ErrNoSegment) && j.access != "files" {
			return live(j.src, tli, size).OpenSegment(ctx, n)
		}
		return f, err
	})), nil
}

func (j *job) historyOf(ctx context.Context, tli wal.TimelineID) (*timeline.History, error) {
	if tli == 1 {
		return timeline.Root(tli), nil
	}
	data, err := j.keeper.history(ctx, wal.HistoryName(tli))
	if err != nil {
		return nil, err
	}
	return timeline.Parse(tli, data)
}

// mapIsWhole looks for what makes a map useless.
func mapIsWhole(m *wal.Map) error {
	for _, u := range m.Unknown {
		return unprovenf("the WAL record at %s changes files in a way that is not known", u.LSN)
	}
	for _, s := range m.Settings {
		if s.Parameters != nil && s.Parameters.WALLevel == wal.WALLevelMinimal {
			return unprovenf("wal_level was minimal at %s", s.LSN)
		}
	}
	return nil
}
