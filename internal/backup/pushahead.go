package backup

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"tidemark/internal/repo"
	"tidemark/pkg/wal"
)

// The server calls its archive_command for one segment at a time and waits. A
// push that finds more segments waiting therefore archives the next ones as
// well, in parallel, and the calls for those find them there (see receipts.go).
// No WAL lies anywhere but in the repository and in the server's pg_wal: a
// segment whose read-ahead failed or was cut off is simply pushed when the
// server calls for it.
const (
	// DefaultAhead is how many waiting segments a push takes along.
	DefaultAhead = 31
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

// pushAhead archives segments that wait, leaves receipts for them, and returns
// how many it archived. What fails is left to its own call, where it is
// reported.
func pushAhead(ctx context.Context, c *repo.Cluster, walDir string, names []string, log *slog.Logger) int {
	var mu sync.Mutex
	var receipts []receipt
	done := 0
	begin := time.Now()
	var g errgroup.Group
	g.SetLimit(aheadFiles)
	for _, name := range names {
		g.Go(func() error {
			if ctx.Err() != nil || time.Since(begin) > aheadTime {
				return nil
			}
			r, err := pushOne(ctx, c, filepath.Join(walDir, name))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				done++
			}
			if r != nil {
				receipts = append(receipts, *r)
			}
			return nil
		})
	}
	g.Wait()
	if err := keepReceipts(c, receipts); err != nil {
		log.Debug("the segments that were taken along will be compared when the server calls for them", "error", err)
	}
	return done
}

// errThere says that a segment had been archived before.
var errThere = errors.New("archived before")

// pushOne archives a segment that waits. Its receipt is nil where the file may
// have changed unseen while it was read.
func pushOne(ctx context.Context, c *repo.Cluster, path string) (*receipt, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	before, err := stateOf(f)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	name := filepath.Base(path)
	push, err := c.PushWAL(ctx, name, f, before.Size)
	if err == nil && push.Existed {
		err = errThere
	}
	if err != nil {
		return nil, err
	}
	if after, err := stateOf(f); err != nil || after != before || !before.settledAt(begin) {
		return nil, nil
	}
	return &receipt{Name: name, File: before, Object: push.Object}, nil
}
