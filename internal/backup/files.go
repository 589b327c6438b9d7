package backup

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/repo"
	"tidemark/pkg/volume"
)

// contents is what of a data directory belongs in a copy, in path order.
type contents struct {
	entries     []blockcopy.Entry
	bytes       int64       // to be read
	parts       []fileParts // of each entry; nil: every file is read whole
	tablespaces []repo.Tablespace
}

// choose lists the source and leaves out what no copy takes along.
func choose(ctx context.Context, src blockcopy.Source) (*contents, error) {
	all, err := src.List(ctx)
	if err != nil {
		return nil, err
	}
	unlogged := volume.Unlogged{}
	for _, e := range all {
		if e.Type == blockcopy.File {
			unlogged.Note(e.Path)
		}
	}
	c := &contents{}
	for _, e := range all {
		if !wanted(e, unlogged) {
			continue
		}
		c.entries = append(c.entries, e)
		c.bytes += e.Size
		if e.Type == blockcopy.Link {
			if err := c.tablespace(e); err != nil {
				return nil, err
			}
		}
	}
	slices.SortFunc(c.entries, func(a, b blockcopy.Entry) int { return strings.Compare(a.Path, b.Path) })
	// A link to a directory is listed with what lies behind it; a source may
	// list the directory as well.
	c.entries = slices.CompactFunc(c.entries, func(a, b blockcopy.Entry) bool { return a.Path == b.Path })
	return c, nil
}

func wanted(e blockcopy.Entry, unlogged volume.Unlogged) bool {
	if e.Type != blockcopy.File {
		return volume.ClassifyDir(e.Path) != volume.ClassSkip
	}
	switch volume.Classify(e.Path) {
	case volume.ClassSkip, volume.ClassControl, volume.ClassWAL, volume.ClassLabel:
		return false
	}
	return !unlogged.Omit(e.Path)
}

func (c *contents) tablespace(e blockcopy.Entry) error {
	oid, err := strconv.ParseUint(strings.TrimPrefix(e.Path, "pg_tblspc/"), 10, 32)
	if err != nil {
		return exit.New(exit.Refused, "remove it, or move it out of pg_tblspc", "%s is not a tablespace link", e.Path)
	}
	if e.LinkTarget == "" {
		return exit.New(exit.Failed, "", "the place of tablespace %d is not known", oid)
	}
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
