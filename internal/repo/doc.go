// Package repo is the backup repository: backups, the packs of blocks they are
// made of, and the WAL that makes them consistent, for any number of clusters.
//
//	repository.json                                   what this is, its format version
//	<system identifier>/
//	    backups/<id>/started                          someone began this backup
//	    backups/<id>/manifest.zst                     the backup exists
//	    packs/<id>/<number>.zst                       blocks that this backup stored first
//	    wal/<timeline>/<file name>.zst                segments, .partial, .history, .backup
//
// Only immutable objects under write-once names: no two writers can damage a
// shared file, because there is none. A backup exists when its manifest does.
// The manifest says of every block of the cluster in which pack it lies, so a
// restore never follows a chain, and any backup can be deleted at any time:
// packs that no manifest names are swept.
//
// Blocks are hashed. One that equals the previous backup's at the same place
// is referenced and not stored again; one that is all zero takes no space. The
// rest is compressed in frames of a few hundred blocks, and frames are
// gathered in packs.
//
// All objects have one format (object.go); docs/formats/repository.md
// describes it byte by byte. Stores are reached through Driver.
package repo
