package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// WALDir finds the segments of one line of descent in a directory such as
// pg_wal. It is a wal.Source.
type WALDir struct {
	Dir     string
	Size    wal.SegmentSize
	History *timeline.History
}

// OpenSegment opens the file of the newest timeline of the line that has the
// segment: at a switch the server copies the shared beginning.
func (d WALDir) OpenSegment(_ context.Context, n wal.SegmentNumber) (wal.Segment, error) {
	spans := d.History.Spans()
	for i := len(spans) - 1; i >= 0; i-- {
		if n < d.Size.Number(spans[i].Begin) {
			continue
		}
		f, err := os.Open(filepath.Join(d.Dir, wal.SegmentName(spans[i].Timeline, n, d.Size)))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return f, nil
	}
	return nil, fmt.Errorf("segment %s: %w", wal.SegmentName(d.History.Timeline, n, d.Size), wal.ErrNoSegment)
}

// ReadHistory reads the history of a timeline from a directory such as pg_wal.
// Only timeline 1 may lack its file.
func ReadHistory(fsys volume.FS, dir string, id timeline.ID) (*timeline.History, error) {
	if id <= 1 {
		return timeline.Root(id), nil
	}
	data, err := volume.ReadFile(fsys, filepath.Join(dir, wal.HistoryName(id)), 0)
	if err != nil {
		return nil, fmt.Errorf("the history of timeline %d: %w", id, err)
	}
	return timeline.Parse(id, data)
}
