package cli

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// standBack gives every thread of the process a nice value, which on Linux
// each has its own of; a new one has that of the thread that makes it. The
// priority of what they read and write follows from it.
//
// Where the kernel groups processes by session (sched(7), autogroup) nice
// values count inside of a session only, and the server has another one. So
// the group's own is set besides, if the session is this command's: started by
// cron, a systemd unit or setsid. Another's session is left alone.
func standBack(nice int) error {
	done := map[int]bool{}
	for more := true; more; {
		more = false
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, t := range tasks {
			tid, err := strconv.Atoi(t.Name())
			if err != nil || done[tid] {
				continue
			}
			if err := niceThread(tid, nice); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("setpriority: %w", err)
			}
			done[tid], more = true, true
		}
	}
	if sid, err := unix.Getsid(0); err != nil || sid != os.Getpid() {
		return err
	}
	return niceSession(nice)
}

func niceThread(tid, nice int) error {
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, tid) // 20 less the nice value
	if err != nil || 20-raw >= nice {
		return err
	}
	return unix.Setpriority(unix.PRIO_PROCESS, tid, nice)
}

func niceSession(nice int) error {
	const path = "/proc/self/autogroup" // "/autogroup-123 nice 0"
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(bytes.TrimSpace(text)) == 0 {
		return nil // not grouped
	}
	if err != nil {
		return err
	}
	if _, after, ok := bytes.Cut(text, []byte(" nice ")); ok {
		if now, err := strconv.Atoi(string(bytes.TrimSpace(after))); err == nil && now >= nice {
			return nil
		}
	}
	// The kernel takes one such change in a tenth of a second, from all together.
	for range 5 {
		if err = os.WriteFile(path, strconv.AppendInt(nil, int64(nice), 10), 0); !errors.Is(err, unix.EAGAIN) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}
