// Package backup takes online backups of a running cluster, into a repository
// or a plain directory, and archives its WAL.
//
// There is one mechanism for all of it, the fuzzy copy: blocks are read while
// the server changes them, and replay of the WAL from a checkpoint before the
// first read to a position after the last one makes them consistent.
//
//	anchor    a temporary physical slot holds back the WAL from here on
//	start     CHECKPOINT; its redo point is where replay will begin
//	copy      every file, in any order; pages checked on the way
//	stop      the position up to which replay makes the copy consistent
//	wal       every segment from start to stop is durable in the repository
//	guard     that WAL is searched for what a fuzzy copy does not survive
//	commit    the manifest, or the valid backup_label, appears
//
// The copy carries a label of its own (BACKUP METHOD: pg_rewind, BACKUP FROM:
// standby) and a pg_control whose minRecoveryPoint is the stop position. The
// server's own pg_backup_start is not used: its end-of-backup record belongs to
// one session, so such a backup dies with its connection and cannot be taken up
// by another; and with this label a primary, a standby, a repository and a
// plain directory need no second mechanism. What pg_backup_start adds, full
// page images while it runs, is checked instead: full_page_writes has to be on
// from the starting checkpoint to the stop position.
package backup
