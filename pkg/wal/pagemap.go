package wal

import (
	"context"
	"errors"
	"iter"
)

// NoLimit is the Limit of a relation file that was not truncated.
const NoLimit = ^uint32(0)

// Map says which blocks a range of the log changes, by relation file, and what
// it does to whole files and directories. Memory grows with the map, not with
// the log.
type Map struct {
	Databases    []DatabaseEvent    // in log order
	Tablespaces  []TablespaceEvent  // in log order
	RelationMaps []RelationMapEvent // one per map file, its last update
	Unknown      []UnknownChange    // records that change files in a way this package does not know
	Settings     []SettingEvent     // changes of full_page_writes and wal_level, in log order

	Records uint64 // whole records read
	Bytes   uint64 // their xl_tot_len in sum
	Refs    uint64 // block references
	Images  uint64 // of which with a page image
	Start   LSN    // first record
	End     LSN    // end of the last record
	Last    LSN    // start of the last record; 0 if there was none
}

// FileChange is what the log does to one relation file.
type FileChange struct {
	File RelFile
	// Limit is the smallest length, in blocks, that the file was truncated to
	// (0 when it was created or dropped), or NoLimit. Every block from Limit on
	// counts as changed, marked or not: extension after a truncation may not be
	// logged.
	Limit     uint32
	Truncated LSN // last truncation record; 0 for none
	Created   LSN // last creation record; 0 for none
	Dropped   LSN // last record that drops it (commit, abort); 0 for none
	Blocks    *BlockSet
}

// BlockSet is a set of block numbers.
type BlockSet struct{}

// Contains reports whether the block is in the set. All methods work on a nil set.
func (s *BlockSet) Contains(block uint32) bool { return false }

// Len returns the number of blocks.
func (s *BlockSet) Len() int { return 0 }

// Ranges yields the runs of consecutive blocks in ascending order: the first
// block and how many.
func (s *BlockSet) Ranges() iter.Seq2[uint32, uint32] { return nil }

// DatabaseEvent is a database created (Create) or dropped (Drop) at LSN.
type DatabaseEvent struct {
	LSN    LSN
	Create *DatabaseCreate
	Drop   *DatabaseDrop
}

// TablespaceEvent is a tablespace created or dropped at LSN.
type TablespaceEvent struct {
	LSN    LSN
	Create *TablespaceCreate
	Drop   *TablespaceDrop
}

// RelationMapEvent says that the pg_filenode.map of a database (0: the shared
// one) was written at LSN.
type RelationMapEvent struct {
	LSN                  LSN
	Database, Tablespace uint32
}

// UnknownChange is a record that marks an unlogged change of relation files
// (XLR_SPECIAL_REL_UPDATE) and whose meaning is not known. A map with one of
// these does not tell everything.
type UnknownChange struct {
	LSN  LSN
	RMID RMID
	Info uint8
}

// SettingEvent is a record that changes a setting on which copying relies.
// Exactly one field is set.
type SettingEvent struct {
	LSN            LSN
	FullPageWrites *FullPageWrites
	Parameters     *ParameterChange
}

// Files yields every changed relation file in order of its name.
func (m *Map) Files() iter.Seq[*FileChange] { return nil }

// Lookup returns what happens to the file, or nil.
func (m *Map) Lookup(f RelFile) *FileChange { return nil }

// ScanOptions tell ScanMap how to work.
type ScanOptions struct {
	Options
	// Workers is the number of goroutines; 0 means GOMAXPROCS.
	Workers int
	// Progress, when set, is told how many bytes of log more have been read.
	Progress func(bytes int64)
}

// ScanMap reads the log from Options.Start and returns its map. end is what a
// Reader's End would be: nil at Options.End, otherwise *EndOfLog, *TornTail or
// *Corruption; the map then covers everything before it. err is an error of the
// source, of ctx or of the options.
func ScanMap(ctx context.Context, src Source, opt ScanOptions) (m *Map, end error, err error) {
	return nil, nil, errors.New("not implemented")
}
