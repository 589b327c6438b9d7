package walguard

import (
	"context"

	"tidemark/pkg/wal"
)

// Touch is a change of a database's files behind the record by which another
// database was made from them.
type Touch struct {
	Change Change
	LSN    wal.LSN     // of the record
	File   wal.RelFile // for Map and DropDatabase only its tablespace and database
	Block  uint32      // for Block, in the fork
}

// Change is what a Touch does.
type Change int

// The changes.
const (
	Block        Change = iota // a block is written
	Truncate                   // a relation becomes shorter
	Remove                     // a relation's files go
	Map                        // pg_filenode.map is written
	DropDatabase               // the whole directory goes
)

// directory is a database's: in a tablespace.
type directory struct{ tablespace, database uint32 }

func directoryOf(f wal.RelFile) directory { return directory{f.Tablespace, f.Database} }

// follower is what is known while the WAL is read from the first file copy on.
type follower struct {
	*Guard
	all    *wal.Map               // of the whole range
	copied map[directory]fileCopy // whose files were copied so far, by the first such record
	remade map[directory]bool     // made by copying: replay makes them anew, from nothing
	born   map[wal.RelFile]bool   // relations younger than the first copy
}

type fileCopy struct {
	made *wal.DatabaseCreate
	at   wal.LSN
}

func (g *Guard) follow(ctx context.Context, src wal.Source, o wal.Options, m *wal.Map) (*Finding, error) {
	r, err := wal.NewReader(ctx, src, o)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	f := follower{g, m, map[directory]fileCopy{}, map[directory]bool{}, map[wal.RelFile]bool{}}
	for r.Next() {
		if found := f.record(r.Record()); found != nil {
			return found, nil
		}
	}
	return nil, ctx.Err() // what else ends it was judged by the scan before
}

func (f *follower) record(r *wal.Record) *Finding {
	for i := range r.Blocks {
		b := &r.Blocks[i]
		if b.File.Fork == wal.ForkFSM { // it is not in the WAL, and mends itself
			continue
		}
		if found := f.touch(Touch{Change: Block, LSN: r.LSN, File: b.File, Block: b.Block}); found != nil {
			return found
		}
	}
	switch r.RMID {
	case wal.RmTransaction, wal.RmStorage, wal.RmDatabase, wal.RmRelMap:
	default:
		return nil
	}
	detail, err := wal.Decode(r)
	if err != nil {
		return &Finding{Kind: Unreadable, LSN: r.LSN, Err: err}
	}
	return f.detail(r.LSN, detail)
}

func (f *follower) detail(at wal.LSN, detail wal.Detail) *Finding {
	switch d := detail.(type) {
	case *wal.DatabaseCreate:
		f.create(at, d)
	case *wal.DatabaseDrop:
		for _, space := range d.Tablespaces {
			if found := f.touch(Touch{Change: DropDatabase, LSN: at, File: wal.RelFile{Tablespace: space, Database: d.Database}}); found != nil {
				return found
			}
		}
	case *wal.RelationCreate:
		f.born[d.File] = true
	case *wal.RelationTruncate:
		return f.touch(Touch{Change: Truncate, LSN: at, File: d.File})
	case *wal.RelationMapUpdate:
		return f.touch(Touch{Change: Map, LSN: at, File: wal.RelFile{Tablespace: d.Tablespace, Database: d.Database}})
	case *wal.Commit:
		return f.removed(at, d.Dropped)
	case *wal.Abort:
		return f.removed(at, d.Dropped)
	}
	return nil
}

// create notes a database. One that replay itself makes by copying holds what
// its template did then, whatever was copied of it.
func (f *follower) create(at wal.LSN, d *wal.DatabaseCreate) {
	if !d.FileCopy || shortLived(f.all, at, d) {
		return
	}
	from := directory{d.SourceTablespace, d.SourceDatabase}
	f.remade[directory{d.Tablespace, d.Database}] = true
	if _, known := f.copied[from]; !known && !f.remade[from] {
		f.copied[from] = fileCopy{d, at}
	}
}

func (f *follower) removed(at wal.LSN, files []wal.RelFile) *Finding {
	for _, file := range files {
		if found := f.touch(Touch{Change: Remove, LSN: at, File: file}); found != nil {
			return found
		}
	}
	return nil
}

// touch judges a change. A relation that came after the copying was not copied.
func (f *follower) touch(t Touch) *Finding {
	c, ok := f.copied[directoryOf(t.File)]
	if !ok {
		return nil
	}
	main := t.File
	main.Fork = wal.ForkMain
	if f.born[main] || f.Holds != nil && !f.Holds(t) {
		return nil
	}
	return &Finding{Kind: FileCopy, LSN: t.LSN, Made: c.made, MadeAt: c.at}
}
