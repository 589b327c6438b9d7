package walguard

import (
	"testing"

	"tidemark/pkg/wal"
)

func fpw(at wal.LSN, on bool) wal.SettingEvent {
	return wal.SettingEvent{LSN: at, FullPageWrites: &wal.FullPageWrites{On: on}}
}

func level(at wal.LSN, l wal.WALLevel) wal.SettingEvent {
	return wal.SettingEvent{LSN: at, Parameters: &wal.ParameterChange{WALLevel: l}}
}

// TestSettings: a time without page images does no harm once the source has
// written out what it changed then, and before anything was copied.
func TestSettings(t *testing.T) {
	for name, c := range map[string]struct {
		flushed wal.LSN
		events  []wal.SettingEvent
		want    wal.LSN // 0: nothing is found
		kind    Kind
	}{
		"nothing":                       {100, nil, 0, 0},
		"off, on, checkpoint":           {300, []wal.SettingEvent{fpw(200, false), fpw(250, true)}, 0, 0},
		"off, checkpoint, on":           {230, []wal.SettingEvent{fpw(200, false), fpw(250, true)}, 200, FullPageWrites},
		"checkpoint, off, on":           {100, []wal.SettingEvent{fpw(200, false), fpw(250, true)}, 200, FullPageWrites},
		"off and never on":              {300, []wal.SettingEvent{fpw(200, false)}, 200, FullPageWrites},
		"off before the range, flushed": {300, []wal.SettingEvent{fpw(250, true)}, 0, 0},
		"off before the range":          {100, []wal.SettingEvent{fpw(250, true)}, 250, FullPageWrites},
		"once flushed, once not":        {300, []wal.SettingEvent{fpw(200, false), fpw(250, true), fpw(350, false), fpw(360, true)}, 350, FullPageWrites},
		"on twice":                      {100, []wal.SettingEvent{fpw(50, false), fpw(60, true), fpw(250, true)}, 0, 0},
		"minimal, whenever it was":      {300, []wal.SettingEvent{level(50, wal.WALLevelMinimal), level(60, wal.WALLevelReplica)}, 50, WALLevel},
		"other parameters":              {300, []wal.SettingEvent{level(400, wal.WALLevelReplica)}, 0, 0},
	} {
		g := Guard{Flushed: c.flushed}
		f := g.settings(&wal.Map{Settings: c.events})
		if c.want == 0 && f != nil || c.want != 0 && (f == nil || f.LSN != c.want || f.Kind != c.kind) {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

func TestTablespaces(t *testing.T) {
	m := &wal.Map{Tablespaces: []wal.TablespaceEvent{{LSN: 1, Drop: &wal.TablespaceDrop{}}, {LSN: 2, Create: &wal.TablespaceCreate{Tablespace: 7, Path: "/srv"}}}}
	if f := new(Guard).tablespaces(m); f == nil || f.LSN != 2 || f.Kind != Tablespace {
		t.Errorf("%+v", f)
	}
	g := Guard{Tablespace: func(c *wal.TablespaceCreate) bool { return c.Path == "/srv" }}
	if f := g.tablespaces(m); f != nil {
		t.Errorf("%+v", f)
	}
}

// TestFileCopy goes through what may happen to a database behind the record by
// which another one was made from its files.
func TestFileCopy(t *testing.T) {
	file := wal.RelFile{Tablespace: 1663, Database: 5, Relation: 100}
	copyOf := func(from, to uint32) *wal.DatabaseCreate {
		return &wal.DatabaseCreate{Database: to, Tablespace: 1663, FileCopy: true, SourceDatabase: from, SourceTablespace: 1663}
	}
	in := func(db uint32) wal.RelFile { f := file; f.Database = db; return f }
	elsewhere := file
	elsewhere.Tablespace = 20000
	fsm := file
	fsm.Fork = wal.ForkFSM
	for name, c := range map[string]struct {
		steps []any // details, and files of which a block is written
		holds func(Touch) bool
		want  bool
	}{
		"untouched":                  {[]any{copyOf(5, 6), in(6), in(7)}, nil, false},
		"touched before":             {[]any{file, copyOf(5, 6)}, nil, false},
		"written":                    {[]any{copyOf(5, 6), file}, nil, true},
		"written, and not held":      {[]any{copyOf(5, 6), file}, func(Touch) bool { return false }, false},
		"its free space map":         {[]any{copyOf(5, 6), fsm}, nil, false},
		"in another tablespace":      {[]any{copyOf(5, 6), elsewhere}, nil, false},
		"copied through the WAL":     {[]any{&wal.DatabaseCreate{Database: 6, Tablespace: 1663}, file}, nil, false},
		"made by replay, then again": {[]any{copyOf(5, 6), copyOf(6, 7), in(6)}, nil, false},
		"made and written":           {[]any{copyOf(5, 6), in(6), copyOf(6, 7), in(6), file}, nil, true},
		"a younger relation":         {[]any{copyOf(5, 6), &wal.RelationCreate{File: file}, file, &wal.Commit{Dropped: []wal.RelFile{file}}}, nil, false},
		"truncated":                  {[]any{copyOf(5, 6), &wal.RelationTruncate{File: file}}, nil, true},
		"dropped":                    {[]any{copyOf(5, 6), &wal.Commit{Dropped: []wal.RelFile{file}}}, nil, true},
		"dropped by an abort":        {[]any{copyOf(5, 6), &wal.Abort{Dropped: []wal.RelFile{file}}}, nil, true},
		"its map":                    {[]any{copyOf(5, 6), &wal.RelationMapUpdate{Database: 5, Tablespace: 1663}}, nil, true},
		"the database dropped":       {[]any{copyOf(5, 6), &wal.DatabaseDrop{Database: 5, Tablespaces: []uint32{20000, 1663}}}, nil, true},
		"what was made dropped":      {[]any{copyOf(5, 6), file, &wal.DatabaseDrop{Database: 6, Tablespaces: []uint32{1663}}}, nil, false},
		"dropped elsewhere only":     {[]any{copyOf(5, 6), file, &wal.DatabaseDrop{Database: 6, Tablespaces: []uint32{20000}}}, nil, true},
		"dropped, its copy stays":    {[]any{copyOf(5, 6), copyOf(6, 7), file, &wal.DatabaseDrop{Database: 6, Tablespaces: []uint32{1663}}}, nil, true},
		"dropped and made again":     {[]any{copyOf(5, 6), &wal.DatabaseDrop{Database: 6, Tablespaces: []uint32{1663}}, copyOf(5, 6), file}, nil, true},
		"another dropped":            {[]any{copyOf(5, 6), &wal.DatabaseDrop{Database: 6, Tablespaces: []uint32{1663}}}, nil, false},
	} {
		all := &wal.Map{}
		for i, s := range c.steps {
			switch d := s.(type) {
			case *wal.DatabaseCreate:
				all.Databases = append(all.Databases, wal.DatabaseEvent{LSN: wal.LSN(1000 + i), Create: d})
			case *wal.DatabaseDrop:
				all.Databases = append(all.Databases, wal.DatabaseEvent{LSN: wal.LSN(1000 + i), Drop: d})
			}
		}
		f := follower{&Guard{Holds: c.holds}, all, map[directory]fileCopy{}, map[directory]bool{}, map[wal.RelFile]bool{}}
		var found *Finding
		for i, s := range c.steps {
			at := wal.LSN(1000 + i)
			if b, ok := s.(wal.RelFile); ok {
				found = f.record(&wal.Record{LSN: at, RMID: wal.RmHeap, Blocks: []wal.BlockRef{{File: b, Block: 3}}})
			} else {
				found = f.detail(at, s.(wal.Detail))
			}
			if found != nil {
				break
			}
		}
		if (found != nil) != c.want {
			t.Errorf("%s: %+v", name, found)
		}
		if found != nil && (found.Kind != FileCopy || found.Made.SourceDatabase != 5 || found.LSN <= found.MadeAt) {
			t.Errorf("%s: %+v", name, found)
		}
	}
}
