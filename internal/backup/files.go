package backup

import (
	"context"
	"io/fs"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/repo"
	"tidemark/pkg/volume"
)

// contents is what of a data directory belongs in a copy, in path order. There
// may be a million files: an entry takes 40 bytes besides its name, and what is
// to be read is worked out piece by piece.
type contents struct {
	entries     []slimEntry
	links       map[string]string // where links lead, by path
	bytes       int64             // to be read
	parts       []bool            // of each entry: only what read says is read; nil: every file is read whole
	read        map[int][]blockcopy.Range
	tablespaces []repo.Tablespace
}

// slimEntry is a blockcopy.Entry that takes half the room.
type slimEntry struct {
	path    string
	size    int64
	modTime int64 // nanoseconds since 1970; 0: not known
	mode    fs.FileMode
	kind    blockcopy.EntryType
}

func (c *contents) entry(i int) blockcopy.Entry {
	s := &c.entries[i]
	e := blockcopy.Entry{Path: s.path, Size: s.size, Mode: s.mode, Type: s.kind, LinkTarget: c.links[s.path]}
	if s.modTime != 0 {
		e.ModTime = time.Unix(0, s.modTime)
	}
	return e
}

// all goes through the entries.
func (c *contents) all() iter.Seq2[int, blockcopy.Entry] {
	return func(yield func(int, blockcopy.Entry) bool) {
		for i := range c.entries {
			if !yield(i, c.entry(i)) {
				return
			}
		}
	}
}

// find returns the number of the entry with a path.
func (c *contents) find(path string) (int, bool) {
	return slices.BinarySearchFunc(c.entries, path, func(e slimEntry, path string) int { return strings.Compare(e.path, path) })
}

// choose lists the source and leaves out what no copy takes along.
func choose(ctx context.Context, src blockcopy.Source) (*contents, error) {
	unlogged := volume.Unlogged{}
	c := &contents{links: map[string]string{}}
	err := eachEntry(ctx, src, func(e blockcopy.Entry) error {
		if e.Type == blockcopy.File {
			unlogged.Note(e.Path)
		}
		if !wanted(e) {
			return nil
		}
		s := slimEntry{path: e.Path, size: e.Size, mode: e.Mode, kind: e.Type}
		if !e.ModTime.IsZero() {
			s.modTime = e.ModTime.UnixNano()
		}
		c.entries = append(c.entries, s)
		if e.Type == blockcopy.Link {
			return c.tablespace(e)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	c.entries = slices.DeleteFunc(c.entries, func(e slimEntry) bool { return e.kind == blockcopy.File && unlogged.Omit(e.path) })
	slices.SortFunc(c.entries, func(a, b slimEntry) int { return strings.Compare(a.path, b.path) })
	// A link to a directory is listed with what lies behind it; a source may
	// list the directory as well.
	c.entries = slices.CompactFunc(c.entries, func(a, b slimEntry) bool { return a.path == b.path })
	c.readAll()
	return c, nil
}

// eachEntry goes through a source's entries, one by one where it can do that: a
// list of all of them takes more room than what is kept.
func eachEntry(ctx context.Context, src blockcopy.Source, do func(blockcopy.Entry) error) error {
	if l, ok := src.(interface {
		Each(context.Context, func(blockcopy.Entry) error) error
	}); ok {
		return l.Each(ctx, do)
	}
	all, err := src.List(ctx)
	if err != nil {
		return err
	}
	for _, e := range all {
		if err := do(e); err != nil {
			return err
		}
	}
	return nil
}

func wanted(e blockcopy.Entry) bool {
	if e.Type != blockcopy.File {
		return volume.ClassifyDir(e.Path) != volume.ClassSkip
	}
	switch volume.Classify(e.Path) {
	case volume.ClassSkip, volume.ClassControl, volume.ClassWAL, volume.ClassLabel:
		return false
	}
	return true
}

func (c *contents) tablespace(e blockcopy.Entry) error {
	oid, err := strconv.ParseUint(strings.TrimPrefix(e.Path, "pg_tblspc/"), 10, 32)
	if err != nil {
		return exit.New(exit.Refused, "remove it, or move it out of pg_tblspc", "%s is not a tablespace link", e.Path)
	}
	if e.LinkTarget == "" {
		return exit.New(exit.Failed, "", "the place of tablespace %d is not known", oid)
	}
	c.links[e.Path] = e.LinkTarget
	c.tablespaces = append(c.tablespaces, repo.Tablespace{OID: uint32(oid), Path: e.LinkTarget})
	return nil
}

// tablespaceMap formats the tablespaces for a restore.
func (c *contents) tablespaceMap() []byte {
	var links []volume.TablespaceLink
	for _, t := range c.tablespaces {
		links = append(links, volume.TablespaceLink{Oid: t.OID, Path: t.Path})
	}
	return volume.FormatTablespaceMap(links)
}
