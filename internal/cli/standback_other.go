//go:build !linux

package cli

import "golang.org/x/sys/unix"

// standBack gives the process a nice value.
func standBack(nice int) error { return unix.Setpriority(unix.PRIO_PROCESS, 0, nice) }
