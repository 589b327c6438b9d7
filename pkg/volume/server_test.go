package volume_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark/internal/pgtest"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// TestPagesOfServer computes the checksum of every page of a real cluster, and
// recognises every file of its databases.
func TestPagesOfServer(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		n := pgtest.New(t, pgtest.Options{Major: major, Checksums: true})
		n.Exec("CREATE TABLE t AS SELECT i, repeat('x', i % 500) AS f FROM generate_series(1, 20000) i")
		n.Exec("CREATE INDEX ON t (i); CREATE UNLOGGED TABLE u (i int); INSERT INTO u VALUES (1)")
		n.Exec("VACUUM t")
		n.Exec(fmt.Sprintf("CREATE TABLESPACE ts LOCATION '%s'", n.TempDir("ts")))
		n.Exec("CREATE TABLE s TABLESPACE ts AS SELECT generate_series(1, 1000) i")
		paths := strings.Fields(n.SQL("SELECT pg_relation_filepath(c) FROM unnest('{t,u,s,t_i_idx,pg_class,pg_database}'::regclass[]) c"))
		n.Stop()
		c, err := volume.ReadControl(n.Dir)
		if err != nil {
			t.Fatal(err)
		}
		if c.State != volume.StateShutdowned || !c.Checksums() || c.Major() != major {
			t.Fatalf("control file: %s, checksums %v, major %d", c.State, c.Checksums(), c.Major())
		}
		unlogged := volume.Unlogged{}
		pages := 0
		err = volume.Walk(volume.OS, n.Dir, func(e volume.WalkEntry) error {
			if e.IsDir() || e.IsLink() {
				return nil
			}
			unlogged.Note(e.Path)
			switch class := volume.Classify(e.Path); class {
			case volume.ClassRelMain, volume.ClassRelFork:
				rel, ok := volume.ParseRelPath(e.Path)
				if !ok || rel.Path(c.VersionDir()) != e.Path {
					t.Errorf("%s is %+v", e.Path, rel)
				}
				pages += checkFile(t, filepath.Join(n.Dir, e.Path), rel.FirstBlock(c.RelSegSize))
			}
			paths = slices.DeleteFunc(paths, func(p string) bool { return p == e.Path && volume.Classify(p) == volume.ClassRelMain })
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(paths) > 0 {
			t.Errorf("not recognised as relations: %v", paths)
		}
		if len(unlogged) != 1 {
			t.Errorf("unlogged relations: %v", unlogged)
		}
		if pages < 1000 {
			t.Errorf("only %d pages were seen", pages)
		}
	})
}

func checkFile(t *testing.T, name string, first uint32) int {
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(data) / 8192 {
		page := data[i*8192:][:8192]
		if s := volume.CheckPage(page, first+uint32(i)); !s.OK() {
			t.Errorf("%s, block %d: %s", name, i, s)
		}
		if len(data) < 1<<20 && !volume.IsZero(page) {
			page[100] ^= 1
			if s := volume.CheckPage(page, first+uint32(i)); s != volume.PageBadChecksum {
				t.Errorf("%s, block %d: a flipped bit went unnoticed: %s", name, i, s)
			}
		}
	}
	return len(data) / 8192
}

// TestTombstoneStopsServer: with a tombstone no server starts or changes
// anything, it says which file it stopped at, pg_control stays readable, and
// when the tombstone gives way the server starts.
func TestTombstoneStopsServer(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		n := pgtest.New(t, pgtest.Options{Major: major})
		n.Exec("CREATE TABLE t AS SELECT 1 AS i")
		n.Kill() // not shut down cleanly: recovery would want to run
		before, err := os.ReadFile(filepath.Join(n.Dir, volume.ControlPath))
		if err != nil {
			t.Fatal(err)
		}
		stone := volume.Tombstone{Operation: "restore", Work: "w1", Started: time.Now().Truncate(time.Second).UTC(),
			Command: "dbrecover restore --repo '/my repo' -D " + n.Dir, Hint: "nothing is lost"}
		if err := volume.PlaceTombstone(volume.OS, n.Dir, stone); err != nil {
			t.Fatal(err)
		}
		if err := n.TryStart(); err == nil {
			t.Fatal("the server started on an incomplete directory")
		}
		if log := n.Log(); !strings.Contains(log, `FATAL:  invalid data in file "backup_label"`) {
			t.Errorf("the server's log does not name the file:\n%s", log)
		}
		after, err := os.ReadFile(filepath.Join(n.Dir, volume.ControlPath))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(before, after) {
			t.Error("the server changed pg_control")
		}
		if got, err := volume.ReadTombstone(volume.OS, n.Dir); err != nil || got != stone {
			t.Errorf("the tombstone reads %+v, %v", got, err)
		}
		if err := volume.FinishTombstone(volume.OS, n.Dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		n.Start()
		if got := n.SQL("SELECT i FROM t"); got != "1" {
			t.Errorf("the table holds %q", got)
		}
	})
}

// TestHistoryOfServer: the files that a server writes at two promotions are
// the ones that Child writes.
func TestHistoryOfServer(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		n := pgtest.New(t, pgtest.Options{Major: major})
		h := timeline.Root(1)
		for id := timeline.ID(2); id <= 3; id++ {
			n.Stop()
			n.AppendFile("standby.signal", "")
			n.Start()
			n.Promote()
			data, err := os.ReadFile(filepath.Join(n.Dir, "pg_wal", wal.HistoryName(id)))
			if err != nil {
				t.Fatal(err)
			}
			got, err := timeline.Parse(id, data)
			if err != nil {
				t.Fatal(err)
			}
			last := got.Entries[len(got.Entries)-1]
			if h, err = h.Child(id, last.Switch, last.Reason); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(h.Format(), data) {
				t.Errorf("timeline %d: wrote %q, the server wrote %q", id, h.Format(), data)
			}
		}
	})
}

// TestManifestOfServer: pg_verifybackup accepts what we write, and notices
// what was changed after that.
func TestManifestOfServer(t *testing.T) {
	n := pgtest.New(t, pgtest.Options{Major: 15})
	n.Exec("CREATE TABLE t AS SELECT generate_series(1, 1000) i; CHECKPOINT")
	n.Stop()
	c, err := volume.ReadControl(n.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"odd 'name'": "x", "no\xffutf8": "y", "quote\"back\\slash": ""} {
		if err := os.WriteFile(filepath.Join(n.Dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	algorithms := []volume.ChecksumAlgorithm{"", volume.ChecksumCRC32C, volume.ChecksumSHA224, volume.ChecksumSHA256,
		volume.ChecksumSHA384, volume.ChecksumSHA512}
	m := &volume.Manifest{Version: volume.ManifestVersion(15), SystemIdentifier: c.SystemIdentifier}
	err = volume.Walk(volume.OS, n.Dir, func(e volume.WalkEntry) error {
		if !e.IsRegular() || strings.HasPrefix(e.Path, "pg_wal/") {
			return nil
		}
		f := volume.ManifestFile{Path: e.Path, Size: e.Info.Size(), ModTime: e.Info.ModTime(),
			Algorithm: algorithms[len(m.Files)%len(algorithms)]}
		if f.Algorithm != "" {
			h, err := f.Algorithm.New()
			if err != nil {
				return err
			}
			data, err := os.ReadFile(filepath.Join(n.Dir, e.Path))
			if err != nil {
				return err
			}
			h.Write(data)
			f.Checksum = h.Sum(nil)
		}
		m.Files = append(m.Files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	m.WALRanges = []volume.ManifestRange{{Timeline: 1, Start: c.CheckPoint, End: c.CheckPoint + 0x78}}
	data, err := m.Format()
	if err != nil {
		t.Fatal(err)
	}
	if err := volume.WriteFile(volume.OS, filepath.Join(n.Dir, volume.ManifestFileName), data, 0o600); err != nil {
		t.Fatal(err)
	}
	verify := func() (string, error) {
		out, err := exec.Command(pgtest.Tool(t, 15, "pg_verifybackup"), n.Dir).CombinedOutput()
		return string(out), err
	}
	if out, err := verify(); err != nil {
		t.Fatalf("pg_verifybackup: %v\n%s", err, out)
	}
	at := slices.IndexFunc(m.Files, func(f volume.ManifestFile) bool { return f.Algorithm == volume.ChecksumSHA384 && f.Size > 8192 })
	if err := os.WriteFile(filepath.Join(n.Dir, m.Files[at].Path), make([]byte, m.Files[at].Size), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := verify(); err == nil {
		t.Fatalf("pg_verifybackup did not look: %s", out)
	}
}

// TestServersOwnLabels reads a label, a tablespace map and a manifest as the
// server writes them, and writes them back byte for byte.
func TestServersOwnLabels(t *testing.T) {
	n := pgtest.New(t, pgtest.Options{Major: 15})
	space := filepath.Join(n.TempDir("ts"), "with blank")
	if err := os.Mkdir(space, 0o700); err != nil {
		t.Fatal(err)
	}
	n.Exec(fmt.Sprintf("CREATE TABLESPACE ts LOCATION '%s'", space))
	copied := filepath.Join(n.TempDir("copy"), "data")
	out, err := exec.Command(pgtest.Tool(t, 15, "pg_basebackup"), "-d", n.ConnInfo(), "-D", copied, "-c", "fast", "-l", "my label",
		"--tablespace-mapping="+space+"="+filepath.Join(n.TempDir("ts2"), "x")).CombinedOutput()
	if err != nil {
		t.Fatalf("pg_basebackup: %v\n%s", err, out)
	}
	data, err := os.ReadFile(filepath.Join(copied, volume.BackupLabelFile))
	if err != nil {
		t.Fatal(err)
	}
	label, err := volume.ParseBackupLabel(data)
	if err != nil || label.Label != "my label" || label.Method != volume.MethodStreamed || label.Timeline() != 1 {
		t.Errorf("label: %+v, %v", label, err)
	} else if !bytes.Equal(label.Format(), data) {
		t.Errorf("label written back as %q, was %q", label.Format(), data)
	}
	data, err = os.ReadFile(filepath.Join(copied, volume.ManifestFileName))
	if err != nil {
		t.Fatal(err)
	}
	m, err := volume.ParseManifest(data)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := m.Format(); err != nil || !bytes.Equal(again, data) {
		t.Errorf("the manifest is not written back as it was: %v\n%s", err, firstDifference(data, again))
	}
	want := fmt.Sprintf("%s %s\n", n.SQL("SELECT oid FROM pg_tablespace WHERE spcname = 'ts'"), space)
	got := n.SQL(`SELECT spcmapfile FROM (SELECT pg_backup_start('x', true)) s, LATERAL pg_backup_stop(false)`)
	links, err := volume.ParseTablespaceMap([]byte(strings.TrimSpace(got) + "\n"))
	if err != nil || string(volume.FormatTablespaceMap(links)) != want {
		t.Errorf("map: %q, %v, want %q", got, err, want)
	}
}

func firstDifference(a, b []byte) string {
	la, lb := bytes.Split(a, []byte("\n")), bytes.Split(b, []byte("\n"))
	for i := range min(len(la), len(lb)) {
		if !bytes.Equal(la[i], lb[i]) {
			return fmt.Sprintf("line %d: %s\nbecame:  %s", i+1, la[i], lb[i])
		}
	}
	return fmt.Sprintf("%d lines became %d", len(la), len(lb))
}

// TestControlOfServer compares with what pg_controldata prints of a server
// that runs, was killed, and is a standby, and with pg_control_* of any major.
func TestControlOfServer(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		n := pgtest.New(t, pgtest.Options{Major: major, Config: []string{"track_commit_timestamp = on"}})
		n.Exec("CREATE TABLE t (i int); CHECKPOINT")
		want := n.SQL(`SELECT concat_ws('|', system_identifier, pg_control_version, catalog_version_no) FROM pg_control_system()`) + "|" +
			n.SQL(`SELECT concat_ws('|', checkpoint_lsn, redo_lsn, timeline_id, prev_timeline_id, full_page_writes, next_xid, next_oid,
				next_multixact_id, oldest_xid, oldest_active_xid, extract(epoch from checkpoint_time)::bigint) FROM pg_control_checkpoint()`) + "|" +
			n.SQL(`SELECT concat_ws('|', max_data_alignment, database_block_size, blocks_per_segment, wal_block_size, bytes_per_wal_segment,
				max_identifier_length, max_index_columns, max_toast_chunk_size, large_object_chunk_size, float8_pass_by_value, data_page_checksum_version)
				FROM pg_control_init()`)
		c, err := volume.ReadControl(n.Dir)
		if err != nil {
			t.Fatal(err)
		}
		tf := map[bool]string{true: "t", false: "f"}
		cp := c.CheckPointCopy
		got := fmt.Sprintf("%d|%d|%d|%s|%s|%d|%d|%s|%d:%d|%d|%d|%d|%d|%d|%d|%d|%d|%d|%d|%d|%d|%d|%d|%s|%d",
			c.SystemIdentifier, c.PgControlVersion, c.CatalogVersionNo, c.CheckPoint, cp.Redo, cp.ThisTimeLineID, cp.PrevTimeLineID,
			tf[cp.FullPageWrites], cp.NextXid>>32, uint32(cp.NextXid), cp.NextOid, cp.NextMulti, cp.OldestXid, cp.OldestActiveXid,
			cp.Time.Unix(), c.MaxAlign, c.BlockSize, c.RelSegSize, c.XLogBlockSize, uint32(c.XLogSegSize), c.NameDataLen,
			c.IndexMaxKeys, c.ToastMaxChunkSize, c.LoBlkSize, tf[c.Float8ByVal], c.DataChecksumVersion)
		if got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if c.State != volume.StateInProduction || !c.TrackCommitTimestamp {
			t.Errorf("state %s, track_commit_timestamp %v", c.State, c.TrackCommitTimestamp)
		}
		pid, err := volume.RunningServer(volume.OS, n.Dir)
		if err != nil || pid == nil || pid.Port != n.Port || pid.Status != "ready" || pid.DataDir != n.Dir {
			t.Errorf("postmaster.pid: %+v, %v", pid, err)
		}
		n.Stop()
		if pid, err := volume.RunningServer(volume.OS, n.Dir); err != nil || pid != nil {
			t.Errorf("after the stop: %+v, %v", pid, err)
		}
	})
}
