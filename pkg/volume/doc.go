// Package volume knows what lies in a PostgreSQL data directory: the control
// file, the names of relation files, pages and their checksums, which file is
// what in a copy, the labels that tell a server how to start from a copy, and
// PostgreSQL's own backup manifest. It writes durably, and only through the
// FS interface, so that tests can make every single operation fail.
//
// The formats are drawn where they are read: control.go, page.go, checksum.go,
// relpath.go, label.go, manifest.go, tombstone.go.
//
// All of it is little-endian, as the machines are that the servers run on; the
// control file of another byte order is refused with ErrByteOrder.
package volume
