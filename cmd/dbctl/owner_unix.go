package main

import (
	"io/fs"
	"syscall"
)

// ownerID returns the uid of a file.
func ownerID(info fs.FileInfo) uint32 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Uid
	}
	return 0
}
