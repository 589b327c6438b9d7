package backup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/repo"
	"tidemark/pkg/volume"
)

// Mapping sends a tablespace to another directory. From is its old directory,
// its name or its OID.
type Mapping struct{ From, To string }

// ParseMapping reads OLD=NEW.
func ParseMapping(s string) (Mapping, error) {
	from, to, ok := strings.Cut(s, "=")
	if !ok || from == "" || !filepath.IsAbs(to) {
		return Mapping{}, exit.New(exit.Usage, "write --tablespace OLD=NEW; NEW is an absolute path", "--tablespace %s", s)
	}
	return Mapping{from, filepath.Clean(to)}, nil
}

// placeSpaces says where each tablespace of the cluster goes, by the path of
// its link. One that is not mapped keeps its directory. In-place ones, which have
// no link, are not among them.
func placeSpaces(spaces []repo.Tablespace, mappings []Mapping) (map[string]string, error) {
	links := map[string]string{}
	key := func(s repo.Tablespace) string { return "pg_tblspc/" + strconv.FormatUint(uint64(s.OID), 10) }
	for _, s := range spaces {
		links[key(s)] = filepath.Clean(s.Path)
	}
	for _, m := range mappings {
		i := slices.IndexFunc(spaces, func(s repo.Tablespace) bool {
			return m.From == s.Name && s.Name != "" || m.From == strconv.FormatUint(uint64(s.OID), 10) ||
				filepath.IsAbs(m.From) && filepath.Clean(m.From) == filepath.Clean(s.Path)
		})
		if i < 0 {
			return nil, exit.New(exit.Usage, listSpaces(spaces), "--tablespace: the cluster has no tablespace %s", m.From)
		}
		links[key(spaces[i])] = m.To
	}
	taken := map[string]string{}
	for link, dir := range links {
		if other, ok := taken[dir]; ok {
			return nil, exit.New(exit.Usage, "give each its own directory", "%s and %s would share %s", other, link, dir)
		}
		taken[dir] = link
	}
	return links, nil
}

// listSpaces names the tablespaces that there are.
func listSpaces(spaces []repo.Tablespace) string {
	if len(spaces) == 0 {
		return "the cluster has none"
	}
	var known []string
	for _, s := range spaces {
		known = append(known, strings.TrimSpace(fmt.Sprintf("%s %d in %s", s.Name, s.OID, s.Path)))
	}
	return strings.Join(known, ", ")
}

// emptySpaces refuses directories that hold something already.
func emptySpaces(links map[string]string) error {
	for link, dir := range links {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if len(entries) > 0 {
			return exit.New(exit.Refused, "send the tablespace to an empty directory: --tablespace "+strings.TrimPrefix(link, "pg_tblspc/")+"=DIR",
				"%s, the directory of tablespace %s, is not empty", dir, strings.TrimPrefix(link, "pg_tblspc/"))
		}
	}
	return nil
}

// spacesMap is the tablespace_map of a copy whose links lead elsewhere.
func spacesMap(links map[string]string) []byte {
	var out []volume.TablespaceLink
	for link, dir := range links {
		oid, _ := strconv.ParseUint(strings.TrimPrefix(link, "pg_tblspc/"), 10, 32) // it was made from a number
		out = append(out, volume.TablespaceLink{Oid: uint32(oid), Path: dir})
	}
	slices.SortFunc(out, func(a, b volume.TablespaceLink) int { return int(int64(a.Oid) - int64(b.Oid)) })
	return volume.FormatTablespaceMap(out)
}

// spaceOf returns the link below which an entry lies, "" for the data directory
// itself, and its name there.
func spaceOf(links map[string]string, e blockcopy.Entry) (link, name string) {
	if parts := strings.SplitN(e.Path, "/", 3); len(parts) == 3 && parts[0] == "pg_tblspc" {
		if l := parts[0] + "/" + parts[1]; links[l] != "" {
			return l, parts[2]
		}
	}
	return "", e.Path
}
