package rewind

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/volume/faultfs"
	"tidemark/pkg/wal"
)

// TestRareRefusals: what the runbook names beside TestRefusals: an upgrade, an
// extension's records, files that are missing or in the way, and what an
// earlier run left.
func TestRareRefusals(t *testing.T) {
	p := newPair(t, pgtest.Options{WALSegMB: 1})
	p.new.Promote()
	at, err := wal.ParseLSN(p.old.InsertLSN())
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		p.old.Exec("SELECT pg_logical_emit_message(false, 'an', 'extension')")
	}
	p.old.Exec("CREATE TABLE lost AS SELECT generate_series(1, 100) AS i")
	p.old.Stop()
	p.new.Stop()
	fromDir := p.options()
	fromDir.SourceConn, fromDir.SourceDir, fromDir.WriteRecoveryConf = "", p.new.Dir, false

	t.Run("upgrade", func(t *testing.T) {
		major := 14
		if p.old.Major == major {
			major = 15
		}
		c, err := volume.ParseControl([]byte(readFile(t, filepath.Join("..", "..", "testdata", fmt.Sprint(major), "pg_control"))))
		if err != nil {
			t.Fatal(err)
		}
		ours, err := volume.ReadControl(p.new.Dir)
		if err != nil {
			t.Fatal(err)
		}
		c.SystemIdentifier = ours.SystemIdentifier
		restore := damage(t, filepath.Join(p.new.Dir, volume.ControlPath), func([]byte) []byte { return c.Encode() })
		refused(t, fromDir, exit.Refused, fmt.Sprintf("target is PostgreSQL %d, source is PostgreSQL %d", p.old.Major, major))
		restore()
	})
	t.Run("another PG_VERSION", func(t *testing.T) {
		restore := damage(t, filepath.Join(p.old.Dir, "PG_VERSION"), func([]byte) []byte { return fmt.Appendln(nil, 31-p.old.Major) })
		refused(t, fromDir, exit.Refused, "PG_VERSION says")
		restore()
	})
	t.Run("history file missing", func(t *testing.T) {
		name := filepath.Join(p.new.Dir, "pg_wal", wal.HistoryName(2))
		if err := os.Rename(name, name+"~"); err != nil {
			t.Fatal(err)
		}
		refused(t, fromDir, exit.Failed, "has no history file of it")
		if err := os.Rename(name+"~", name); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a record that is not known", func(t *testing.T) {
		name, offset := p.message(at)
		restore := damage(t, name, func(data []byte) []byte { markSpecial(data[offset:]); return data })
		refused(t, fromDir, exit.Refused, "changes relation files in a way that is not known")
		restore()
	})
	p.new.Start()
	t.Run("tablespace in use", func(t *testing.T) {
		p.new.Exec("CREATE TABLESPACE sp LOCATION '" + p.new.TempDir("space") + "'")
		p.new.Exec("CREATE TABLE spaced TABLESPACE sp AS SELECT 1 AS i")
		refused(t, p.options(), exit.Refused, "is in use")
		p.new.Exec("DROP TABLE spaced")
		p.new.Exec("DROP TABLESPACE sp")
	})
	t.Run("undone half-way", func(t *testing.T) {
		mustRun(t, p.options())
		changed := false
		cut := faultfs.Wrap(volume.OS, func(op faultfs.Op) error {
			if changed = changed || op.Name == "rename" && strings.HasSuffix(op.Path, volume.BackupLabelFile); changed && op.Name == "write" && !strings.Contains(op.Path, volume.OwnDir) {
				return syscall.EIO
			}
			return nil
		})
		if _, err := blockcopy.Undo(t.Context(), blockcopy.UndoOptions{Target: p.old.Dir, FS: cut, Command: "dbrewind undo"}); !errors.Is(err, syscall.EIO) || exit.CodeOf(err) != exit.Partial {
			t.Fatal(err)
		}
		refused(t, p.options(), exit.Refused, "is being undone")
		p.refusesToStart()
		if _, err := Undo(t.Context(), UndoOptions{Target: p.old.Dir}); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("journal removed", func(t *testing.T) {
		o := p.options()
		o.fs = faultfs.Wrap(volume.OS, func(op faultfs.Op) error {
			if strings.HasSuffix(op.Path, "standby.signal") {
				return syscall.EIO
			}
			return nil
		})
		if _, err := Run(t.Context(), o); exit.CodeOf(err) != exit.Partial {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(p.old.Dir, volume.OwnDir)); err != nil {
			t.Fatal(err)
		}
		refused(t, p.options(), exit.Refused, "the journal to go on from is gone")
		p.refusesToStart()
	})
}

// message finds a logical message in the old one's WAL from a position on that
// lies on one page: its file, and where in that it begins.
func (p *pair) message(at wal.LSN) (name string, offset int64) {
	p.t.Helper()
	c, err := volume.ReadControl(p.old.Dir)
	if err != nil {
		p.t.Fatal(err)
	}
	w := newTargetWAL(p.old.Dir, timeline.Root(1), c.XLogSegSize, nil)
	defer w.close()
	r, err := wal.NewReader(p.t.Context(), w, wal.Options{Start: at, FindFirst: true, SegmentSize: c.XLogSegSize})
	if err != nil {
		p.t.Fatal(err)
	}
	defer r.Close()
	page := wal.LSN(c.XLogBlockSize)
	for r.Next() {
		if rec := r.Record(); rec.RMID == wal.RmLogicalMessage && rec.LSN/page == (rec.End-1)/page {
			n := c.XLogSegSize.Number(rec.LSN)
			return filepath.Join(p.old.Dir, "pg_wal", wal.SegmentName(1, n, c.XLogSegSize)), int64(c.XLogSegSize.Offset(rec.LSN))
		}
	}
	p.t.Fatal("no message in the WAL", r.Err())
	return "", 0
}

// markSpecial makes a record one that changes relation files by itself, with
// the checksum that belongs to it.
func markSpecial(record []byte) {
	const info, sum, header, specialUpdate = 16, 20, 24, 0x01
	record = record[:binary.LittleEndian.Uint32(record)]
	record[info] |= specialUpdate
	table := crc32.MakeTable(crc32.Castagnoli)
	crc := crc32.Update(crc32.Checksum(record[header:], table), table, record[:sum])
	binary.LittleEndian.PutUint32(record[sum:], crc)
}
