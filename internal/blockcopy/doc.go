// Package blockcopy is the one engine that moves blocks into a data
// directory. Every job of the toolkit is a choice of blocks: all of them to
// seed a standby, those that its own WAL changed to rewind an old primary,
// those whose hash differs to restore over what is there. A chooser turns the
// choice into a Plan; this package carries it out:
//
//	            Plan (data, JSON; --dry-run prints it)
//	              |
//	Source --> fetch --> write --> journal --> finish
//	(directory,  (ranges   (volume.FS, (what is   (pg_control, then the valid
//	 server,      over jobs) fsync)     durable)   backup_label over the tombstone)
//	 repository)
//
// Three parts can be used alone: Fetch reads ranges from a Source with
// several workers (a backup packer needs no more), DirSource is the source
// for a local directory, and Pending tells whether a data directory holds an
// unfinished run.
//
// What is on disk at each moment, and what a crash there leaves, is written
// at the top of run.go.
package blockcopy
