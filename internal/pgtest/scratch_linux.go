package pgtest

import (
	"os"
	"strconv"
	"strings"
	"syscall"
)

// What a file system in memory must have for the tests' servers to live there:
// this much room, and as much memory again for the processes.
const (
	inMemory   = "/dev/shm"
	memoryRoom = 6 << 30 // bytes
	noExec     = 8       // ST_NOEXEC of statvfs(3): the commands under test lie there too
)

// memoryDir returns the directory of a file system in memory with enough room,
// or "". Test clusters are about a thousand files each that live for seconds:
// ext4, which does not use the inode of a deleted file again for a while, then
// spends most of the machine's time looking for a free one.
func memoryDir() string {
	var st syscall.Statfs_t
	if err := syscall.Statfs(inMemory, &st); err != nil || st.Flags&noExec != 0 {
		return ""
	}
	if int64(st.Bavail)*int64(st.Bsize) < memoryRoom || memoryLeft() < 2*memoryRoom {
		return ""
	}
	return inMemory
}

// memoryLeft is how many bytes of memory this process's group may still take,
// as far as the kernel tells.
func memoryLeft() int64 {
	var left int64
	b, _ := os.ReadFile("/proc/meminfo")
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "MemAvailable:" {
			kB, _ := strconv.ParseInt(f[1], 10, 64)
			left = kB << 10
		}
	}
	for _, limit := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		b, _ := os.ReadFile(limit)
		if max, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil {
			left = min(left, max)
		}
	}
	return left
}
