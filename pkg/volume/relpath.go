package volume

import (
	"fmt"
	"strconv"
	"strings"

	"tidemark/pkg/wal"
)

// The tablespaces that every cluster has (catalog/pg_tablespace.dat). Their
// numbers are part of the format, do not change.
const (
	DefaultTablespace = 1663 // base/
	GlobalTablespace  = 1664 // global/, database 0
)

// RelSegmentBlocks is how many blocks a relation's segment file holds in a
// server built as servers are: 1 GB of 8 KB blocks. pg_control has the truth.
const RelSegmentBlocks = 131072

// RelSegment names one segment file of one fork of a relation.
type RelSegment struct {
	wal.RelFile
	Segment uint32
}

// FirstBlock returns the number that the segment's first block has in its
// fork, for a server with segments of relSegSize blocks.
func (s RelSegment) FirstBlock(relSegSize uint32) uint32 { return s.Segment * relSegSize }

// Path returns the file's path in the data directory. versionDir is the
// server's directory in a tablespace (Control.VersionDir); it is needed for
// tablespaces other than the two that every cluster has.
func (s RelSegment) Path(versionDir string) string {
	var b strings.Builder
	switch s.Tablespace {
	case GlobalTablespace:
		b.WriteString("global/")
	case DefaultTablespace:
		fmt.Fprintf(&b, "base/%d/", s.Database)
	default:
		fmt.Fprintf(&b, "pg_tblspc/%d/%s/%d/", s.Tablespace, versionDir, s.Database)
	}
	b.WriteString(s.fileName())
	return b.String()
}

func (s RelSegment) fileName() string {
	name := strconv.FormatUint(uint64(s.Relation), 10) + forkSuffix(s.Fork)
	if s.Segment > 0 {
		name += "." + strconv.FormatUint(uint64(s.Segment), 10)
	}
	return name
}

var forkSuffixes = [...]string{wal.ForkMain: "", wal.ForkFSM: "_fsm", wal.ForkVM: "_vm", wal.ForkInit: "_init"}

func forkSuffix(f wal.Fork) string {
	if int(f) < len(forkSuffixes) {
		return forkSuffixes[f]
	}
	return fmt.Sprintf("_fork%d", f)
}

// ParseRelPath recognises the path of a permanent relation's file, relative
// to the data directory and with slashes. A path is recognised by taking it
// apart, putting it together again and comparing.
func ParseRelPath(path string) (RelSegment, bool) {
	dir, name, _ := cutLast(path)
	space, database, versionDir, ok := parseRelDir(dir)
	if !ok {
		return RelSegment{}, false
	}
	s, ok := parseRelName(name)
	if !ok {
		return RelSegment{}, false
	}
	s.Tablespace, s.Database = space, database
	return s, s.Path(versionDir) == path
}

// parseRelDir takes apart the directory of a relation's file.
func parseRelDir(dir string) (space, database uint32, versionDir string, ok bool) {
	parts := strings.Split(dir, "/")
	switch {
	case dir == "global":
		return GlobalTablespace, 0, "", true
	case len(parts) == 2 && parts[0] == "base":
		database, ok = parseOid(parts[1])
		return DefaultTablespace, database, "", ok
	case len(parts) == 4 && parts[0] == "pg_tblspc":
		space, ok1 := parseOid(parts[1])
		_, _, ok2 := ParseVersionDir(parts[2])
		database, ok3 := parseOid(parts[3])
		fixed := space == DefaultTablespace || space == GlobalTablespace
		return space, database, parts[2], ok1 && ok2 && ok3 && !fixed
	}
	return 0, 0, "", false
}

// parseRelName takes apart "16384", "16384_fsm", "16384.1", "16384_init.2".
func parseRelName(name string) (RelSegment, bool) {
	name, seg, hasSeg := strings.Cut(name, ".")
	number, fork, hasFork := strings.Cut(name, "_")
	var s RelSegment
	ok := true
	if s.Relation, ok = parseOid(number); !ok {
		return s, false
	}
	if hasFork {
		if s.Fork, ok = forkByName(fork); !ok {
			return s, false
		}
	}
	if hasSeg {
		s.Segment, ok = parseOid(seg)
	}
	return s, ok
}

func forkByName(name string) (wal.Fork, bool) {
	for f, suffix := range forkSuffixes {
		if suffix != "" && suffix[1:] == name {
			return wal.Fork(f), true
		}
	}
	return 0, false
}

// parseOid reads a number that is neither 0 nor written with leading zeros.
func parseOid(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != 0 && s[0] != '0' && s[0] != '+'
}

// isTempRelation recognises the file of a temporary relation,
// t<backend>_<relation> with fork and segment, in a database's directory.
func isTempRelation(path string) bool {
	dir, name, _ := cutLast(path)
	if _, _, _, ok := parseRelDir(dir); !ok || dir == "global" {
		return false
	}
	rest, ok := strings.CutPrefix(name, "t")
	if !ok {
		return false
	}
	backend, rel, ok := strings.Cut(rest, "_")
	if !ok || !isNumber(backend) {
		return false
	}
	s, ok := parseRelName(rel)
	return ok && "t"+backend+"_"+s.fileName() == name
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 32)
	return err == nil && s[0] != '+'
}

// VersionDir returns the name of a server's directory in a tablespace.
func VersionDir(major int, catalog uint32) string { return fmt.Sprintf("PG_%d_%d", major, catalog) }

// ParseVersionDir takes apart a name like PG_15_202209061.
func ParseVersionDir(name string) (major int, catalog uint32, ok bool) {
	rest, ok := strings.CutPrefix(name, "PG_")
	m, c, ok2 := strings.Cut(rest, "_")
	mn, ok3 := parseOid(m)
	cn, ok4 := parseOid(c)
	return int(mn), cn, ok && ok2 && ok3 && ok4
}

// cutLast splits a slash path before its last part.
func cutLast(path string) (dir, name string, found bool) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path, false
	}
	return path[:i], path[i+1:], true
}
