package recovery

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"tidemark/internal/progress"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// replayProgress tells how far a replay has come. It needs no session: the
// startup process shows the segment it is in as its title, and pg_control
// follows at each restartpoint.
type replayProgress struct {
	reporter progress.Reporter
	size     wal.SegmentSize
	at       wal.LSN
	end      wal.LSN
}

func newReplayProgress(reporter progress.Reporter, record *Record, c *volume.Control) *replayProgress {
	p := &replayProgress{reporter: reporter, size: c.XLogSegSize, at: c.CheckPointCopy.Redo}
	total := int64(0)
	if record != nil && record.Resolution != nil {
		p.at = max(record.Resolution.From, c.CheckPointCopy.Redo)
		p.end = record.Resolution.To
		total = max(0, int64(p.end)-int64(p.at))
	}
	reporter.Phase("replaying", total, progress.Bytes)
	return p
}

func (p *replayProgress) update(c *volume.Control, pid int) {
	at := max(p.at, c.CheckPointCopy.Redo)
	if pid > 0 {
		at = max(at, replayingSegment(pid, p.size))
	}
	if p.end != 0 {
		at = min(at, p.end)
	}
	if at > p.at {
		p.reporter.Add(int64(at - p.at))
		p.at = at
	}
}

var recoveringTitle = regexp.MustCompile(`recovering ([0-9A-F]{24})`)

// replayingSegment returns the start of the segment that a server replays, 0
// where that cannot be seen.
func replayingSegment(pid int, size wal.SegmentSize) wal.LSN {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0
	}
	for child := range strings.FieldsSeq(string(children)) {
		title, err := os.ReadFile(filepath.Join("/proc", child, "cmdline"))
		if err != nil {
			continue
		}
		m := recoveringTitle.FindSubmatch(title)
		if m == nil {
			continue
		}
		if f, ok := wal.ParseFileName(string(m[1])); ok {
			if n, ok := f.Number(size); ok {
				return size.Start(n)
			}
		}
	}
	return 0
}
