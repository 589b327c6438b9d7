package wal

// The operations of the resource managers that this package knows, as the upper
// four bits of xl_info. Part of the format.
const (
	// catalog/pg_control.h
	xlogCheckpointShutdown  = 0x00
	xlogCheckpointOnline    = 0x10
	xlogSwitch              = 0x40
	xlogBackupEnd           = 0x50
	xlogParameterChange     = 0x60
	xlogRestorePoint        = 0x70
	xlogFPWChange           = 0x80
	xlogEndOfRecovery       = 0x90
	xlogFPIForHint          = 0xA0
	xlogFPI                 = 0xB0
	xlogOverwriteContrecord = 0xD0
	xlogCheckpointRedo      = 0xE0 // 17+

	// access/xact.h; the top bit says that an xinfo word follows the time.
	xactOpMask         = 0x70
	xactCommit         = 0x00
	xactPrepare        = 0x10
	xactAbort          = 0x20
	xactCommitPrepared = 0x30
	xactAbortPrepared  = 0x40
	xactHasInfo        = 0x80

	// catalog/storage_xlog.h
	smgrCreate   = 0x10
	smgrTruncate = 0x20

	// commands/dbcommands_xlog.h; the others differ by version, see Format.
	dbaseCreateCopy = 0x00

	// commands/tablespace.h
	tblspcCreate = 0x00
	tblspcDrop   = 0x10

	// utils/relmapper.h
	relmapUpdate = 0x00
)
