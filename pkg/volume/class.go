package volume

import (
	"strings"

	"tidemark/pkg/wal"
)

// Class says what a copy of a cluster does with a file or directory.
type Class uint8

// The classes. A directory has the class of its own name; what lies in it is
// classified by its own path.
const (
	ClassCopy      Class = iota // copied whole
	ClassDir                    // a directory that is made, its content treated by its own paths
	ClassKeepEmpty              // a directory that is made and left empty
	ClassSkip                   // not part of a copy
	ClassRelMain                // a relation's main fork: its blocks are numbered and may travel alone
	ClassRelFork                // another fork of a relation: copied whole, WAL does not tell all its changes
	ClassConfig                 // settings of this one server: a rewind keeps the target's own
	ClassControl                // pg_control: read last and written last
	ClassWAL                    // a segment, history or backup file in pg_wal
	ClassVersion                // PG_VERSION: copied to a new directory, never over another
	ClassLabel                  // backup_label, tablespace_map: belong to one copy, never taken over
)

var classNames = [...]string{"copy", "directory", "keep empty", "skip", "relation", "relation fork",
	"configuration", "control file", "wal", "version", "label"}

func (c Class) String() string {
	if int(c) < len(classNames) {
		return classNames[c]
	}
	return "unknown class"
}

// emptyDirs are directories whose content a server makes anew at its start,
// and which it expects to find.
var emptyDirs = map[string]bool{
	"pg_dynshmem": true, "pg_notify": true, "pg_replslot": true, "pg_serial": true,
	"pg_snapshots": true, "pg_stat_tmp": true, "pg_subtrans": true,
}

// skipFiles belong to the running server or to another copy.
var skipFiles = map[string]bool{
	"postmaster.pid": true, "postmaster.opts": true,
	"recovery.signal": true, "standby.signal": true, "promote": true,
	"current_logfiles": true, "current_logfiles.tmp": true, "postgresql.auto.conf.tmp": true,
	"backup_manifest": true, "backup_manifest.tmp": true, "logrotate": true,
}

var labelFiles = map[string]bool{
	"backup_label": true, "backup_label.old": true, "tablespace_map": true, "tablespace_map.old": true,
}

var configFiles = map[string]bool{
	"postgresql.conf": true, "postgresql.auto.conf": true, "pg_hba.conf": true, "pg_ident.conf": true,
}

// Classify returns the class of a file, by its path relative to the data
// directory, with slashes. Directories go to ClassifyDir.
func Classify(path string) Class {
	top, rest, deep := strings.Cut(path, "/")
	_, name, _ := cutLast(path)
	switch {
	case path == ControlPath:
		return ClassControl
	case strings.HasSuffix(name, TempSuffix), strings.HasSuffix(name, OwnSuffix), strings.HasPrefix(name, "pgsql_tmp"),
		strings.HasPrefix(name, "pg_internal.init"), deep && inTempDir(rest), InOwnDir(path):
		return ClassSkip
	case !deep && skipFiles[path], deep && emptyDirs[top]:
		return ClassSkip
	case !deep && labelFiles[path]:
		return ClassLabel
	case !deep && configFiles[path]:
		return ClassConfig
	case top == "pg_wal":
		return classifyWAL(rest)
	case name == "PG_VERSION":
		return ClassVersion
	}
	return classifyRelation(path)
}

// OwnDir is the directory in a data directory where Tidemark keeps what it
// needs to go on or to undo. No copy takes it along.
const OwnDir = "tidemark"

// InOwnDir tells whether a path is an OwnDir or lies in one. There is one at
// the top, and there may be one in each directory of the top and in each
// tablespace: files that are kept for an undo stay on their file system.
func InOwnDir(path string) bool {
	first, rest, _ := strings.Cut(path, "/")
	if first == OwnDir {
		return true
	}
	if first == "pg_tblspc" {
		_, rest, _ = strings.Cut(rest, "/")
	}
	second, _, _ := strings.Cut(rest, "/")
	return second == OwnDir
}

// OwnSuffix ends the names of files in a data directory that are Tidemark's.
// No copy takes them along.
const OwnSuffix = ".tidemark.json"

// inTempDir tells whether a path passes through a directory of temporary files.
func inTempDir(path string) bool {
	return strings.HasPrefix(path, "pgsql_tmp") || strings.Contains(path, "/pgsql_tmp")
}

// classifyWAL takes a path below pg_wal.
func classifyWAL(path string) Class {
	if strings.HasPrefix(path, "archive_status/") || strings.HasPrefix(path, "summaries/") {
		return ClassSkip
	}
	if _, ok := wal.ParseFileName(path); ok {
		return ClassWAL
	}
	return ClassSkip
}

func classifyRelation(path string) Class {
	if isTempRelation(path) {
		return ClassSkip
	}
	s, ok := ParseRelPath(path)
	switch {
	case !ok:
		return ClassCopy
	case s.Fork == wal.ForkMain:
		return ClassRelMain
	}
	return ClassRelFork
}

// ClassifyDir returns the class of a directory: ClassDir, ClassKeepEmpty or
// ClassSkip. pg_wal and the directories in it are ClassDir.
func ClassifyDir(path string) Class {
	top, rest, deep := strings.Cut(path, "/")
	_, name, _ := cutLast(path)
	switch {
	case !deep && emptyDirs[path]:
		return ClassKeepEmpty
	case path == "pg_wal/archive_status", path == "pg_wal/summaries":
		return ClassKeepEmpty
	case InOwnDir(path), deep && emptyDirs[top], strings.HasPrefix(name, "pgsql_tmp"), deep && inTempDir(rest):
		return ClassSkip
	}
	return ClassDir
}

// Unlogged is the set of the unlogged relations of a cluster, known by their
// init forks. Of such a relation only the init fork belongs into a copy; the
// server makes the others from it.
type Unlogged map[wal.RelFile]bool

// Note records the relation of an init fork; other paths change nothing.
func (u Unlogged) Note(path string) {
	if s, ok := ParseRelPath(path); ok && s.Fork == wal.ForkInit {
		s.RelFile.Fork = wal.ForkMain
		u[s.RelFile] = true
	}
}

// Omit tells whether the file is one that the server makes anew from an init
// fork.
func (u Unlogged) Omit(path string) bool {
	if len(u) == 0 {
		return false
	}
	s, ok := ParseRelPath(path)
	if !ok || s.Fork == wal.ForkInit {
		return false
	}
	s.RelFile.Fork = wal.ForkMain
	return u[s.RelFile]
}
