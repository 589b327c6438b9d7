package pgtest

import "syscall"

func dieWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// removeSharedMemory removes a System V segment, as a power failure does. One
// that a killed server leaves behind counts against the system's limit until
// the next server starts in its directory, which of a test's mostly never happens.
func removeSharedMemory(id int) {
	if id >= 0 {
		const ipcRmid = 0
		syscall.Syscall(syscall.SYS_SHMCTL, uintptr(id), ipcRmid, 0)
	}
}
