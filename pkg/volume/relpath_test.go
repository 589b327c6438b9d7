package volume

import (
	"testing"

	"tidemark/pkg/wal"
)

const dir15 = "PG_15_202209061"

func TestRelPath(t *testing.T) {
	rel := func(space, db, rel uint32, fork wal.Fork, seg uint32) RelSegment {
		return RelSegment{wal.RelFile{Tablespace: space, Database: db, Relation: rel, Fork: fork}, seg}
	}
	for path, want := range map[string]RelSegment{
		"base/5/1259":                             rel(1663, 5, 1259, wal.ForkMain, 0),
		"base/5/1259_fsm":                         rel(1663, 5, 1259, wal.ForkFSM, 0),
		"base/5/1259_vm":                          rel(1663, 5, 1259, wal.ForkVM, 0),
		"base/5/16384_init":                       rel(1663, 5, 16384, wal.ForkInit, 0),
		"base/5/16384.1":                          rel(1663, 5, 16384, wal.ForkMain, 1),
		"base/5/16384_fsm.12":                     rel(1663, 5, 16384, wal.ForkFSM, 12),
		"global/1262":                             rel(1664, 0, 1262, wal.ForkMain, 0),
		"base/4294967295/429496":                  rel(1663, 4294967295, 429496, wal.ForkMain, 0),
		"pg_tblspc/16500/" + dir15 + "/5/16501.3": rel(16500, 5, 16501, wal.ForkMain, 3),
	} {
		got, ok := ParseRelPath(path)
		if !ok || got != want {
			t.Errorf("%s: %+v, %v", path, got, ok)
		}
		if back := got.Path(dir15); back != path {
			t.Errorf("%s: formatted as %s", path, back)
		}
	}
	for _, path := range []string{
		"", "1259", "base/1259", "base/5/", "base/5/01259", "base/5/1259.0", "base/5/1259.01", "base/5/1259_main",
		"base/5/1259_fsm_vm", "base/5/1259_", "base/5/1259.", "base/5/+1259", "base/0/1259", "base/5/0", "base/5/1259.1_fsm",
		"base/5/t3_16400", "base/5/4294967296", "base/5/1259 ", "base/5/PG_VERSION", "base/5/pg_filenode.map",
		"global/5/1262", "global/pg_control", "pg_tblspc/16500/5/16501", "pg_tblspc/16500/PG_15/5/16501",
		"pg_tblspc/1663/" + dir15 + "/5/16501", "./base/5/1259", "base//5/1259",
	} {
		if got, ok := ParseRelPath(path); ok {
			t.Errorf("%q was taken for %+v", path, got)
		}
	}
}

func TestClassify(t *testing.T) {
	for path, want := range map[string]Class{
		"base/5/1259": ClassRelMain, "base/5/1259.2": ClassRelMain, "base/5/1259_fsm": ClassRelFork,
		"base/5/1259_vm.1": ClassRelFork, "base/5/16384_init": ClassRelFork, "base/5/t3_16400": ClassSkip,
		"base/5/t3_16400_fsm.1": ClassSkip, "base/5/t_16400": ClassCopy, "base/5/tx": ClassCopy,
		"base/5/PG_VERSION": ClassVersion, "PG_VERSION": ClassVersion,
		"pg_tblspc/16500/" + dir15 + "/5/16501": ClassRelMain, "pg_tblspc/16500/" + dir15 + "/5/t1_16501": ClassSkip,
		"pg_tblspc/16500/" + dir15 + "/pgsql_tmp/pgsql_tmp12.0": ClassSkip,
		"base/pgsql_tmp/pgsql_tmp12.0":                          ClassSkip, "base/pgsql_tmp/x": ClassSkip,
		"base/5/pg_internal.init": ClassSkip, "global/pg_internal.init.1234": ClassSkip,
		"global/pg_control": ClassControl, "base/5/pg_filenode.map": ClassCopy, "pg_xact/0000": ClassCopy,
		"postgresql.conf": ClassConfig, "postgresql.auto.conf": ClassConfig, "pg_hba.conf": ClassConfig,
		"pg_ident.conf": ClassConfig, "conf.d/postgresql.conf": ClassCopy, "postgresql.auto.conf.tmp": ClassSkip,
		"postmaster.pid": ClassSkip, "postmaster.opts": ClassSkip, "standby.signal": ClassSkip, "current_logfiles": ClassSkip,
		"backup_label": ClassLabel, "tablespace_map": ClassLabel, "backup_label.old": ClassLabel, "backup_manifest": ClassSkip,
		"pg_wal/000000010000000000000001": ClassWAL, "pg_wal/00000002.history": ClassWAL,
		"pg_wal/archive_status/000000010000000000000001.ready": ClassSkip, "pg_wal/xlogtemp.12": ClassSkip,
		"pg_wal/summaries/x.summary": ClassSkip, "pg_notify/0000": ClassSkip, "pg_replslot/s/state": ClassSkip,
		"pg_subtrans/0000": ClassSkip, "pg_stat/pgstat.stat": ClassCopy, "tidemark/journal": ClassSkip,
		"PG_VERSION.tidemark.tmp": ClassSkip, "recovery.tidemark.json": ClassSkip, "it's \"odd\"\xff": ClassCopy,
	} {
		if got := Classify(path); got != want {
			t.Errorf("%q: %s, want %s", path, got, want)
		}
	}
	for path, want := range map[string]Class{
		"base": ClassDir, "base/5": ClassDir, "pg_wal": ClassDir, "pg_wal/archive_status": ClassKeepEmpty,
		"pg_replslot": ClassKeepEmpty, "pg_replslot/slot": ClassSkip, "pg_stat_tmp": ClassKeepEmpty,
		"base/pgsql_tmp": ClassSkip, "pg_stat": ClassDir, "tidemark": ClassSkip, "pg_tblspc/16500": ClassDir,
		"pg_tblspc/16500/" + dir15 + "/pgsql_tmp": ClassSkip,
	} {
		if got := ClassifyDir(path); got != want {
			t.Errorf("directory %q: %s, want %s", path, got, want)
		}
	}
}

func TestUnlogged(t *testing.T) {
	u := Unlogged{}
	u.Note("base/5/16384_init")
	u.Note("base/5/16385")
	for path, want := range map[string]bool{
		"base/5/16384": true, "base/5/16384.1": true, "base/5/16384_fsm": true, "base/5/16384_init": false,
		"base/5/16385": false, "base/6/16384": false, "pg_xact/0000": false,
	} {
		if got := u.Omit(path); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
}
