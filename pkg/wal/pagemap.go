package wal

import (
	"encoding/binary"
	"fmt"
	"iter"
	"maps"
	"slices"
)

// NoLimit is the Limit of a relation file that was not truncated.
const NoLimit = ^uint32(0)

// Map says which blocks a range of the log changes, by relation file, and what
// it does to whole files and directories. Its memory grows with what was
// changed, not with the length of the log.
type Map struct {
	Databases    []DatabaseEvent    // in log order
	Tablespaces  []TablespaceEvent  // in log order
	RelationMaps []RelationMapEvent // the last update of each map file
	Settings     []SettingEvent     // in log order
	Unknown      []UnknownChange    // what makes the map incomplete

	Records uint64 // whole records read
	Bytes   uint64 // their xl_tot_len in sum
	Refs    uint64 // block references
	Images  uint64 // of which with a page image
	Start   LSN    // first record; 0 if there was none
	Last    LSN    // last record; 0 if there was none
	End     LSN    // end of the last record, or where reading began

	files  map[RelFile]*FileChange
	recent [64]*FileChange // by hash, for the next record's sake
	plain  plainRecord     // space to work in
}

// FileChange is what the log does to one relation file.
type FileChange struct {
	File RelFile
	// Limit is the smallest length, in blocks, that the file was cut to (0 when
	// it was created or dropped), or NoLimit. Every block from Limit on counts
	// as changed, in the set or not: what extends a file after a truncation need
	// not be logged. Blocks that were cut off are not in the set unless they
	// were changed again later.
	Limit     uint32
	Truncated LSN // last truncation record; 0 for none
	Created   LSN // last creation record; 0 for none
	// Dropped is the last commit or abort that removes the relation; 0 for none.
	// Only the main fork's entry says so: the other forks' entries are removed.
	Dropped LSN
	Blocks  BlockSet
}

// Gone reports whether the file was dropped and not created again.
func (c *FileChange) Gone() bool { return c.Dropped > c.Created }

// DatabaseEvent is a database created or dropped at LSN. A dropped one takes
// the map's entries for its files with it.
type DatabaseEvent struct {
	LSN    LSN
	Create *DatabaseCreate
	Drop   *DatabaseDrop
}

// TablespaceEvent is a tablespace created or dropped at LSN.
type TablespaceEvent struct {
	LSN    LSN
	Create *TablespaceCreate
	Drop   *TablespaceDrop
}

// RelationMapEvent says that the pg_filenode.map of a database (0: the shared
// one) was last written at LSN.
type RelationMapEvent struct {
	LSN                  LSN
	Database, Tablespace uint32
}

// SettingEvent is a record that states a setting on which copying relies.
// Exactly one of the pointers is set.
type SettingEvent struct {
	LSN            LSN
	FullPageWrites *FullPageWrites
	Parameters     *ParameterChange
}

// UnknownChange is a record that marks an unlogged change of relation files
// (XLR_SPECIAL_REL_UPDATE) and whose meaning is not known. A map with one of
// these does not tell everything.
type UnknownChange struct {
	LSN  LSN
	RMID RMID
	Info uint8
}

func newMap() *Map { return &Map{files: make(map[RelFile]*FileChange)} }

// Files yields every changed relation file in order of its name.
func (m *Map) Files() iter.Seq[*FileChange] {
	return func(yield func(*FileChange) bool) {
		for _, f := range slices.SortedFunc(maps.Keys(m.files), RelFile.compare) {
			if !yield(m.files[f]) {
				return
			}
		}
	}
}

// Len returns the number of changed relation files.
func (m *Map) Len() int { return len(m.files) }

// Lookup returns what happens to the file, or nil.
func (m *Map) Lookup(f RelFile) *FileChange { return m.files[f] }

// file returns the entry of f, made if need be. Records come in runs that touch
// few relations, so most look-ups end in the small table.
func (m *Map) file(f RelFile) *FileChange {
	slot := &m.recent[(f.Relation^uint32(f.Fork)<<4)%uint32(len(m.recent))]
	if c := *slot; c != nil && c.File == f {
		return c
	}
	c := m.files[f]
	if c == nil {
		c = &FileChange{File: f, Limit: NoLimit}
		m.files[f] = c
	}
	*slot = c
	return c
}

// forget removes the entries that drop returns true for.
func (m *Map) forget(drop func(RelFile) bool) {
	clear(m.recent[:])
	maps.DeleteFunc(m.files, func(f RelFile, _ *FileChange) bool { return drop(f) })
}

// read takes in all records that r finds and returns why it stopped. first is
// called behind the first of them.
func (m *Map) read(r *Reader, first func()) error {
	r.headOnly = true
	for m.readPlain(r); r.advance(); m.readPlain(r) {
		if first != nil {
			first()
			first = nil
		}
		if m.Records == 0 {
			m.Start = r.start
		}
		if !m.addPlain(r.raw, r.format, r.opt.BlockSize) && !m.addAny(r) {
			break
		}
		m.Records++
	}
	if m.Records > 0 {
		m.Last, m.End = r.prev, r.Position()
	}
	return r.End()
}

// addAny takes in the current record, whatever it is.
func (m *Map) addAny(r *Reader) bool {
	if !r.parse() {
		return false
	}
	rec := &r.rec
	m.Bytes += uint64(rec.TotalLen)
	for i := range rec.Blocks {
		b := &rec.Blocks[i]
		m.Refs++
		if b.HasImage {
			m.Images++
		}
		m.file(b.File).Blocks.add(b.Block)
	}
	if rec.RMID <= RmRelMap || rec.SpecialRelUpdate() {
		if err := m.addSpecial(rec); err != nil {
			r.corrupt(err)
			return false
		}
	}
	return true
}

// addSpecial takes in a record that may change more than its block references say.
func (m *Map) addSpecial(r *Record) error {
	if r.RMID == RmTransaction && !dropsFiles(r) {
		return nil // by far the most frequent: an ordinary commit
	}
	if r.RMID == RmXLOG && (r.Op() == xlogFPI || r.Op() == xlogFPIForHint) {
		return nil
	}
	detail, err := Decode(r)
	if err != nil {
		return err
	}
	if detail == nil {
		if r.SpecialRelUpdate() {
			m.Unknown = append(m.Unknown, UnknownChange{LSN: r.LSN, RMID: r.RMID, Info: r.Info})
		}
		return nil
	}
	m.apply(r.LSN, detail)
	return nil
}

// dropsFiles reports whether a Transaction record lists relation files.
func dropsFiles(r *Record) bool {
	switch r.Info & xactOpMask {
	case xactCommit, xactAbort, xactCommitPrepared, xactAbortPrepared:
		return r.Info&xactHasInfo != 0 && len(r.Main) >= 12 &&
			binary.LittleEndian.Uint32(r.Main[8:])&xactHasRelFiles != 0
	}
	return false
}

// apply enters a decoded record's meaning.
func (m *Map) apply(at LSN, detail Detail) {
	switch d := detail.(type) {
	case *Commit:
		m.drop(at, d.Dropped)
	case *Abort:
		m.drop(at, d.Dropped)
	case *RelationCreate:
		c := m.file(d.File)
		c.cut(0)
		c.Created = at
	case *RelationTruncate:
		m.truncate(at, d)
	case *DatabaseCreate:
		m.Databases = append(m.Databases, DatabaseEvent{LSN: at, Create: d})
	case *DatabaseDrop:
		m.Databases = append(m.Databases, DatabaseEvent{LSN: at, Drop: d})
		m.forgetDatabase(d)
	case *TablespaceCreate:
		m.Tablespaces = append(m.Tablespaces, TablespaceEvent{LSN: at, Create: d})
	case *TablespaceDrop:
		m.Tablespaces = append(m.Tablespaces, TablespaceEvent{LSN: at, Drop: d})
	case *RelationMapUpdate:
		m.relationMap(RelationMapEvent{LSN: at, Database: d.Database, Tablespace: d.Tablespace})
	case *FullPageWrites:
		m.Settings = append(m.Settings, SettingEvent{LSN: at, FullPageWrites: d})
	case *ParameterChange:
		m.Settings = append(m.Settings, SettingEvent{LSN: at, Parameters: d})
	}
}

// cut notes that the file had no more than limit blocks.
func (c *FileChange) cut(limit uint32) {
	c.Limit = min(c.Limit, limit)
	c.Blocks.truncate(limit)
}

func (m *Map) truncate(at LSN, d *RelationTruncate) {
	cut := func(fork Fork, limit uint32) {
		f := d.File
		f.Fork = fork
		c := m.file(f)
		c.cut(limit)
		c.Truncated = at
	}
	if d.Flags&TruncateHeap != 0 {
		cut(ForkMain, d.Blocks)
	}
	// How long the maps are afterwards is the server's arithmetic; they are
	// small enough to count as changed from the first block on.
	if d.Flags&TruncateVM != 0 {
		cut(ForkVM, 0)
	}
	if d.Flags&TruncateFSM != 0 {
		cut(ForkFSM, 0)
	}
}

func (m *Map) drop(at LSN, files []RelFile) {
	for _, f := range files {
		c := m.file(f)
		c.cut(0)
		c.Dropped = at
		m.forgetForks(f)
	}
}

// forgetForks removes the entries of a relation's other forks.
func (m *Map) forgetForks(f RelFile) {
	for f.Fork = ForkMain + 1; f.Fork <= MaxFork; f.Fork++ {
		if c := m.files[f]; c != nil {
			delete(m.files, f)
			for i := range m.recent {
				if m.recent[i] == c {
					m.recent[i] = nil
				}
			}
		}
	}
}

func (m *Map) forgetDatabase(d *DatabaseDrop) {
	m.forget(func(f RelFile) bool {
		return f.Database == d.Database && slices.Contains(d.Tablespaces, f.Tablespace)
	})
}

func (m *Map) relationMap(e RelationMapEvent) {
	for i := range m.RelationMaps {
		if o := &m.RelationMaps[i]; o.Database == e.Database && o.Tablespace == e.Tablespace {
			*o = e
			return
		}
	}
	m.RelationMaps = append(m.RelationMaps, e)
}

// merge takes in the map of the log that directly follows m's, and uses it up.
// The result is what reading both parts in one go would have given.
func (m *Map) merge(o *Map) {
	if o.Records == 0 {
		return
	}
	if m.Records == 0 {
		m.Start = o.Start
	}
	m.Records += o.Records
	m.Bytes += o.Bytes
	m.Refs += o.Refs
	m.Images += o.Images
	m.Last, m.End = o.Last, o.End
	for _, e := range o.Databases {
		if e.Drop != nil {
			m.forgetDatabase(e.Drop)
		}
	}
	m.Databases = append(m.Databases, o.Databases...)
	m.Tablespaces = append(m.Tablespaces, o.Tablespaces...)
	m.Settings = append(m.Settings, o.Settings...)
	m.Unknown = append(m.Unknown, o.Unknown...)
	for _, e := range o.RelationMaps {
		m.relationMap(e)
	}
	m.mergeFiles(o)
}

func (m *Map) mergeFiles(o *Map) {
	for f, c := range o.files {
		if c.Dropped != 0 {
			m.forgetForks(f)
		}
	}
	for f, c := range o.files {
		have := m.files[f]
		if have == nil {
			m.files[f] = c
			continue
		}
		if c.Limit != NoLimit {
			have.cut(c.Limit)
		}
		have.Truncated = max(have.Truncated, c.Truncated)
		have.Created = max(have.Created, c.Created)
		have.Dropped = max(have.Dropped, c.Dropped)
		have.Blocks.union(&c.Blocks)
	}
}

// String sums the map up for logs and tests.
func (m *Map) String() string {
	blocks := 0
	for _, c := range m.files {
		blocks += c.Blocks.Len()
	}
	return fmt.Sprintf("%d blocks of %d relation files changed by %d records from %s to %s", blocks, len(m.files), m.Records, m.Start, m.End)
}
