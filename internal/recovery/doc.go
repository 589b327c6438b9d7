// Package recovery restores a backup and replays WAL over it up to a point.
//
//	Resolve    which timeline, where exactly the target lies in the archived WAL,
//	           which backup leads there, is all WAL between them there
//	Restore    the backup's files through the block-copy engine, then the
//	           recovery settings, pg_control and the label that names the WAL
//	Replay     a private server replays, is watched, and its stop is proved
//	Fetch      what that server calls to get its WAL from the archive
//
// A target that the archive cannot lead to is refused before anything is
// written.
package recovery
