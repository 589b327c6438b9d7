//go:build !linux

package postgres

import "syscall"

// detached gives the server a session of its own, so that a terminal's signals
// do not reach it. This system cannot tie it to its parent's end.
func detached(bool) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true}
}
