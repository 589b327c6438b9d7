package repo

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"time"
)

// newStarted describes this process.
func newStarted(tool string, began time.Time) Started {
	host, _ := os.Hostname() // unknown stays empty: then no sweep believes itself on this host
	return Started{Tool: tool, Host: host, PID: os.Getpid(), Boot: bootID(), Tick: processTick(os.Getpid()), Began: began}
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(b))
}

// processTick is when a process began: with it, a process number that was used
// again is not taken for the old process.
func processTick(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	_, rest, ok := strings.Cut(string(b[bytes.LastIndexByte(b, ')')+1:]), " ")
	fields := strings.Fields(rest)
	const starttime = 22 - 3 // of proc(5), after the name
	if !ok || len(fields) <= starttime {
		return ""
	}
	return fields[starttime]
}

// Dead reports whether the process that began the backup is provably gone:
// it ran on this host, and the host was started anew or has no such process.
// One that was stopped said so itself.
func (s *Started) Dead() bool {
	if s.stopped {
		return true
	}
	boot, known := s.here()
	return known && (boot != s.Boot || processTick(s.PID) != s.Tick)
}

// alive reports whether that process is provably at work.
func (s *Started) alive() bool {
	_, known := s.here()
	return known && !s.Dead()
}

// here returns this host's boot id if the backup was begun on this host.
func (s *Started) here() (boot string, known bool) {
	host, err := os.Hostname()
	if err != nil || host != s.Host || s.Boot == "" || s.PID <= 0 {
		return "", false
	}
	boot = bootID()
	return boot, boot != ""
}
