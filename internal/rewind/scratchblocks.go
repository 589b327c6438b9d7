package rewind

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"

	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// copyBlocks gives the scratch cluster a file that is as long as the target's,
// with these blocks in it. Blocks that it has already stay as they are. A file
// that the target does not have is not made.
func (s *scratch) copyBlocks(f wal.RelFile, blocks iter.Seq[uint32]) error {
	have := s.blocks[f]
	if have == nil {
		have = map[uint32]bool{}
		s.blocks[f] = have
		if err := s.makeHoles(f); err != nil {
			return err
		}
	}
	if blocks == nil {
		return nil
	}
	c := blockCopier{s: s, file: f, page: make([]byte, s.job.tc.BlockSize), segment: -1}
	for b := range blocks {
		if have[b] {
			continue
		}
		if err := c.copy(b); err != nil {
			return errors.Join(err, c.close())
		}
		have[b] = true
	}
	return c.close()
}

// makeHoles makes the segments of a file, with nothing in them.
func (s *scratch) makeHoles(f wal.RelFile) error {
	for segment := uint32(0); ; segment++ {
		name := volume.RelSegment{RelFile: f, Segment: segment}.Path(s.job.tc.VersionDir())
		st, err := os.Stat(filepath.Join(s.job.Target, filepath.FromSlash(name)))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && segment == 0 && f.Database != 0 {
			err = s.makeDir(f.Tablespace, f.Database)
		}
		if err != nil {
			return err
		}
		out, err := os.OpenFile(filepath.Join(s.dir, filepath.FromSlash(name)), os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		if err := errors.Join(out.Truncate(st.Size()), out.Close()); err != nil {
			return err
		}
	}
}

// blockCopier copies blocks of one file, segment by segment.
type blockCopier struct {
	s        *scratch
	file     wal.RelFile
	page     []byte
	segment  int64
	from, to *os.File
}

func (c *blockCopier) close() error {
	if c.from == nil {
		return nil
	}
	err := errors.Join(c.from.Close(), c.to.Close())
	c.from, c.to = nil, nil
	return err
}

func (c *blockCopier) copy(block uint32) error {
	size := c.s.job.tc.RelSegSize
	if segment := int64(block / size); segment != c.segment {
		if err := c.open(segment); err != nil {
			return err
		}
	}
	if c.from == nil {
		return nil
	}
	at := int64(block%size) * int64(len(c.page))
	if _, err := c.from.ReadAt(c.page, at); errors.Is(err, io.EOF) {
		return nil // beyond its end: it was cut, or the block never came to disk
	} else if err != nil {
		return err
	}
	c.s.copied += int64(len(c.page))
	_, err := c.to.WriteAt(c.page, at)
	return err
}

func (c *blockCopier) open(segment int64) error {
	if err := c.close(); err != nil {
		return err
	}
	c.segment = segment
	name := filepath.FromSlash(volume.RelSegment{RelFile: c.file, Segment: uint32(segment)}.Path(c.s.job.tc.VersionDir()))
	from, err := os.Open(filepath.Join(c.s.job.Target, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	to, err := os.OpenFile(filepath.Join(c.s.dir, name), os.O_RDWR, 0)
	if err != nil {
		return errors.Join(err, from.Close())
	}
	c.from, c.to = from, to
	return nil
}

// copyRest copies what is missing of a file: all that recovery did not touch,
// as far as the file reaches now.
func (s *scratch) copyRest(f wal.RelFile) error {
	return s.copyBlocks(f, func(yield func(uint32) bool) {
		var change *wal.FileChange
		if s.crash != nil {
			change = s.crash.Lookup(f)
		}
		for b := range s.length(f) {
			if change != nil && (change.Blocks.Contains(b) || b >= change.Limit) {
				continue
			}
			if !yield(b) {
				return
			}
		}
	})
}

// length is how many blocks the target's file has.
func (s *scratch) length(f wal.RelFile) (blocks uint32) {
	for segment := uint32(0); ; segment++ {
		st, err := os.Stat(filepath.Join(s.job.Target, filepath.FromSlash(volume.RelSegment{RelFile: f, Segment: segment}.Path(s.job.tc.VersionDir()))))
		if err != nil {
			return blocks
		}
		blocks += uint32(st.Size() / int64(s.job.tc.BlockSize))
	}
}

// prepareRecovery copies the WAL that the server needs to start and, for a
// target that was not shut down as a primary, the blocks that recovery changes.
func (s *scratch) prepareRecovery(ctx context.Context, end wal.LSN) error {
	j := s.job
	redo := j.tc.CheckPointCopy.Redo
	if j.tc.State != volume.StateShutdowned {
		o := j.walOptions(redo)
		o.FindFirst, o.End = true, end
		m, _, err := wal.ScanMap(ctx, j.wal, wal.ScanOptions{Options: o})
		if err != nil {
			return j.explainWAL(err, "reading the WAL that recovers the target")
		}
		s.crash = m
		for _, e := range m.Databases {
			if e.Create != nil && e.Create.FileCopy {
				if err := s.copyTemplate(e.Create.SourceTablespace, e.Create.SourceDatabase); err != nil {
					return err
				}
			}
		}
		for change := range m.Files() {
			if err := s.copyChanged(change); err != nil {
				return err
			}
		}
	}
	for n := j.tc.XLogSegSize.Number(redo); n <= j.tc.XLogSegSize.NumberBefore(end); n++ {
		if err := s.copySegment(ctx, n); err != nil {
			return err
		}
	}
	histories, err := filepath.Glob(filepath.Join(j.Target, "pg_wal", "*.history"))
	for _, path := range histories {
		err = errors.Join(err, s.copyFile("pg_wal/"+filepath.Base(path)))
	}
	return err
}

// copyTemplate copies a database whole: recovery copies its files once more.
func (s *scratch) copyTemplate(space, db uint32) error {
	if err := s.makeDir(space, db); err != nil {
		return err
	}
	return s.copyDir(s.databaseDir(space, db))
}

// copyChanged copies the blocks of a file that recovery changes. A file that
// was copied whole has them.
func (s *scratch) copyChanged(change *wal.FileChange) error {
	f := change.File
	name := volume.RelSegment{RelFile: f}.Path(s.job.tc.VersionDir())
	if _, err := os.Stat(filepath.Join(s.dir, filepath.FromSlash(name))); err == nil && s.blocks[f] == nil {
		return nil
	}
	return s.copyBlocks(f, change.Blocks.All())
}

func (s *scratch) copySegment(ctx context.Context, n wal.SegmentNumber) error {
	j := s.job
	names := candidates(j.th, j.tc.XLogSegSize, n)
	for _, name := range names {
		err := s.copyFile("pg_wal/" + name)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	seg, err := j.wal.OpenSegment(ctx, n)
	if err != nil {
		return j.explainWAL(err, "copying the WAL that recovers the target")
	}
	defer seg.Close()
	out, err := os.Create(filepath.Join(s.dir, "pg_wal", names[0]))
	if err != nil {
		return err
	}
	_, err = io.Copy(out, io.NewSectionReader(seg, 0, int64(j.tc.XLogSegSize)))
	return errors.Join(err, out.Close())
}

// recover has the server recover a copy of a crashed target, and stops it again.
// Transactions that are prepared, and would hold their locks, go.
func (s *scratch) recover(ctx context.Context) error {
	if s.crash == nil {
		return nil
	}
	if err := s.Start(ctx); err != nil {
		return exit.Wrap(err, exit.Failed, exit.HintOf(err), "recovering a copy of what the crashed target needs")
	}
	if err := s.Stop(ctx, postgres.StopFast); err != nil {
		return err
	}
	prepared, err := filepath.Glob(filepath.Join(s.dir, "pg_twophase", "*"))
	for _, path := range prepared {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// blocksOf are the blocks in which rows lie, each once.
func blocksOf(rows *fileRows) iter.Seq[uint32] {
	set := map[uint32]bool{}
	for k := range rows.made {
		set[k.block()] = true
	}
	for k := range rows.gone {
		set[k.block()] = true
	}
	return maps.Keys(set)
}
