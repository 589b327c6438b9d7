package wal

import (
	"fmt"
	"strconv"
	"strings"
)

// Fork is one of the files that make up a relation (common/relpath.h).
type Fork uint8

// The forks, numbered as in block references.
const (
	ForkMain Fork = iota
	ForkFSM
	ForkVM
	ForkInit
)

// MaxFork is the highest fork number that the server knows.
const MaxFork = ForkInit

var forkNames = [...]string{"main", "fsm", "vm", "init"}

// String returns the server's name of the fork.
func (f Fork) String() string {
	if int(f) < len(forkNames) {
		return forkNames[f]
	}
	return "fork" + strconv.Itoa(int(f))
}

// ParseFork is the inverse of String.
func ParseFork(s string) (Fork, error) {
	for i, n := range forkNames {
		if s == n {
			return Fork(i), nil
		}
	}
	return 0, fmt.Errorf("unknown relation fork %q", s)
}

// MarshalText writes the fork's name.
func (f Fork) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (f *Fork) UnmarshalText(b []byte) (err error) {
	*f, err = ParseFork(string(b))
	return err
}

// RelFile names one fork of one relation as the log does: by the OIDs of its
// tablespace and database (0 for a shared relation) and by its file number
// (RelFileLocator, storage/relfilelocator.h; RelFileNode before 16).
type RelFile struct {
	Tablespace uint32
	Database   uint32
	Relation   uint32
	Fork       Fork
}

// String writes "1663/16384/16385", with "_fsm", "_vm" or "_init" for the other
// forks. This is a name, not a path: see package volume for paths.
func (r RelFile) String() string {
	s := fmt.Sprintf("%d/%d/%d", r.Tablespace, r.Database, r.Relation)
	if r.Fork != ForkMain {
		s += "_" + r.Fork.String()
	}
	return s
}

// ParseRelFile is the inverse of String.
func ParseRelFile(s string) (RelFile, error) {
	var r RelFile
	var err error
	body, fork, hasFork := strings.Cut(s, "_")
	if hasFork {
		r.Fork, err = ParseFork(fork)
	}
	parts := strings.Split(body, "/")
	if err != nil || len(parts) != 3 {
		return RelFile{}, fmt.Errorf("invalid relation file %q: want tablespace/database/relation", s)
	}
	for i, p := range []*uint32{&r.Tablespace, &r.Database, &r.Relation} {
		v, err := strconv.ParseUint(parts[i], 10, 32)
		if err != nil {
			return RelFile{}, fmt.Errorf("invalid relation file %q: %w", s, err)
		}
		*p = uint32(v)
	}
	if r.String() != s {
		return RelFile{}, fmt.Errorf("invalid relation file %q: not in its usual form", s)
	}
	return r, nil
}

// MarshalText writes the name as String does.
func (r RelFile) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (r *RelFile) UnmarshalText(b []byte) (err error) {
	*r, err = ParseRelFile(string(b))
	return err
}

// compare orders relation files by tablespace, database, relation and fork.
func (r RelFile) compare(o RelFile) int {
	for _, p := range [...][2]uint32{
		{r.Tablespace, o.Tablespace}, {r.Database, o.Database},
		{r.Relation, o.Relation}, {uint32(r.Fork), uint32(o.Fork)},
	} {
		if p[0] != p[1] {
			if p[0] < p[1] {
				return -1
			}
			return 1
		}
	}
	return 0
}
