package backup

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"tidemark/internal/repo"
	"tidemark/pkg/wal"
)

// The server calls its archive_command for one segment at a time and waits. A
// push that finds more segments waiting therefore archives the next ones as
// well, in parallel, and the calls for those find them there and only compare.
// Nothing is remembered between calls, and nothing lies anywhere but in the
// repository and in the server's pg_wal: a segment whose read-ahead failed or
// was cut off is simply pushed when the server calls for it.
const (
	// DefaultAhead is how many waiting segments a push takes along.
	DefaultAhead = 15
	// aheadTime is how long a push goes on to begin further ones: the server
	// waits, and a fast shutdown waits for it.
	aheadTime = 3 * time.Second
	// aheadFiles is how many are on their way at once: while one waits for the
	// disk others are compressed.
	aheadFiles = 4
)

// waiting lists the segments that the server wants archived after the one
// named, the next ones first: at most n, of the same timeline.
func waiting(walDir, after string, n int) []string {
	first, ok := wal.ParseFileName(after)
	if !ok || first.Kind != wal.FileSegment || n <= 0 {
		return nil
	}
	entries, err := os.ReadDir(filepath.Join(walDir, "archive_status"))
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries { // in order of their names
		name, ready := strings.CutSuffix(e.Name(), ".ready")
		f, ok := wal.ParseFileName(name)
		if ready && ok && f.Kind == wal.FileSegment && f.Timeline == first.Timeline && name > after {
			names = append(names, name)
		}
	}
	return names[:min(n, len(names))]
}

// pushAhead archives segments that wait and returns how many it archived.
// What fails is left to its own call, where it is reported.
func pushAhead(ctx context.Context, c *repo.Cluster, walDir string, names []string) int {
	var done atomic.Int64
	begin := time.Now()
	var g errgroup.Group
	g.SetLimit(aheadFiles)
	for _, name := range slices.Clip(names) {
		g.Go(func() error {
			if ctx.Err() != nil || time.Since(begin) > aheadTime {
				return nil
			}
			f, err := os.Open(filepath.Join(walDir, name))
			if err != nil {
				return nil
			}
			defer f.Close()
			st, err := f.Stat()
			if err != nil || !st.Mode().IsRegular() {
				return nil
			}
			if push, err := c.PushWAL(ctx, name, f, st.Size()); err == nil && !push.Existed {
				done.Add(1)
			}
			return nil
		})
	}
	g.Wait()
	return int(done.Load())
}
