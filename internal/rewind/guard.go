package rewind

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/walguard"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// unsafeReplay says that replay of the source's WAL on the rewound target would
// not give what the source has. Running the same rewind again does not help.
type unsafeReplay struct {
	At     wal.LSN
	Reason string
	hint   string
}

func (e *unsafeReplay) Error() string { return fmt.Sprintf("%s (at %s)", e.Reason, e.At) }

// guard reads the WAL that the target will replay, as it now lies in its
// pg_wal, for what replay does not repeat as it was (internal/walguard).
// WAL that only an archive has cannot be looked through: that is a warning.
func (j *job) guard(ctx context.Context, m meta, plan *blockcopy.Plan, sc *volume.Control, h *timeline.History, end wal.LSN) error {
	src := postgres.WALDir{Dir: filepath.Join(j.Target, "pg_wal"), Size: sc.XLogSegSize, History: h}
	return j.guardWAL(ctx, src, m, plan, sc, end)
}

// guardWAL is guard for WAL that lies anywhere.
func (j *job) guardWAL(ctx context.Context, src wal.Source, m meta, plan *blockcopy.Plan, sc *volume.Control, end wal.LSN) error {
	g := newReplayGuard(j.Target, m, plan, sc)
	r, err := g.rules().Read(ctx, src, j.guardOptions(sc, m.Divergence.Start.Redo, end))
	switch {
	case err != nil:
		return err
	case !r.Reached(end) && errors.Is(r.Stop, wal.ErrNoSegment):
		j.warn("the WAL from %s on is not all here: it could not be looked through for databases that the source made by copying files", r.End)
	case !r.Reached(end):
		return exit.Wrap(r.Stop, exit.Partial, "look at the source's pg_wal and at the network", "the WAL that was copied cannot be read up to %s", end)
	}
	if u := g.judge(r.Finding); u != nil {
		return exit.Wrap(u, exit.Refused, "the same rewind would be refused again; take it back (dbrewind undo), then "+u.hint,
			"replay of the source's WAL would not give what the source has")
	}
	return nil
}

func (j *job) guardOptions(sc *volume.Control, start, end wal.LSN) wal.ScanOptions {
	return wal.ScanOptions{Workers: j.Jobs, Options: wal.Options{Start: start, End: end, SegmentSize: sc.XLogSegSize,
		PageSize: sc.XLogBlockSize, BlockSize: sc.BlockSize, SystemID: sc.SystemIdentifier, Major: sc.Major()}}
}

// replayGuard answers what the rewound target may hold.
type replayGuard struct {
	target     string
	versionDir string
	relSegSize uint32
	blockSize  int64
	flushed    wal.LSN
	ahead      bool                          // nothing is copied yet
	all        bool                          // by comparison: what was not fetched may be as new as what was, for it is equal
	early      bool                          // replay begins before the last common checkpoint: what the target kept may be too new as well
	actions    map[string][]blockcopy.Action // of the plan, by path
}

func newReplayGuard(target string, m meta, plan *blockcopy.Plan, sc *volume.Control) *replayGuard {
	g := &replayGuard{target: target, relSegSize: sc.RelSegSize, versionDir: sc.VersionDir(), blockSize: int64(sc.BlockSize),
		flushed: m.Flushed, all: m.Compared, actions: map[string][]blockcopy.Action{},
		early: m.Divergence.Checkpoint != nil && m.Divergence.Start.Redo < m.Divergence.Checkpoint.Redo}
	for _, a := range plan.Actions {
		g.actions[a.Path] = append(g.actions[a.Path], a)
	}
	return g
}

func (g *replayGuard) rules() *walguard.Guard {
	return &walguard.Guard{Flushed: g.flushed, Holds: g.holds, Tablespace: g.sameTablespace}
}

// judge puts what was found in words; nil where nothing was.
func (g *replayGuard) judge(f *walguard.Finding) *unsafeReplay {
	const otherWay = "bring the target back with --compare, or seed it anew (dbrepl seed)"
	if f == nil {
		return nil
	}
	u := &unsafeReplay{At: f.LSN, hint: otherWay}
	switch f.Kind {
	case walguard.FullPageWrites:
		u.Reason = "full_page_writes was off at the source, and it has not written out since what it changed then"
		u.hint = "run CHECKPOINT at the source, with full_page_writes = on, and begin anew"
	case walguard.WALLevel:
		u.Reason = "wal_level was lowered to minimal at the source"
	case walguard.Tablespace:
		u.Reason = fmt.Sprintf("the source created tablespace %d in %s, and here it lies in %s: replay would lead it to the former",
			f.Tablespace.Tablespace, f.Tablespace.Path, g.placeOf(f.Tablespace))
	case walguard.FileCopy:
		u.Reason = fmt.Sprintf("the source made database %d by copying the files of database %d, and changed those since: replay would copy what is too new",
			f.Made.Database, f.Made.SourceDatabase)
	default:
		u.Reason = "a record cannot be read: " + f.Err.Error()
	}
	return u
}

// sameTablespace tells whether a tablespace lies here where it lies at the source.
func (g *replayGuard) sameTablespace(t *wal.TablespaceCreate) bool {
	here := g.placeOf(t)
	return t.Path == "" || here == "" || here == t.Path
}

// placeOf is where a tablespace of the source lies, or will lie, here; empty
// where it does not.
func (g *replayGuard) placeOf(t *wal.TablespaceCreate) string {
	link := fmt.Sprintf("pg_tblspc/%d", t.Tablespace)
	for _, a := range g.actions[link] {
		if a.Kind == blockcopy.CreateLink {
			return a.LinkTarget
		}
	}
	here, err := os.Readlink(filepath.Join(g.target, filepath.FromSlash(link)))
	if err != nil {
		return ""
	}
	return here
}

// holds tells whether the rewound target may hold a change: where this run
// fetches, or removes, what the copying must find as it was before.
func (g *replayGuard) holds(t walguard.Touch) bool {
	if g.all {
		return true
	}
	switch t.Change {
	case walguard.Block:
		return g.newer(t.File, t.Block) && g.younger(t.File, t.Block, t.LSN)
	case walguard.Truncate:
		return g.early || len(g.actions[g.file(t.File, 0)]) > 0
	case walguard.Map:
		return g.early || len(g.actions[g.path(t.File)+"/pg_filenode.map"]) > 0
	case walguard.DropDatabase:
		return g.gone(g.path(t.File) + "/PG_VERSION")
	}
	return g.gone(g.file(t.File, 0))
}

// younger tells by the page itself whether it is as of a record or younger.
// What is not fetched yet will be.
func (g *replayGuard) younger(f wal.RelFile, block uint32, at wal.LSN) bool {
	if g.ahead && g.fetched(f, block) {
		return true
	}
	file, err := os.Open(filepath.Join(g.target, filepath.FromSlash(g.file(f, block/g.relSegSize))))
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer file.Close()
	page := make([]byte, g.blockSize)
	if _, err := file.ReadAt(page, int64(block%g.relSegSize)*g.blockSize); err != nil {
		return false // it is not there
	}
	return volume.PageLSN(page) > at
}

// newer tells whether a block may be what the copying must not find.
func (g *replayGuard) newer(f wal.RelFile, block uint32) bool { return g.early || g.fetched(f, block) }

// fetched tells whether this run fetches a block.
func (g *replayGuard) fetched(f wal.RelFile, block uint32) bool {
	off := int64(block%g.relSegSize) * g.blockSize
	for _, a := range g.actions[g.file(f, block/g.relSegSize)] {
		switch a.Kind {
		case blockcopy.Copy, blockcopy.Truncate:
			return true
		case blockcopy.CopyTail:
			if off >= a.From {
				return true
			}
		case blockcopy.CopyBlocks:
			for _, s := range a.Spans {
				if off >= s.Offset && off < s.Offset+s.Length {
					return true
				}
			}
		}
	}
	return false
}

func (g *replayGuard) file(f wal.RelFile, segment uint32) string {
	return volume.RelSegment{RelFile: f, Segment: segment}.Path(g.versionDir)
}

// path is the directory of the database that a file belongs to.
func (g *replayGuard) path(f wal.RelFile) string {
	f.Relation, f.Fork = 1, wal.ForkMain
	return filepath.ToSlash(filepath.Dir(g.file(f, 0)))
}

// gone tells whether a file is not there when replay begins.
func (g *replayGuard) gone(name string) bool {
	for _, a := range g.actions[name] {
		switch {
		case a.Kind == blockcopy.Remove:
			return true
		case a.Kind == blockcopy.Copy && g.ahead:
			return false
		}
	}
	_, err := os.Stat(filepath.Join(g.target, filepath.FromSlash(name)))
	return errors.Is(err, fs.ErrNotExist)
}
