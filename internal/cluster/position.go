package cluster

import (
	"cmp"
	"fmt"

	"tidemark/pkg/timeline"
	"tidemark/pkg/wal"
)

// Position is a place in the WAL of one cluster.
type Position struct {
	Timeline timeline.ID `json:"timeline"`
	LSN      wal.LSN     `json:"lsn"`
}

// String returns "0/3000148 on timeline 2".
func (p Position) String() string { return fmt.Sprintf("%s on timeline %d", p.LSN, p.Timeline) }

// IsZero tells whether the position is not known.
func (p Position) IsZero() bool { return p.LSN == 0 }

// Compare orders positions as a cluster lives through them: a later timeline
// is ahead, whatever the LSNs are, for it began with somebody's promotion.
func (p Position) Compare(q Position) int {
	if d := cmp.Compare(p.Timeline, q.Timeline); d != 0 {
		return d
	}
	return cmp.Compare(p.LSN, q.LSN)
}

// behind returns how many bytes p lacks of what q has, 0 where it is not behind.
func behind(p, q wal.LSN) int64 {
	if q <= p {
		return 0
	}
	return int64(q - p)
}
