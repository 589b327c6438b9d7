package rewind

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// source is the cluster that the target shall become a copy of.
type source struct {
	blockcopy.Source
	dir    string                 // of a local directory
	conn   string                 // of a live server
	server *postgres.ServerSource // where live
	repo   *repoSource

	search   *walSearch      // has the WAL that the source itself lacks
	restored map[string]bool // names of the segments that come from there
}

func openSource(ctx context.Context, o Options) (*source, error) {
	switch {
	case !oneOf(o.SourceDir, o.SourceConn, o.SourceRepo):
		return nil, exit.New(exit.Usage, "name one of --source-server, --source-pgdata and --source-repo", "the source is not clear")
	case o.SourceRepo != "" && o.Compare:
		return nil, exit.New(exit.Usage, "leave out --compare: a backup is compared by the target's WAL alone", "--compare needs a server or a data directory as the source")
	case o.SourceRepo != "":
		r, err := openRepoSource(ctx, o)
		if err != nil {
			return nil, err
		}
		return &source{Source: r, repo: r, restored: map[string]bool{}}, nil
	case o.SourceDir != "":
		running, err := postgres.IsRunning(o.SourceDir)
		if err != nil {
			return nil, err
		}
		if running {
			return nil, exit.New(exit.Refused, "stop it, or name it with --source-server",
				"a server is running on the source directory %s", o.SourceDir)
		}
		return &source{Source: blockcopy.NewDirSource(o.SourceDir, true), dir: o.SourceDir, restored: map[string]bool{}}, nil
	}
	s, err := postgres.OpenSource(ctx, o.SourceConn)
	if err != nil {
		return nil, err
	}
	return &source{Source: s, conn: o.SourceConn, server: s, restored: map[string]bool{}}, nil
}

// oneOf tells whether exactly one of the words is not empty.
func oneOf(words ...string) bool {
	n := 0
	for _, w := range words {
		if w != "" {
			n++
		}
	}
	return n == 1
}

func (s *source) live() bool { return s.conn != "" }

// control reads the source's pg_control. A live server may be writing it: the
// same wrong bytes twice are damage, different ones are read again.
func (s *source) control(ctx context.Context) (*volume.Control, error) {
	if s.repo != nil {
		return s.repo.control, nil
	}
	var before []byte
	for {
		data, err := s.ReadFile(ctx, volume.ControlPath)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, exit.Wrap(err, exit.Failed, "name the data directory of a cluster", "%s has no pg_control", s.Name())
		}
		if err != nil {
			return nil, err
		}
		c, err := volume.ParseControl(data)
		if err == nil || !errors.Is(err, volume.ErrControlCRC) || bytes.Equal(data, before) {
			if err != nil {
				err = exit.Wrap(err, exit.Failed, "", "%s", s.Name())
			}
			return c, err
		}
		before = data
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// position returns how far the source's WAL reaches: what replay must reach
// for everything that was copied until now to be consistent.
func (s *source) position(ctx context.Context, c *volume.Control) (wal.LSN, timeline.ID, error) {
	switch {
	case s.repo != nil:
		return s.repo.end(), s.repo.history.Timeline, nil
	case !s.live():
		if c.State == volume.StateShutdownedRecovery && c.MinRecoveryPoint > c.CheckPoint {
			return c.MinRecoveryPoint, c.MinRecoveryPointTLI, nil
		}
		return c.CheckPoint, c.CheckPointCopy.ThisTimeLineID, nil
	case c.State == volume.StateInArchiveRecovery:
		return s.replayed(ctx, c)
	case c.State == volume.StateInProduction:
		return s.insertPosition(ctx)
	}
	return 0, 0, exit.New(exit.Failed, "wait until it accepts sessions as primary or standby", "%s is %s", s.Name(), c.State)
}

// onDisk returns how far the source's WAL is on its disk, at most end. No block
// that was read before is younger.
func (s *source) onDisk(ctx context.Context, c *volume.Control, end wal.LSN) (wal.LSN, error) {
	if !s.live() || c.State != volume.StateInProduction {
		return end, nil
	}
	conn, err := postgres.Connect(ctx, s.conn)
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var text string
	if err := postgres.Query(ctx, conn, "SELECT pg_current_wal_flush_lsn()::text", nil, &text); err != nil {
		return 0, err
	}
	flushed, err := wal.ParseLSN(text)
	return min(flushed, end), err
}

func (s *source) insertPosition(ctx context.Context) (wal.LSN, timeline.ID, error) {
	var lsn, file string
	err := s.server.Query(ctx, "SELECT l::text, pg_walfile_name(l) FROM pg_current_wal_insert_lsn() AS l", nil, &lsn, &file)
	if err != nil {
		return 0, 0, err
	}
	pos, err := wal.ParseLSN(lsn)
	if err != nil {
		return 0, 0, err
	}
	tli, err := strconv.ParseUint(file[:min(8, len(file))], 16, 32)
	return pos, timeline.ID(tli), err
}

// checkLive checks what only a live server can tell.
func (s *source) checkLive(ctx context.Context) error {
	if !s.live() {
		return nil
	}
	var fpw string
	if err := s.server.Query(ctx, "SHOW full_page_writes", nil, &fpw); err != nil {
		return err
	}
	if fpw != "on" {
		return exit.New(exit.Refused, "set full_page_writes = on there, reload, and run CHECKPOINT",
			"full_page_writes is off at the source: what is copied while it writes could not be repaired by replay")
	}
	return nil
}

// history reads the history of a timeline from a side's pg_wal.
func readHistory(id timeline.ID, side string, read func(path string) ([]byte, error)) (*timeline.History, error) {
	name := wal.HistoryName(id)
	data, err := read("pg_wal/" + name)
	if errors.Is(err, fs.ErrNotExist) {
		if id == 1 {
			return timeline.Root(1), nil
		}
		return nil, exit.Wrap(err, exit.Failed, "copy "+name+" from the WAL archive into its pg_wal",
			"%s is on timeline %d but has no history file of it", side, id)
	}
	if err != nil {
		return nil, err
	}
	h, err := timeline.Parse(id, data)
	if err != nil {
		return nil, exit.Wrap(err, exit.Failed, "", "%s: %s", side, name)
	}
	return h, nil
}

// readSource is a read function for readHistory.
func (s *source) read(ctx context.Context) func(string) ([]byte, error) {
	return func(path string) ([]byte, error) { return s.ReadFile(ctx, path) }
}

// has tells which of the files exist at the source now.
func (s *source) has(ctx context.Context, names []string) (map[string]bool, error) {
	found := map[string]bool{}
	ranges := make([]blockcopy.Range, len(names))
	for i, name := range names {
		ranges[i] = blockcopy.Range{Path: name, Length: 1}
	}
	err := s.Fetch(ctx, ranges, func(piece blockcopy.Range, _ []byte, gone bool) error {
		found[piece.Path] = !gone
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking for WAL at %s: %w", s.Name(), err)
	}
	return found, nil
}
