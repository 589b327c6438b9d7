// Package replication makes standbys and looks after their stream of WAL: what
// dbrepl does, without its command line.
//
// A seed copies a running server in two phases and can be cut off anywhere:
//
//	slot, checkpoint      the slot holds back WAL from the checkpoint's redo point on
//	tombstone             the directory refuses to start from here on
//	WAL --> pg_wal        the receiver streams, syncs and only then lets the slot move on
//	files --> directory   read at any moment after the redo point; template databases first
//	end                   the source's position after the last byte was durable
//	proof                 the received WAL is read from redo point to end: is replaying it enough?
//	pg_control, label     written last; the standby replays from redo point to end
//
// Run again after a crash, it goes on: received WAL is kept, durable files are
// not copied again. Where that cannot be right any more (the slot was lost, a
// database was copied by CREATE DATABASE in a way that replay would not repeat,
// a tablespace came into being) it starts again from a later checkpoint.
package replication
