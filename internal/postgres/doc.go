// Package postgres is the server core seen from outside: where its binaries
// lie, how a server is started, stopped and promoted, SQL sessions on it, and
// the physical replication protocol.
//
// Nothing here interprets the contents of a data directory (that is
// pkg/volume's work) or of WAL (pkg/wal). What talks to a server does so with
// the least it needs: pg_ls_dir, pg_stat_file and pg_read_binary_file for
// files, the replication protocol for WAL.
package postgres
