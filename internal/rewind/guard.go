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
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// unsafeReplay says that replay of the source's WAL on the rewound target would
// not give what the source has. Running the same rewind again does not help.
type unsafeReplay struct {
	At     wal.LSN
	Reason string
}

func (e *unsafeReplay) Error() string { return fmt.Sprintf("%s (at %s)", e.Reason, e.At) }

// guard reads the WAL that the target will replay, as it now lies in its
// pg_wal, for what replay does not repeat as it was:
//
//   - a database that was made by copying another one's files (CREATE DATABASE
//     ... STRATEGY FILE_COPY, each one before 15, ALTER DATABASE SET TABLESPACE):
//     replay copies the target's files again. Where this run fetched a block of
//     them that the source changed after that record, or removed a file that it
//     dropped after it, replay would copy what is too new;
//   - CREATE TABLESPACE at another place than where the target has it: replay
//     would lead the link to the source's place;
//   - full_page_writes off, wal_level minimal.
//
// WAL that only an archive has cannot be looked through: that is a warning.
func (j *job) guard(ctx context.Context, m meta, plan *blockcopy.Plan, sc *volume.Control, h *timeline.History, end wal.LSN) error {
	src := postgres.WALDir{Dir: filepath.Join(j.Target, "pg_wal"), Size: sc.XLogSegSize, History: h}
	return j.guardWAL(ctx, src, m, plan, sc, end)
}

// guardWAL is guard for WAL that lies anywhere.
func (j *job) guardWAL(ctx context.Context, src wal.Source, m meta, plan *blockcopy.Plan, sc *volume.Control, end wal.LSN) error {
	o := wal.ScanOptions{Workers: j.Jobs, Options: wal.Options{Start: m.Divergence.Start.Redo, End: end, SegmentSize: sc.XLogSegSize,
		PageSize: sc.XLogBlockSize, BlockSize: sc.BlockSize, SystemID: sc.SystemIdentifier, Major: sc.Major()}}
	found, stop, err := wal.ScanMap(ctx, src, o)
	if err != nil {
		return err
	}
	if !readTo(found, stop, end) {
		if errors.Is(stop, wal.ErrNoSegment) {
			j.warn("the WAL from %s on is not all here: it could not be looked through for databases that the source made by copying files", found.End)
			return nil
		}
		return exit.Wrap(stop, exit.Partial, "look at the source's pg_wal and at the network", "the WAL that was copied cannot be read up to %s", end)
	}
	g := &replayGuard{target: j.Target, relSegSize: sc.RelSegSize, versionDir: sc.VersionDir(), actions: map[string][]blockcopy.Action{}, blockSize: int64(sc.BlockSize),
		early: m.Divergence.Checkpoint != nil && m.Divergence.Start.Redo < m.Divergence.Checkpoint.Redo}
	if err := g.settings(found); err != nil {
		return unsafe(err, plan)
	}
	at := g.firstFileCopy(found)
	if at == 0 {
		return nil
	}
	if m.Compared {
		// What was not fetched may be as new as what was: it is equal.
		return unsafe(&unsafeReplay{at, "the source made a database by copying files while both sides were compared"}, plan)
	}
	for _, a := range plan.Actions {
		g.actions[a.Path] = append(g.actions[a.Path], a)
	}
	o.Start = at
	return unsafe(g.read(ctx, src, o.Options), plan)
}

// readTo tells whether a scan came to end. What is on the source's disk may end
// behind a page's header, or in the middle of a record.
func readTo(m *wal.Map, stop error, end wal.LSN) bool {
	var torn *wal.TornTail
	return stop == nil || m.End+wal.LongHeaderSize >= end || errors.As(stop, &torn) && torn.Fault >= end
}

// unsafe gives what the guard found its exit code and the way out.
func unsafe(err error, plan *blockcopy.Plan) error {
	var u *unsafeReplay
	if !errors.As(err, &u) {
		return err
	}
	return exit.Wrap(err, exit.Refused, "the same rewind would be refused again; take it back, then bring the target back with --compare, or seed it anew (dbrepl seed)",
		"replay of the source's WAL would not give what the source has")
}

// dbDir is a database's directory: in a tablespace.
type dbDir struct{ tablespace, database uint32 }

// replayGuard is what is known while the WAL is read.
type replayGuard struct {
	target     string
	versionDir string
	relSegSize uint32
	blockSize  int64
	early      bool                          // replay begins before the last common checkpoint: what the target kept may be too new as well
	actions    map[string][]blockcopy.Action // of the plan, by path
	copied     map[dbDir]*wal.DatabaseCreate // databases whose files were copied so far
	remade     map[dbDir]bool                // made by copying: replay makes them anew, from nothing
	born       map[wal.RelFile]bool          // relations younger than the first copy
}

func (g *replayGuard) settings(m *wal.Map) error {
	for _, s := range m.Settings {
		switch {
		case s.FullPageWrites != nil && !s.FullPageWrites.On:
			return &unsafeReplay{s.LSN, "full_page_writes was switched off at the source"}
		case s.Parameters != nil && s.Parameters.WALLevel == wal.WALLevelMinimal:
			return &unsafeReplay{s.LSN, "wal_level was lowered to minimal at the source"}
		}
	}
	for _, e := range m.Tablespaces {
		if e.Create == nil || e.Create.Path == "" {
			continue
		}
		here, err := os.Readlink(filepath.Join(g.target, "pg_tblspc", fmt.Sprint(e.Create.Tablespace)))
		if err == nil && here != e.Create.Path {
			return &unsafeReplay{e.LSN, fmt.Sprintf("the source created tablespace %d in %s, and here it lies in %s: replay would lead it to the former", e.Create.Tablespace, e.Create.Path, here)}
		}
	}
	return nil
}

func (g *replayGuard) firstFileCopy(m *wal.Map) wal.LSN {
	for _, e := range m.Databases {
		if e.Create != nil && e.Create.FileCopy {
			return e.LSN
		}
	}
	return 0
}

func (g *replayGuard) read(ctx context.Context, src wal.Source, o wal.Options) error {
	r, err := wal.NewReader(ctx, src, o)
	if err != nil {
		return err
	}
	defer r.Close()
	g.copied, g.remade, g.born = map[dbDir]*wal.DatabaseCreate{}, map[dbDir]bool{}, map[wal.RelFile]bool{}
	for r.Next() {
		rec := r.Record()
		if why := g.record(rec); why != "" {
			return &unsafeReplay{rec.LSN, why}
		}
	}
	return nil // what ends it was judged by the scan before
}

// record returns why a record makes replay unsafe, "" where it does not.
func (g *replayGuard) record(r *wal.Record) string {
	for i := range r.Blocks {
		if b := &r.Blocks[i]; g.newer(b.File, b.Block) && g.holds(b.File, b.Block, r.LSN) {
			return g.because(b.File)
		}
	}
	switch r.RMID {
	case wal.RmTransaction, wal.RmStorage, wal.RmDatabase, wal.RmRelMap:
	default:
		return ""
	}
	detail, err := wal.Decode(r)
	if err != nil {
		return "a record cannot be read: " + err.Error()
	}
	switch d := detail.(type) {
	case *wal.DatabaseCreate:
		g.create(d)
	case *wal.DatabaseDrop:
		for _, space := range d.Tablespaces {
			if dir := (dbDir{space, d.Database}); g.copied[dir] != nil && !g.exists(g.path(dir)+"/PG_VERSION") {
				return g.because(wal.RelFile{Tablespace: space, Database: d.Database})
			}
		}
	case *wal.RelationCreate:
		g.born[d.File] = true
	case *wal.RelationTruncate:
		if g.of(d.File) && (g.early || len(g.actions[g.file(d.File, 0)]) > 0) {
			return g.because(d.File)
		}
	case *wal.RelationMapUpdate:
		dir := dbDir{d.Tablespace, d.Database}
		if g.copied[dir] != nil && (g.early || len(g.actions[g.path(dir)+"/pg_filenode.map"]) > 0) {
			return g.because(wal.RelFile{Tablespace: d.Tablespace, Database: d.Database})
		}
	case *wal.Commit:
		return g.dropped(d.Dropped)
	case *wal.Abort:
		return g.dropped(d.Dropped)
	}
	return ""
}

// create notes a database. One that replay itself makes by copying holds what
// its template did then, whatever this run fetched.
func (g *replayGuard) create(d *wal.DatabaseCreate) {
	from, to := dbDir{d.SourceTablespace, d.SourceDatabase}, dbDir{d.Tablespace, d.Database}
	if d.FileCopy {
		g.remade[to] = true
	}
	if d.FileCopy && !g.remade[from] && g.copied[from] == nil {
		g.copied[from] = d
	}
}

// of tells whether a relation belongs to a database that was copied, and was
// there at that time.
func (g *replayGuard) of(f wal.RelFile) bool {
	f.Fork = wal.ForkMain
	return g.copied[dbDir{f.Tablespace, f.Database}] != nil && !g.born[f]
}

// holds tells by the page itself whether it is as of a record or younger.
func (g *replayGuard) holds(f wal.RelFile, block uint32, at wal.LSN) bool {
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

// newer tells whether this run fetched a block that the copying must find as it
// was before. The free space map is not in the WAL and mends itself.
func (g *replayGuard) newer(f wal.RelFile, block uint32) bool {
	if len(g.copied) == 0 || f.Fork == wal.ForkFSM || !g.of(f) {
		return false
	}
	if g.early {
		return true
	}
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

// dropped judges relations that a transaction removed after they were copied.
func (g *replayGuard) dropped(files []wal.RelFile) string {
	for _, f := range files {
		if g.of(f) && !g.exists(g.file(f, 0)) {
			return g.because(f)
		}
	}
	return ""
}

func (g *replayGuard) because(f wal.RelFile) string {
	made := g.copied[dbDir{f.Tablespace, f.Database}]
	return fmt.Sprintf("the source made database %d by copying the files of database %d, and changed those since: replay would copy what is too new", made.Database, f.Database)
}

func (g *replayGuard) file(f wal.RelFile, segment uint32) string {
	return volume.RelSegment{RelFile: f, Segment: segment}.Path(g.versionDir)
}

func (g *replayGuard) path(d dbDir) string {
	return filepath.ToSlash(filepath.Dir(g.file(wal.RelFile{Tablespace: d.tablespace, Database: d.database, Relation: 1}, 0)))
}

func (g *replayGuard) exists(name string) bool {
	_, err := os.Stat(filepath.Join(g.target, filepath.FromSlash(name)))
	return !errors.Is(err, fs.ErrNotExist)
}
