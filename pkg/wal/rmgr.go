package wal

import "strconv"

// RMID is the number of a resource manager: the part of the server that wrote
// a record and can replay it (access/rmgrlist.h).
type RMID uint8

// The built-in resource managers. Their numbers are part of the format.
const (
	RmXLOG RMID = iota
	RmTransaction
	RmStorage
	RmCLOG
	RmDatabase
	RmTablespace
	RmMultiXact
	RmRelMap
	RmStandby
	RmHeap2
	RmHeap
	RmBtree
	RmHash
	RmGin
	RmGist
	RmSequence
	RmSPGist
	RmBRIN
	RmCommitTs
	RmReplicationOrigin
	RmGeneric
	RmLogicalMessage

	// RmMaxBuiltin is the highest number of a built-in resource manager in 13 to 18.
	RmMaxBuiltin = RmLogicalMessage
	// RmMinCustom is the lowest number that an extension may take (15+).
	RmMinCustom RMID = 128
)

var rmgrNames = [...]string{
	"XLOG", "Transaction", "Storage", "CLOG", "Database", "Tablespace", "MultiXact", "RelMap", "Standby", "Heap2", "Heap",
	"Btree", "Hash", "Gin", "Gist", "Sequence", "SPGist", "BRIN", "CommitTs", "ReplicationOrigin", "Generic", "LogicalMessage",
}

// String returns the name that pg_waldump prints; an extension's manager, whose
// name only its own server knows, is "custom128".
func (id RMID) String() string {
	if int(id) < len(rmgrNames) {
		return rmgrNames[id]
	}
	if id >= RmMinCustom {
		return "custom" + strconv.Itoa(int(id))
	}
	return "unknown" + strconv.Itoa(int(id))
}

// Custom reports whether the number belongs to extensions.
func (id RMID) Custom() bool { return id >= RmMinCustom }

// validRmgr reports whether a server of this version can have written id.
func (f *Format) validRmgr(id RMID) bool {
	return id <= RmMaxBuiltin || f.customRmgrs && id.Custom()
}
