package recovery

import (
	"errors"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"time"

	"tidemark/pkg/wal"
)

// serverLog is what the private server said about its recovery. It runs with
// lc_messages = C.
type serverLog struct {
	stop       string    // the line that says at what it stopped
	redoneTo   wal.LSN   // end of the last record replayed
	lastCommit time.Time // end of the last transaction replayed
	paused     bool
	settings   bool   // hot standby is not possible with these settings
	endedEarly bool   // FATAL: the WAL ended before the target
	fatal      string // the first FATAL or PANIC of the startup process
	tail       string
}

// The server's words (access/xlogrecovery.c), the same in 13 to 18.
const (
	saysStopping = "recovery stopping "
	saysPaused   = "recovery has paused"
	saysPausing  = "pausing at the end of recovery"
	saysEarly    = "recovery ended before configured recovery target was reached"
	saysSettings = "hot standby is not possible because of insufficient parameter settings"
	saysRedone   = "redo done at "
	saysLast     = "last completed transaction was at log time "
)

var (
	fatalLine = regexp.MustCompile(`(FATAL|PANIC):  (.*)$`)
	zoneless  = "2006-01-02 15:04:05.999999"
)

func readServerLog(name string) (*serverLog, error) {
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return &serverLog{}, nil
	}
	if err != nil {
		return nil, err
	}
	return parseServerLog(string(data)), nil
}

func parseServerLog(text string) *serverLog {
	l := &serverLog{}
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for _, line := range lines {
		switch {
		case strings.Contains(line, saysStopping):
			l.stop = line[strings.Index(line, saysStopping):]
		case strings.Contains(line, saysPaused), strings.Contains(line, saysPausing):
			l.paused = true
		case strings.Contains(line, saysRedone):
			word, _, _ := strings.Cut(line[strings.Index(line, saysRedone)+len(saysRedone):], " ")
			if lsn, err := wal.ParseLSN(word); err == nil {
				l.redoneTo = lsn
			}
		case strings.Contains(line, saysLast):
			l.lastCommit = serverTime(line[strings.Index(line, saysLast)+len(saysLast):])
		}
		l.settings = l.settings || strings.Contains(line, saysSettings)
		if strings.Contains(line, saysEarly) {
			l.endedEarly = true
		}
		if m := fatalLine.FindStringSubmatch(line); m != nil && l.fatal == "" && m[2] != "the database system is starting up" {
			l.fatal = m[2]
		}
	}
	l.tail = strings.Join(lines[max(0, len(lines)-12):], "\n")
	return l
}

// serverTime reads a time in the server's log, whose zone is the server's: an
// offset, or a name that only UTC can be known by.
func serverTime(s string) time.Time {
	for _, form := range []string{zoneless + "-07", zoneless + "-07:00", zoneless + " UTC"} {
		if t, err := time.Parse(form, strings.TrimSpace(s)); err == nil {
			return t.UTC()
		}
	}
	return time.Time{}
}
