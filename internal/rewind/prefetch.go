package rewind

import (
	"os"
	"path/filepath"
	"sync"

	"tidemark/pkg/wal"
)

// maxAhead is how many segments are fetched before they are asked for.
const maxAhead = 8

// prefetch says where reading goes, so that segments that have to be fetched
// are under way before the reader comes to them. The walk back from the fork
// may end at any record, so its window grows with what it had to wait for; the
// scan up to the target's end needs everything up to there.
type prefetch struct {
	mu        sync.Mutex
	step      int // -1, 1; 0: it is not known where reading goes
	low, high wal.SegmentNumber
	window    int
}

// readingBack announces the walk back from a segment.
func (t *targetWAL) readingBack(from wal.SegmentNumber) {
	t.ahead.set(-1, 1, from, 1)
}

// readingOn announces a scan of the segments from low to high.
func (t *targetWAL) readingOn(low, high wal.SegmentNumber) {
	t.ahead.set(1, low, high, maxAhead)
}

func (p *prefetch) set(step int, low, high wal.SegmentNumber, window int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.step, p.low, p.high, p.window = step, low, high, window
}

// next returns the segments to fetch beside n, which is not at hand.
func (p *prefetch) next(n wal.SegmentNumber) []wal.SegmentNumber {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []wal.SegmentNumber
	for i := 1; i <= p.window && p.step != 0; i++ {
		m := int64(n) + int64(i*p.step)
		if m < int64(p.low) || m > int64(p.high) {
			break
		}
		list = append(list, wal.SegmentNumber(m))
	}
	p.window = min(2*p.window, maxAhead)
	return list
}

// fetchAhead starts to fetch n, which is not in pg_wal, and those that reading
// will come to after it.
func (t *targetWAL) fetchAhead(n wal.SegmentNumber) {
	if t.search == nil || len(t.search.places) == 0 {
		return
	}
	for _, m := range append([]wal.SegmentNumber{n}, t.ahead.next(n)...) {
		names := candidates(t.history, t.size, m)
		if len(names) == 0 || !t.unequivocal(m, names[0]) || t.atHand(names) {
			continue
		}
		t.search.start(names[0])
	}
}

func (t *targetWAL) atHand(names []string) bool {
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(t.target, "pg_wal", name)); err == nil {
			return true
		}
	}
	return false
}
