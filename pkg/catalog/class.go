package catalog

import (
	"encoding/binary"
	"strconv"
	"strings"

	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// Offsets of columns in pg_class (catalog/pg_class.h). Part of the format; 18
// put relallfrozen before reltoastrelid.
const (
	classNamespace  = 68
	classFile       = 88
	classTablespace = 92
	classToast      = 108
	classPersist    = 114
	classKind       = 115
	classSize       = 116
	classShift18    = 4
)

// database reads a database's catalogs at the first question about it; nil
// where that fails: names are then not known.
func (c *Catalog) database(oid uint32) *database {
	d, ok := c.read[oid]
	if ok {
		return d
	}
	c.read[oid] = nil
	for _, db := range append([]Database{{}}, c.Databases...) {
		if db.OID == oid {
			d = c.readDatabase(db)
		}
	}
	c.read[oid] = d
	return d
}

// readDatabase reads pg_class and pg_namespace. Database 0 is the shared
// catalogs, which the pg_class of any database lists.
func (c *Catalog) readDatabase(db Database) *database {
	shared := db.OID == 0
	if shared {
		if len(c.Databases) == 0 {
			return nil
		}
		db = c.Databases[0]
	}
	dir := c.databaseDir(db.Tablespace, db.OID)
	local, err := c.readMap(dir)
	if err != nil {
		return nil
	}
	if shared {
		if local, err = c.merged(local); err != nil {
			return nil
		}
	}
	r := classReader{c: c, db: db, shared: shared, mapped: local,
		out: &database{files: map[wal.RelFile]*Relation{}, live: map[uint32]*Relation{}}}
	class := wal.RelFile{Tablespace: db.Tablespace, Database: db.OID, Relation: local[classOID]}
	if err := c.eachRow(class, r.row); err != nil {
		return nil
	}
	return r.named()
}

// merged adds the shared map to a database's.
func (c *Catalog) merged(local map[uint32]uint32) (map[uint32]uint32, error) {
	global, err := c.readMap("global")
	for oid, file := range global {
		local[oid] = file
	}
	return local, err
}

// classReader takes in the rows of a pg_class.
type classReader struct {
	c        *Catalog
	db       Database
	shared   bool
	mapped   map[uint32]uint32
	out      *database
	schemas  []schemaOf
	pgSchema *Relation // pg_namespace
}

type schemaOf struct {
	rel *Relation
	oid uint32
}

func (r *classReader) row(t tuple) {
	row, shift := t.columns(), 0
	if r.c.control.Major() >= 18 {
		shift = classShift18
	}
	if len(row) < classSize+shift {
		return
	}
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(row[at:]) }
	rel := &Relation{OID: u32(0), Database: r.db.Name, Name: name(row), Kind: Kind(row[classKind+shift]), Toast: u32(classToast + shift),
		Unlogged: row[classPersist+shift] == 'u', Temp: row[classPersist+shift] == 't'}
	file := wal.RelFile{Tablespace: u32(classTablespace), Database: r.db.OID, Relation: u32(classFile)}
	if file.Relation == 0 {
		file.Relation = r.mapped[rel.OID]
	}
	if file.Tablespace == 0 {
		file.Tablespace = r.db.Tablespace
	}
	if file.Tablespace == volume.GlobalTablespace {
		file.Database = 0
		rel.Database = ""
	}
	if (file.Database == 0) != r.shared {
		return
	}
	live := r.c.live(t)
	if file.Relation != 0 {
		rel.File = file
		if known := r.out.files[file]; known == nil || live || transient(known) != 0 {
			r.out.files[file] = rel
		}
		if rel.System() {
			r.out.catalogs = append(r.out.catalogs, file)
		}
	}
	if live {
		r.out.live[rel.OID] = rel
	}
	if rel.OID == namespaceOID && live {
		r.pgSchema = rel
	}
	r.schemas = append(r.schemas, schemaOf{rel, u32(classNamespace)})
}

// transient returns the OID of the table for which the server made rel while it
// rewrote it: at the end the two change files, so that what was the table's file
// goes with the name pg_temp_<OID>. It is 0 for all others.
func transient(rel *Relation) uint32 {
	number, ok := strings.CutPrefix(rel.Name, "pg_temp_")
	oid, err := strconv.ParseUint(number, 10, 32)
	if !ok || err != nil {
		return 0
	}
	return uint32(oid)
}

// named gives the relations their schemas' names.
func (r *classReader) named() *database {
	names := map[uint32]string{11: "pg_catalog", 99: "pg_toast"}
	if r.pgSchema != nil {
		err := r.c.eachRow(r.pgSchema.File, func(t tuple) {
			row := t.columns()
			if len(row) < nameEnd {
				return
			}
			oid := binary.LittleEndian.Uint32(row)
			if names[oid] == "" || r.c.live(t) {
				names[oid] = name(row)
			}
		})
		if err != nil {
			return nil
		}
	}
	for _, s := range r.schemas {
		s.rel.Schema = names[s.oid]
	}
	for file, rel := range r.out.files {
		if owner := r.out.live[transient(rel)]; owner != nil && r.out.live[rel.OID] != rel {
			of := *owner
			of.File = file
			r.out.files[file] = &of
		}
	}
	return r.out
}
