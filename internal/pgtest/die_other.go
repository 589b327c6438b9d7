//go:build !linux

package pgtest

import "syscall"

func dieWithUs() *syscall.SysProcAttr { return nil }

func removeSharedMemory(int) {}
