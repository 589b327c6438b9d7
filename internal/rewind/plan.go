package rewind

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/progress"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// changes is what the target's own WAL did since the last common checkpoint's
// redo point.
type changes struct {
	pages     *wal.Map
	databases map[[2]uint32]bool // tablespace and database whose files were copied outside the WAL
	blocks    int64
}

// scan makes the page map, and refuses WAL that does not tell everything.
func (j *job) scan(ctx context.Context, d *Divergence) (*changes, error) {
	o := wal.ScanOptions{Options: j.walOptions(d.Checkpoint.Redo), Workers: j.Jobs,
		Progress: func(n int64) { j.Progress.Add(n) }}
	o.End = d.Target.End
	j.wal.readingOn(o.SegmentSize.Number(o.Start), o.SegmentSize.NumberBefore(o.End))
	j.Progress.Phase("reading the target's WAL", int64(o.End-o.Start), 0)
	m, end, err := wal.ScanMap(ctx, j.wal, o)
	if err != nil {
		return nil, j.explainWAL(err, "reading the target's WAL")
	}
	if end != nil {
		return nil, j.explainWAL(end, fmt.Sprintf("reading the target's WAL from %s to its end at %s", o.Start, o.End))
	}
	if m.End != o.End {
		return nil, exit.New(exit.Refused, "start and stop the target once, so that its end is certain",
			"the target's WAL should end at %s, and its last record ends at %s", o.End, m.End)
	}
	for _, u := range m.Unknown {
		return nil, exit.New(exit.Refused, "find what differs without it (--compare), or seed the node anew", "the record at %s (%s, info %#x) changes relation files in a way that is not known", u.LSN, u.RMID, u.Info)
	}
	for _, s := range m.Settings {
		if p := s.Parameters; p != nil && !p.WALLogHints && !j.tc.Checksums() {
			return nil, exit.New(exit.Refused, "find what differs without it (--compare), or seed the node anew", "wal_log_hints was off at %s: the target's WAL does not tell all changes", s.LSN)
		}
	}
	c := &changes{pages: m, databases: map[[2]uint32]bool{}}
	for _, e := range m.Databases {
		if e.Create != nil {
			c.databases[[2]uint32{e.Create.Tablespace, e.Create.Database}] = true
		}
	}
	for f := range m.Files() {
		if f.File.Fork == wal.ForkMain {
			c.blocks += int64(f.Blocks.Len())
		}
	}
	return c, nil
}

// planner decides for every path of both sides.
type planner struct {
	*job
	*changes
	d        *Divergence
	target   map[string]blockcopy.Entry
	source   map[string]blockcopy.Entry
	unlogged volume.Unlogged
	plan     *blockcopy.Plan
	dirs     []blockcopy.Action // creations, parents first
	walFirst []blockcopy.Action // WAL is copied first, before the source recycles it
	actions  []blockcopy.Action
	meta     meta
	missing  []string               // segments that replay needs and that are nowhere
	needs    []walNeed              // segments that replay needs, in log order
	hashed   *blockcopy.Differences // with Compare
	compared *Comparison
	equal    map[string]bool // files that are no relation's main fork and hold the same on both sides
}

// listing is what the source's list of files will be.
type listing struct {
	done    chan struct{}
	entries []blockcopy.Entry
	err     error
}

// startListing has the source list its files while the target's WAL is read.
func (j *job) startListing(ctx context.Context) {
	l := &listing{done: make(chan struct{})}
	j.listing = l
	go func() {
		defer close(l.done)
		l.entries, l.err = j.source.List(ctx)
	}()
}

func (j *job) listSource(ctx context.Context) ([]blockcopy.Entry, error) {
	if j.listing == nil {
		return j.source.List(ctx)
	}
	<-j.listing.done
	return j.listing.entries, j.listing.err
}

// makePlan lists both sides and decides.
func (j *job) makePlan(ctx context.Context, d *Divergence, c *changes) (*planner, error) {
	j.Progress.Phase("listing files", 0, 1)
	theirs, err := j.listSource(ctx)
	if err != nil {
		return nil, err
	}
	ours, err := blockcopy.ListDir(ctx, volume.OS, j.Target)
	if err != nil {
		return nil, err
	}
	p := &planner{job: j, changes: c, d: d, source: map[string]blockcopy.Entry{}, target: map[string]blockcopy.Entry{},
		unlogged: volume.Unlogged{}, plan: &blockcopy.Plan{Operation: "rewind", Command: j.Command, Source: j.source.Name()}}
	p.meta = meta{SystemID: j.tc.SystemIdentifier, SourceDir: !j.source.live(), Divergence: *d,
		SourceEnd: d.Source.End, SourceTLI: d.Source.Timeline, Flushed: j.flushed(d), Recovery: j.WriteRecoveryConf, Compared: j.Compare, Instance: j.source.instance(ctx)}
	for _, e := range theirs {
		p.source[e.Path] = e
		p.unlogged.Note(e.Path)
		p.plan.Totals.SourceBytes += e.Size
	}
	for _, e := range ours {
		p.target[e.Path] = e
	}
	compare := p.compareFiles
	if j.Compare {
		compare = p.compare
	}
	if err := compare(ctx, theirs); err != nil {
		return nil, err
	}
	for _, e := range theirs {
		if err := p.fromSource(e); err != nil {
			return nil, err
		}
	}
	for _, e := range ours {
		if _, ok := p.source[e.Path]; !ok || skipped(e) {
			p.onlyTarget(e)
		}
	}
	if r := j.source.repo; r != nil {
		p.meta.Backup = r.backup.Summary().ID
		p.planSignals()
	}
	planWAL := p.planWAL
	if j.Compare {
		planWAL = p.replaceWAL
	}
	if err := planWAL(ctx); err != nil {
		return nil, err
	}
	p.slots()
	p.finishPlan()
	return p, nil
}

func (p *planner) finishPlan() {
	slices.SortFunc(p.actions, func(a, b blockcopy.Action) int { return strings.Compare(a.Path, b.Path) })
	p.plan.Actions = slices.Concat(p.dirs, p.walFirst, p.actions)
	p.plan.Meta = p.meta.encode()
	p.plan.Sum()
}

func (p *planner) add(a blockcopy.Action) { p.actions = append(p.actions, a) }

func (p *planner) unchanged(e blockcopy.Entry) {
	p.plan.Totals.Unchanged++
	p.plan.Totals.UnchangedSize += e.Size
}

// compareFiles finds out which files that would be copied whole are equal
// already: most of the maps of free space and of visibility, and most of what
// is no relation at all.
func (p *planner) compareFiles(ctx context.Context, theirs []blockcopy.Entry) (err error) {
	var same []blockcopy.Entry
	for _, e := range theirs {
		if t, ok := p.target[e.Path]; ok && e.Type == blockcopy.File && t.Type == e.Type && t.Size == e.Size && p.whole(e) {
			same = append(same, e)
		}
	}
	p.Progress.Phase("comparing maps and other files that are not copied by block", 0, progress.Items)
	p.equal, err = blockcopy.EqualFiles(ctx, p.job.source.Source, p.Target, same, p.Jobs)
	return err
}

// whole tells whether a file, where it is copied, is copied whole.
func (p *planner) whole(e blockcopy.Entry) bool {
	c := volume.Classify(e.Path)
	return (c == volume.ClassCopy || c == volume.ClassRelFork) && !own(e.Path) && !p.unlogged.Omit(e.Path)
}

// The target's own, whatever the source has under these names: its log
// directories, its replication slots, and what belongs to one server only.
var ownNames = map[string]bool{
	"log": true, "pg_log": true, "pg_replslot": true, "backup_label.old": true, "tablespace_map.old": true,
	"standby.signal": true, "recovery.signal": true, "postmaster.opts": true, "current_logfiles": true,
}

func own(path string) bool {
	top, _, _ := strings.Cut(path, "/")
	return ownNames[top] || volume.InOwnDir(path)
}

// skipped tells whether an entry is no part of any copy.
func skipped(e blockcopy.Entry) bool {
	if e.Type == blockcopy.Dir {
		return volume.ClassifyDir(e.Path) == volume.ClassSkip
	}
	return e.Type == blockcopy.File && volume.Classify(e.Path) == volume.ClassSkip
}

// fromSource decides about a path that the source has.
func (p *planner) fromSource(e blockcopy.Entry) error {
	if err := blockcopy.CheckPath(e.Path); err != nil {
		return exit.Wrap(err, exit.Refused, "", "%s", p.job.source.Name())
	}
	t, have := p.target[e.Path]
	if own(e.Path) || skipped(e) || strings.HasPrefix(e.Path, "pg_wal/") && e.Type == blockcopy.File {
		return nil
	}
	if have && t.Type != e.Type {
		return exit.New(exit.Refused, "remove or rename one of them", "%s is a %s at the source and a %s in the target", e.Path, e.Type, t.Type)
	}
	switch {
	case e.Type == blockcopy.Dir && !have:
		p.dirs = append(p.dirs, blockcopy.Action{Kind: blockcopy.CreateDir, Path: e.Path})
	case e.Type == blockcopy.Link && !have:
		return p.link(e)
	case e.Type == blockcopy.File:
		p.file(e, t, have)
	}
	return nil
}

// link plans a tablespace that the target does not have.
func (p *planner) link(e blockcopy.Entry) error {
	place := e.LinkTarget
	if other, ok := p.TablespaceMap[place]; ok {
		place = other
	}
	if !filepath.IsAbs(place) {
		return exit.New(exit.Refused, "name a directory for it with --tablespace-mapping", "the source does not tell where its tablespace %s lies", e.Path)
	}
	taken, err := filepath.Glob(filepath.Join(place, p.tc.VersionDir(), "*"))
	if err == nil && len(taken) > 0 {
		return exit.New(exit.Refused, fmt.Sprintf("empty it, or say where the target shall keep it: --tablespace-mapping %s=DIR", e.LinkTarget),
			"the place of tablespace %s, %s, is in use", e.Path, place)
	}
	p.dirs = append(p.dirs, blockcopy.Action{Kind: blockcopy.CreateLink, Path: e.Path, LinkTarget: place})
	return nil
}

func (p *planner) file(e, t blockcopy.Entry, have bool) {
	if p.preparedLater(e.Path) {
		if have {
			p.add(blockcopy.Action{Kind: blockcopy.Remove, Path: e.Path, Reason: "replay makes it again"})
		}
		return
	}
	if p.byHash(e, t, have) {
		return
	}
	whole := blockcopy.Action{Kind: blockcopy.Copy, Path: e.Path, Size: e.Size}
	switch volume.Classify(e.Path) {
	case volume.ClassControl, volume.ClassLabel, volume.ClassWAL:
		return
	case volume.ClassVersion:
		if !have {
			p.add(whole)
		}
	case volume.ClassConfig:
		if p.TakeConfig {
			p.add(whole)
		} else {
			p.add(blockcopy.Action{Kind: blockcopy.Keep, Path: e.Path, Reason: "the target's own configuration"})
		}
	case volume.ClassRelMain:
		p.relation(e, t, have)
	default:
		switch {
		case p.unlogged.Omit(e.Path):
		case p.equal[e.Path]:
			p.unchanged(e)
		default:
			p.add(whole)
		}
	}
}

// relation plans one segment file of a main fork.
func (p *planner) relation(e, t blockcopy.Entry, have bool) {
	rel, _ := volume.ParseRelPath(e.Path)
	switch {
	case p.unlogged.Omit(e.Path):
		return // the server makes it anew from the init fork
	case !have:
		p.add(blockcopy.Action{Kind: blockcopy.Copy, Path: e.Path, Size: e.Size})
		return
	case p.databases[[2]uint32{rel.Tablespace, rel.Database}]:
		p.add(blockcopy.Action{Kind: blockcopy.Copy, Path: e.Path, Size: e.Size, Reason: "the target made this database anew"})
		return
	}
	bs := int64(p.tc.BlockSize)
	both := min(e.Size, t.Size) / bs
	spans := blockSpans(p.pages.Lookup(rel.RelFile), rel.FirstBlock(p.tc.RelSegSize), uint32(both), bs)
	if len(spans) > 0 {
		p.add(blockcopy.Action{Kind: blockcopy.CopyBlocks, Path: e.Path, Spans: spans})
	}
	switch {
	case e.Size > t.Size:
		p.add(blockcopy.Action{Kind: blockcopy.CopyTail, Path: e.Path, From: both * bs, Size: e.Size})
	case e.Size < t.Size:
		p.add(blockcopy.Action{Kind: blockcopy.Truncate, Path: e.Path, Size: e.Size})
	case len(spans) == 0:
		p.unchanged(e)
	}
}

// blockSpans returns the changed blocks of one segment file: n blocks from
// block first of the fork on. Every block from the change's limit on counts.
func blockSpans(c *wal.FileChange, first, n uint32, bs int64) []blockcopy.Span {
	if c == nil {
		return nil
	}
	var spans []blockcopy.Span
	limit := min(max(c.Limit, first)-first, n) // relative to the segment
	for from, count := range c.Blocks.Ranges() {
		lo, hi := max(from, first)-first, min(max(from+count, first)-first, limit)
		if lo < hi {
			spans = append(spans, blockcopy.Span{Offset: int64(lo) * bs, Length: int64(hi-lo) * bs})
		}
	}
	if limit < n {
		rest := blockcopy.Span{Offset: int64(limit) * bs, Length: int64(n-limit) * bs}
		if k := len(spans) - 1; k >= 0 && spans[k].Offset+spans[k].Length == rest.Offset {
			spans[k].Length += rest.Length
		} else {
			spans = append(spans, rest)
		}
	}
	return spans
}

// onlyTarget decides about a path that the source does not have, or that is no
// part of any copy.
func (p *planner) onlyTarget(e blockcopy.Entry) {
	remove := true
	switch {
	case own(e.Path), strings.HasPrefix(e.Path, "pg_wal/") || e.Path == "pg_wal":
		remove = false
	case e.Type == blockcopy.File:
		switch volume.Classify(e.Path) {
		case volume.ClassControl, volume.ClassLabel, volume.ClassConfig:
			remove = false
		}
	case e.Type == blockcopy.Dir:
		remove = volume.ClassifyDir(e.Path) != volume.ClassKeepEmpty
	}
	if remove {
		p.add(blockcopy.Action{Kind: blockcopy.Remove, Path: e.Path})
	}
}
