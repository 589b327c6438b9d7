package postgres

import "syscall"

// detached gives the server a session of its own, so that a terminal's signals
// do not reach it.
func detached(dieWithParent bool) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setsid: true}
	if dieWithParent {
		attr.Pdeathsig = syscall.SIGQUIT
	}
	return attr
}
