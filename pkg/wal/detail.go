package wal

import "time"

// Detail is what Decode makes of a record. It is one of the pointer types
// Checkpoint, CheckpointRedo, EndOfRecovery, ParameterChange, FullPageWrites,
// RestorePoint, BackupEnd, Switch, OverwriteContrecord, Commit, Abort, Prepare,
// RelationCreate, RelationTruncate, DatabaseCreate, DatabaseDrop,
// TablespaceCreate, TablespaceDrop and RelationMapUpdate.
type Detail interface{ detail() }

// WALLevel is the setting wal_level as records carry it.
type WALLevel int32

// The levels (access/xlog.h).
const (
	WALLevelMinimal WALLevel = iota
	WALLevelReplica
	WALLevelLogical
)

// String returns the setting's value.
func (l WALLevel) String() string {
	switch l {
	case WALLevelMinimal:
		return "minimal"
	case WALLevelReplica:
		return "replica"
	case WALLevelLogical:
		return "logical"
	}
	return "unknown"
}

// Checkpoint is an XLOG_CHECKPOINT_SHUTDOWN or XLOG_CHECKPOINT_ONLINE record
// (CheckPoint, catalog/pg_control.h).
type Checkpoint struct {
	Shutdown            bool
	Redo                LSN
	Timeline            TimelineID
	PrevTimeline        TimelineID // differs from Timeline when a timeline begins here
	FullPageWrites      bool
	WALLevel            WALLevel // 17+
	HasWALLevel         bool     // whether this version records it
	NextXID             uint64   // with the epoch in the upper half
	NextOID             uint32
	NextMulti           uint32
	NextMultiOffset     uint32
	OldestXID           uint32
	OldestXIDDatabase   uint32
	OldestMulti         uint32
	OldestMultiDatabase uint32
	Time                time.Time // to the second
	OldestCommitTsXID   uint32
	NewestCommitTsXID   uint32
	OldestActiveXID     uint32
}

// CheckpointRedo is an XLOG_CHECKPOINT_REDO record (17+): its position is the
// redo point of the online checkpoint that follows.
type CheckpointRedo struct{ WALLevel WALLevel }

// EndOfRecovery is written instead of a checkpoint at the end of recovery, and
// is where a new timeline begins.
type EndOfRecovery struct {
	Time         time.Time
	Timeline     TimelineID
	PrevTimeline TimelineID
	WALLevel     WALLevel // 17+
	HasWALLevel  bool
}

// ParameterChange tells standbys settings that they depend on.
type ParameterChange struct {
	MaxConnections       int32
	MaxWorkerProcesses   int32
	MaxWALSenders        int32
	MaxPreparedXacts     int32
	MaxLocksPerXact      int32
	WALLevel             WALLevel
	WALLogHints          bool
	TrackCommitTimestamp bool
}

// FullPageWrites says that the setting full_page_writes changed.
type FullPageWrites struct{ On bool }

// RestorePoint is what pg_create_restore_point writes.
type RestorePoint struct {
	Time time.Time
	Name string
}

// BackupEnd ends an online backup that began at Start.
type BackupEnd struct{ Start LSN }

// Switch ends a segment early: the next record begins in the next one.
type Switch struct{}

// OverwriteContrecord stands where the rest of a record would have been that a
// crash cut off at Overwritten.
type OverwriteContrecord struct {
	Overwritten LSN
	Time        time.Time
}

// Commit is a transaction's commit, of a prepared one too.
type Commit struct {
	XID             uint32 // of the top transaction (for a prepared one its own)
	Time            time.Time
	Prepared        bool   // COMMIT PREPARED
	GID             string // its identifier; only at wal_level = logical
	Database        uint32 // where the record says it
	Tablespace      uint32
	Subtransactions []uint32
	Dropped         []RelFile // relations whose files are removed; all forks go
	Origin          uint16
	OriginLSN       LSN
	OriginTime      time.Time
	XInfo           uint32 // the raw xinfo bits (access/xact.h)
}

// Abort is a transaction's abort, of a prepared one too. Dropped lists the
// files that it had created.
type Abort struct {
	XID             uint32
	Time            time.Time
	Prepared        bool
	GID             string
	Database        uint32
	Tablespace      uint32
	Subtransactions []uint32
	Dropped         []RelFile
	Origin          uint16
	OriginLSN       LSN
	OriginTime      time.Time
	XInfo           uint32
}

// Prepare is the first half of a two-phase commit.
type Prepare struct {
	XID             uint32
	GID             string
	Time            time.Time
	Database        uint32
	Owner           uint32
	Subtransactions []uint32
	CommitDrops     []RelFile // removed if it commits
	AbortDrops      []RelFile // removed if it aborts
}

// RelationCreate makes the file of one fork.
type RelationCreate struct{ File RelFile }

// Forks that a RelationTruncate shortens (SMGR_TRUNCATE_..., catalog/storage_xlog.h).
const (
	TruncateHeap = 0x01
	TruncateVM   = 0x02
	TruncateFSM  = 0x04
)

// RelationTruncate shortens a relation to Blocks blocks of its main fork; the
// visibility and free space maps shrink with it as Flags say.
type RelationTruncate struct {
	File   RelFile // its main fork
	Blocks uint32
	Flags  uint32
}

// DatabaseCreate makes a database directory in a tablespace.
type DatabaseCreate struct {
	Database   uint32
	Tablespace uint32
	// FileCopy: the template's files are copied outside the log (always so in
	// 13 and 14). Otherwise every block is logged (STRATEGY WAL_LOG).
	FileCopy         bool
	SourceDatabase   uint32 // with FileCopy
	SourceTablespace uint32 // with FileCopy
}

// DatabaseDrop removes a database's directories.
type DatabaseDrop struct {
	Database    uint32
	Tablespaces []uint32
}

// TablespaceCreate makes a tablespace; Path is the server's location for it,
// empty for one in place.
type TablespaceCreate struct {
	Tablespace uint32
	Path       string
}

// TablespaceDrop removes a tablespace.
type TablespaceDrop struct{ Tablespace uint32 }

// RelationMapUpdate writes a pg_filenode.map anew; Database is 0 for the shared one.
type RelationMapUpdate struct {
	Database   uint32
	Tablespace uint32
	Data       []byte
}

func (*Checkpoint) detail()          {}
func (*CheckpointRedo) detail()      {}
func (*EndOfRecovery) detail()       {}
func (*ParameterChange) detail()     {}
func (*FullPageWrites) detail()      {}
func (*RestorePoint) detail()        {}
func (*BackupEnd) detail()           {}
func (*Switch) detail()              {}
func (*OverwriteContrecord) detail() {}
func (*Commit) detail()              {}
func (*Abort) detail()               {}
func (*Prepare) detail()             {}
func (*RelationCreate) detail()      {}
func (*RelationTruncate) detail()    {}
func (*DatabaseCreate) detail()      {}
func (*DatabaseDrop) detail()        {}
func (*TablespaceCreate) detail()    {}
func (*TablespaceDrop) detail()      {}
func (*RelationMapUpdate) detail()   {}
