// Package wal reads the write-ahead log of PostgreSQL 13 to 18.
package wal
