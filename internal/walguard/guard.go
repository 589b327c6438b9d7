// Package walguard reads the WAL that a copy of a running cluster will replay,
// for what replay does not repeat as it was at the source. Seeding a standby,
// rewinding and backing up ask it the same question, each with its own answer
// to what its copy may hold:
//
//		redo .............. copying begins .............. copying ends
//		 |---------------------- this WAL is replayed ----------|
//
//	  - A block that is copied while it is written is mended by its image in the
//	    WAL, which is there while full_page_writes is on. Where it was off before
//	    copying began, and the source has written everything from that time to
//	    its files since (a completed checkpoint, or restartpoint, whose redo point
//	    lies behind it), blocks are torn between versions that both hold all of
//	    it: replay passes over those records, and that is fine.
//	  - With wal_level = minimal changes are missing in the WAL.
//	  - A database that was made by copying another one's files (CREATE DATABASE
//	    ... STRATEGY FILE_COPY, each one before 15, ALTER DATABASE SET TABLESPACE)
//	    is made by replay in the same way, from the copy's files. That is right
//	    as long as those hold nothing that is younger than the record, or the
//	    database is dropped again.
//	  - CREATE TABLESPACE is replayed with the source's absolute path.
package walguard

import (
	"context"
	"errors"
	"slices"

	"tidemark/pkg/wal"
)

// Guard is what is asked of a range of WAL.
type Guard struct {
	// Flushed is the redo point of the source's last completed checkpoint, or
	// restartpoint, as of before anything was copied: what was written to the
	// WAL before it was in the source's files by then. At the latest it is
	// where reading begins.
	Flushed wal.LSN
	// Holds tells whether the copy may hold a change that a database's files
	// underwent after they were copied at the source. Nil: it always may.
	Holds func(Touch) bool
	// Tablespace tells whether replay of a tablespace's creation is right. Nil:
	// it never is.
	Tablespace func(*wal.TablespaceCreate) bool
}

// Kind is what replay does not repeat.
type Kind int

// The kinds.
const (
	FullPageWrites Kind = iota // was off while, or shortly before, blocks were copied
	WALLevel                   // was minimal
	FileCopy                   // a database was copied, and its source changed since
	Tablespace                 // a tablespace was created
	Unreadable                 // a record that might matter cannot be decoded
)

// Finding is the first thing found that replay does not repeat.
type Finding struct {
	Kind       Kind
	LSN        wal.LSN               // of the record
	Made       *wal.DatabaseCreate   // with FileCopy: the database that was made,
	MadeAt     wal.LSN               // and where; LSN is that of the later change
	Tablespace *wal.TablespaceCreate // with Tablespace
	Err        error                 // with Unreadable
}

// Result is how far the WAL was read, and what was found.
type Result struct {
	Finding *Finding // nil: nothing
	End     wal.LSN
	Stop    error // why reading ended before the end of the range; nil where it did not
}

// Reached tells whether the WAL was read to end. What is on the source's disk
// may end behind a page's header, or in the middle of a record.
func (r *Result) Reached(end wal.LSN) bool {
	var torn *wal.TornTail
	return r.Stop == nil || r.End+wal.LongHeaderSize >= end || errors.As(r.Stop, &torn) && torn.Fault >= end
}

// Read reads a range. A finding is no error.
func (g *Guard) Read(ctx context.Context, src wal.Source, o wal.ScanOptions) (*Result, error) {
	m, stop, err := wal.ScanMap(ctx, src, o)
	if err != nil {
		return nil, err
	}
	r := &Result{End: m.End, Stop: stop}
	if r.Finding = g.settings(m); r.Finding != nil {
		return r, nil
	}
	if r.Finding = g.tablespaces(m); r.Finding != nil {
		return r, nil
	}
	at := firstFileCopy(m)
	if at == 0 {
		return r, nil
	}
	o.Start, o.End = at, m.End
	r.Finding, err = g.follow(ctx, src, o.Options, m)
	return r, err
}

// settings looks for a time without page images that is not over and done with
// before what was copied, and for missing WAL.
func (g *Guard) settings(m *wal.Map) *Finding {
	off := wal.LSN(0) // since when they are off
	for i, s := range m.Settings {
		switch {
		case s.Parameters != nil && s.Parameters.WALLevel == wal.WALLevelMinimal:
			return &Finding{Kind: WALLevel, LSN: s.LSN}
		case s.FullPageWrites == nil:
		case !s.FullPageWrites.On:
			off = s.LSN
		default:
			if off == 0 && firstSetting(m, i) {
				off = s.LSN // from before the range on
			}
			if off != 0 && s.LSN > g.Flushed {
				return &Finding{Kind: FullPageWrites, LSN: off}
			}
			off = 0
		}
	}
	if off != 0 {
		return &Finding{Kind: FullPageWrites, LSN: off}
	}
	return nil
}

// firstSetting tells whether no earlier record says what full_page_writes is.
func firstSetting(m *wal.Map, i int) bool {
	for _, s := range m.Settings[:i] {
		if s.FullPageWrites != nil {
			return false
		}
	}
	return true
}

func (g *Guard) tablespaces(m *wal.Map) *Finding {
	for _, e := range m.Tablespaces {
		if e.Create != nil && (g.Tablespace == nil || !g.Tablespace(e.Create)) {
			return &Finding{Kind: Tablespace, LSN: e.LSN, Tablespace: e.Create}
		}
	}
	return nil
}

func firstFileCopy(m *wal.Map) wal.LSN {
	for _, e := range m.Databases {
		if e.Create != nil && e.Create.FileCopy && !shortLived(m, e.LSN, e.Create) {
			return e.LSN
		}
	}
	return 0
}

// shortLived tells whether a database goes again within the range without
// having been copied from: whatever replay puts into it is of no account.
func shortLived(m *wal.Map, at wal.LSN, made *wal.DatabaseCreate) bool {
	for _, e := range m.Databases {
		switch {
		case e.LSN <= at:
		case e.Create != nil && e.Create.FileCopy && e.Create.SourceDatabase == made.Database && e.Create.SourceTablespace == made.Tablespace:
			return false
		case e.Drop != nil && e.Drop.Database == made.Database && slices.Contains(e.Drop.Tablespaces, made.Tablespace):
			return true
		}
	}
	return false
}
