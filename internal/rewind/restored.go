package rewind

import (
	"context"
	"fmt"
	"io"
	"strings"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/pkg/volume"
)

// missingWAL refuses a plan whose replay would want WAL that is nowhere.
func (p *planner) missingWAL() error {
	looked := []string{inTarget}
	if p.job.source.repo == nil {
		looked = append(looked, inSource)
	}
	looked = append(looked, p.search.names()...)
	return exit.Wrap(&missingWAL{p.missing, looked}, exit.Refused, p.waysOut(), "WAL that replay needs is missing")
}

// openRestored makes the WAL that the plan takes from an archive part of the
// source, as if the source still had it.
func (j *job) openRestored(ctx context.Context, m meta) error {
	var err error
	if j.tc == nil { // a resumed run has not looked at the target
		if j.tc, err = volume.ReadControl(j.Target); err != nil {
			return err
		}
	}
	if j.search == nil {
		if err := j.openSearch(ctx); err != nil {
			return err
		}
	}
	j.source.search = j.search
	for _, name := range m.Restored {
		j.source.restored[name] = true
	}
	return nil
}

// Fetch reads from the source, and WAL that it lacks from where it was found.
func (s *source) Fetch(ctx context.Context, ranges []blockcopy.Range, deliver blockcopy.Deliver) error {
	var own []blockcopy.Range
	flush := func() error {
		if len(own) == 0 {
			return nil
		}
		list := own
		own = nil
		return s.Source.Fetch(ctx, list, deliver)
	}
	for _, r := range ranges {
		name, ok := strings.CutPrefix(r.Path, "pg_wal/")
		if !ok || !s.restored[name] {
			own = append(own, r)
			continue
		}
		if err := flush(); err != nil {
			return err
		}
		if err := s.fetchRestored(ctx, name, r, deliver); err != nil {
			return err
		}
	}
	return flush()
}

func (s *source) fetchRestored(ctx context.Context, name string, r blockcopy.Range, deliver blockcopy.Deliver) error {
	f, l, err := s.search.open(ctx, name)
	switch {
	case err != nil:
		return err
	case f == nil:
		return exit.New(exit.Failed, "run the same command again with the same -c and --repo as before",
			"WAL segment %s came from an archive when the run was planned, and is not found any more %s", name, strings.Join(l.asked, ", "))
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if err := deliverFile(f, r, deliver); err != nil {
		return err
	}
	return s.search.served(l, r.Length, fi.Size())
}

// deliverFile reads one range of an open file.
func deliverFile(f io.ReaderAt, r blockcopy.Range, deliver blockcopy.Deliver) error {
	buf := make([]byte, min(r.Length, 1<<20))
	for off := r.Offset; off < r.End(); {
		piece := blockcopy.Range{Path: r.Path, Offset: off, Length: min(r.End()-off, int64(len(buf)))}
		n, err := f.ReadAt(buf[:piece.Length], off)
		if err != nil && err != io.EOF {
			return fmt.Errorf("%s: %w", r.Path, err)
		}
		if err := deliver(piece, buf[:n], false); err != nil || int64(n) < piece.Length {
			return err
		}
		off += int64(n)
	}
	return nil
}
