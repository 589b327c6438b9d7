package wal

import (
	"bytes"
	"fmt"
)

// storage decodes the records of resource manager Storage (catalog/storage_xlog.h).
func (d *decoder) storage(op uint8) Detail {
	switch op {
	case smgrCreate: // xl_smgr_create
		c := &RelationCreate{File: d.relFile()}
		fork := d.u32()
		if fork > uint32(MaxFork) {
			d.fail("unknown fork %d", fork)
			return nil
		}
		c.File.Fork = Fork(fork)
		return c
	case smgrTruncate: // xl_smgr_truncate
		return &RelationTruncate{Blocks: d.u32(), File: d.relFile(), Flags: d.u32()}
	}
	return nil
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
	}
}

// database decodes the records of resource manager Database
// (commands/dbcommands_xlog.h). 15 split creation in two and moved the drop.
func (d *decoder) database(op uint8) Detail {
	switch op {
	case dbaseCreateCopy: // xl_dbase_create_file_copy_rec
		return &DatabaseCreate{
			Database: d.u32(), Tablespace: d.u32(), FileCopy: true,
			SourceDatabase: d.u32(), SourceTablespace: d.u32(),
		}
	case d.format.dbaseWALLog: // xl_dbase_create_wal_log_rec
		return &DatabaseCreate{Database: d.u32(), Tablespace: d.u32()}
	case d.format.dbaseDrop: // xl_dbase_drop_rec
		return &DatabaseDrop{Database: d.u32(), Tablespaces: d.u32s(d.count(4))}
	}
	return nil
}

// tablespace decodes the records of resource manager Tablespace (commands/tablespace.h).
func (d *decoder) tablespace(op uint8) Detail {
	switch op {
	case tblspcCreate: // xl_tblspc_create_rec
		return &TablespaceCreate{Tablespace: d.u32(), Path: d.text()}
	case tblspcDrop: // xl_tblspc_drop_rec
		return &TablespaceDrop{Tablespace: d.u32()}
	}
	return nil
}

// relationMap decodes xl_relmap_update (utils/relmapper.h).
func (d *decoder) relationMap() Detail {
	u := &RelationMapUpdate{Database: d.u32(), Tablespace: d.u32()}
	u.Data = bytes.Clone(d.take(d.count(1)))
	return u
}
