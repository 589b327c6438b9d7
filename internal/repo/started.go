package repo

import (
	"bytes"
	"context"
	"errors"
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
func (s *Started) Dead() bool {
	host, err := os.Hostname()
	if err != nil || host != s.Host || s.Boot == "" || s.PID <= 0 {
		return false
	}
	boot := bootID()
	if boot == "" {
		return false
	}
	return boot != s.Boot || processTick(s.PID) != s.Tick
}

// RemoveInterrupted removes what backups left that were interrupted on this
// host. Those that are running, or that began on another host, stay. It
// returns the identifiers of the removed ones.
func (c *Cluster) RemoveInterrupted(ctx context.Context) ([]string, error) {
	manifests, started, err := c.listBackups(ctx)
	if err != nil {
		return nil, err
	}
	var removed []string
	for id := range started {
		if manifests[id] {
			continue
		}
		s, err := c.readStarted(ctx, id)
		if errors.Is(err, ErrNotExist) {
			continue
		}
		if err != nil {
			return removed, err
		}
		if !s.Dead() {
			continue
		}
		err = c.removeUnfinished(ctx, id)
		if errors.Is(err, ErrLocked) {
			continue // a later run can
		}
		if err != nil {
			return removed, err
		}
		removed = append(removed, id)
	}
	return removed, nil
}
