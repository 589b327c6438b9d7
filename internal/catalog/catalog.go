package catalog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// OIDs that are part of the format (catalog/pg_*.h, access/transam.h).
const (
	FirstNormalOID = 16384 // smaller ones belong to the system
	LargeObjects   = 2613  // pg_largeobject

	classOID     = 1259 // pg_class
	namespaceOID = 2615 // pg_namespace
	databaseOID  = 1262 // pg_database, shared
	authidOID    = 1260 // pg_authid, shared
)

// Kind is a relation's kind as in pg_class.relkind.
type Kind byte

// The kinds that have a file.
const (
	Table    Kind = 'r'
	Index    Kind = 'i'
	Sequence Kind = 'S'
	Toast    Kind = 't'
	MatView  Kind = 'm'
)

// Relation is a relation as its row in pg_class has it.
type Relation struct {
	OID      uint32
	Database string
	Schema   string
	Name     string
	Kind     Kind
	Unlogged bool
	Temp     bool
	Toast    uint32      // OID of its TOAST table, 0 for none
	File     wal.RelFile // its main fork; the zero value where it has no file
}

// System tells whether the relation is a catalog, an index of one, or such a
// one's TOAST table.
func (r *Relation) System() bool { return r.OID < FirstNormalOID }

// String writes "database.schema.relation".
func (r *Relation) String() string {
	if r.Database == "" {
		return r.Schema + "." + r.Name
	}
	return r.Database + "." + r.Schema + "." + r.Name
}

// Options say what is known beyond the files.
type Options struct {
	// Committed, when set, knows of transactions whose commit is not in pg_xact
	// yet, as it is after a crash.
	Committed func(xid uint32) bool
}

// Catalog is what the files say. It is not safe for use by several goroutines.
type Catalog struct {
	Databases []Database
	Superuser string // the name of a role that may do everything, "" where none is found

	dir     string
	control *volume.Control
	opt     Options
	clog    map[uint32][]byte
	read    map[uint32]*database
}

// Database is a row of pg_database.
type Database struct {
	OID        uint32
	Name       string
	Tablespace uint32 // where its catalogs lie
}

// database is what has been read of one: by file every version of a row of
// pg_class, by OID the one that counts.
type database struct {
	files    map[wal.RelFile]*Relation
	live     map[uint32]*Relation
	catalogs []wal.RelFile
}

// Open reads the shared catalogs of the data directory dir.
func Open(dir string, opt Options) (*Catalog, error) {
	control, err := volume.ReadControl(dir)
	if err != nil {
		return nil, err
	}
	c := &Catalog{dir: dir, control: control, opt: opt, clog: map[uint32][]byte{}, read: map[uint32]*database{}}
	shared, err := c.readMap("global")
	if err != nil {
		return nil, err
	}
	global := wal.RelFile{Tablespace: volume.GlobalTablespace}
	global.Relation = shared[databaseOID]
	err = c.eachRow(global, func(t tuple) {
		if row := t.columns(); len(row) >= nameEnd && c.live(t) {
			oid := binary.LittleEndian.Uint32(row)
			c.Databases = append(c.Databases, Database{OID: oid, Name: name(row), Tablespace: c.home(oid)})
		}
	})
	if err != nil {
		return nil, err
	}
	global.Relation = shared[authidOID]
	return c, c.eachRow(global, func(t tuple) {
		if row := t.columns(); len(row) > nameEnd && row[nameEnd] != 0 && c.live(t) && (c.Superuser == "" || binary.LittleEndian.Uint32(row) == 10) {
			c.Superuser = name(row)
		}
	})
}

// nameEnd is where the second column, a name of 64 bytes, ends.
const nameEnd = 4 + 64

// name is the text of the second column.
func name(row []byte) string {
	text, _, _ := bytes.Cut(row[4:nameEnd], []byte{0})
	return string(text)
}

// home is the tablespace in which a database's catalogs lie: where its file map is.
func (c *Catalog) home(db uint32) uint32 {
	spaces, err := os.ReadDir(filepath.Join(c.dir, "pg_tblspc"))
	if err != nil {
		return volume.DefaultTablespace
	}
	for _, e := range spaces {
		space, err := strconv.ParseUint(e.Name(), 10, 32)
		if err != nil {
			continue
		}
		path := filepath.Join(c.dir, c.databaseDir(uint32(space), db), "pg_filenode.map")
		if _, err := os.Stat(path); err == nil {
			return uint32(space)
		}
	}
	return volume.DefaultTablespace
}

// databaseDir is the path of a database's directory in a tablespace.
func (c *Catalog) databaseDir(space, db uint32) string {
	if space == volume.DefaultTablespace {
		return fmt.Sprintf("base/%d", db)
	}
	return fmt.Sprintf("pg_tblspc/%d/%s/%d", space, c.control.VersionDir(), db)
}

// readMap reads the pg_filenode.map of a directory.
func (c *Catalog) readMap(dir string) (map[uint32]uint32, error) {
	const magic = 0x592717
	path := filepath.Join(c.dir, dir, "pg_filenode.map")
	data, err := volume.ReadFile(volume.OS, path, 0)
	if err != nil {
		return nil, err
	}
	if len(data) < 8 || binary.LittleEndian.Uint32(data) != magic {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("not a relation map")}
	}
	out := map[uint32]uint32{}
	n := int(binary.LittleEndian.Uint32(data[4:]))
	for at := 8; n > 0 && at+8 <= len(data); n, at = n-1, at+8 {
		out[binary.LittleEndian.Uint32(data[at:])] = binary.LittleEndian.Uint32(data[at+4:])
	}
	return out, nil
}

// ByFile finds the relation that has, or had, a main fork of that name; nil
// where it is not known.
func (c *Catalog) ByFile(f wal.RelFile) *Relation {
	f.Fork = wal.ForkMain
	if d := c.database(f.Database); d != nil {
		return d.files[f]
	}
	return nil
}

// ByOID finds a relation of a database as it is now; nil where there is none.
func (c *Catalog) ByOID(db, oid uint32) *Relation {
	if d := c.database(db); d != nil {
		return d.live[oid]
	}
	return nil
}

// Relations calls fn for every relation of a database as it is now.
func (c *Catalog) Relations(db uint32, fn func(*Relation)) {
	if d := c.database(db); d != nil {
		for _, r := range d.live {
			fn(r)
		}
	}
}

// SystemFiles are the main forks of a database's catalogs and their indexes,
// those of versions of pg_class's rows that no longer count among them.
func (c *Catalog) SystemFiles(db uint32) []wal.RelFile {
	if d := c.database(db); d != nil {
		return d.catalogs
	}
	return nil
}
