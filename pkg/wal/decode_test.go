package wal

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// describe puts a decoded record in pg_waldump's words, as far as these are
// the same in all versions. It returns several texts that the description
// must hold.
func describe(r *Record, d Detail) []string {
	switch d := d.(type) {
	case *Checkpoint:
		return []string{describeCheckpoint(d)}
	case *CheckpointRedo:
		return []string{"CHECKPOINT_REDO wal_level " + d.WALLevel.String()}
	case *EndOfRecovery:
		s := []string{fmt.Sprintf("END_OF_RECOVERY tli %d; prev tli %d; time %s", d.Timeline, d.PrevTimeline, stamp(d.Time))}
		if d.HasWALLevel {
			s = append(s, "; wal_level "+d.WALLevel.String())
		}
		return s
	case *ParameterChange:
		return []string{fmt.Sprintf("PARAMETER_CHANGE max_connections=%d max_worker_processes=%d max_wal_senders=%d max_prepared_xacts=%d max_locks_per_xact=%d wal_level=%s wal_log_hints=%s track_commit_timestamp=%s",
			d.MaxConnections, d.MaxWorkerProcesses, d.MaxWALSenders, d.MaxPreparedXacts, d.MaxLocksPerXact, d.WALLevel, onOff(d.WALLogHints), onOff(d.TrackCommitTimestamp))}
	case *FullPageWrites:
		return []string{fmt.Sprintf("FPW_CHANGE %v", d.On)}
	case *RestorePoint:
		return []string{"RESTORE_POINT " + d.Name}
	case *BackupEnd:
		return []string{"BACKUP_END " + d.Start.String()}
	case *Switch:
		return []string{"SWITCH"}
	case *OverwriteContrecord:
		return []string{fmt.Sprintf("OVERWRITE_CONTRECORD lsn %s; time %s", d.Overwritten, stamp(d.Time))}
	case *RelationCreate:
		return []string{"CREATE ", path(d.File)}
	case *RelationTruncate:
		return []string{"TRUNCATE ", path(d.File), fmt.Sprintf(" to %d blocks flags %d", d.Blocks, d.Flags)}
	case *TablespaceCreate:
		return []string{fmt.Sprintf("CREATE %d %q", d.Tablespace, d.Path)}
	case *TablespaceDrop:
		return []string{fmt.Sprintf("DROP %d", d.Tablespace)}
	case *RelationMapUpdate:
		return []string{fmt.Sprintf("UPDATE database %d tablespace %d size %d", d.Database, d.Tablespace, len(d.Data))}
	case *DatabaseCreate:
		s := []string{"CREATE", fmt.Sprint(d.Database), fmt.Sprint(d.Tablespace)}
		if d.FileCopy {
			s = append(s, "copy", fmt.Sprint(d.SourceDatabase), fmt.Sprint(d.SourceTablespace))
		}
		return s
	case *DatabaseDrop:
		return []string{fmt.Sprintf("DROP dir %d/%d", d.Tablespaces[0], d.Database)}
	case *Commit:
		return describeXact("COMMIT", r, d)
	case *Abort:
		return describeXact("ABORT", r, (*Commit)(d))
	case *Prepare:
		return append([]string{fmt.Sprintf("PREPARE gid %s: %s", d.GID, stamp(d.Time))},
			append(list("rels(commit)", d.CommitDrops), append(list("rels(abort)", d.AbortDrops), xids(d.Subtransactions)...)...)...)
	}
	return nil
}

func describeCheckpoint(c *Checkpoint) string {
	kind, state, level := "ONLINE", "online", ""
	if c.Shutdown {
		kind, state = "SHUTDOWN", "shutdown"
	}
	if c.HasWALLevel {
		level = fmt.Sprintf("wal_level %s; ", c.WALLevel)
	}
	return fmt.Sprintf("CHECKPOINT_%s redo %s; tli %d; prev tli %d; fpw %v; %sxid %d:%d; oid %d; multi %d; offset %d; oldest xid %d in DB %d; oldest multi %d in DB %d; oldest/newest commit timestamp xid: %d/%d; oldest running xid %d; %s",
		kind, c.Redo, c.Timeline, c.PrevTimeline, c.FullPageWrites, level, c.NextXID>>32, uint32(c.NextXID), c.NextOID, c.NextMulti, c.NextMultiOffset,
		c.OldestXID, c.OldestXIDDatabase, c.OldestMulti, c.OldestMultiDatabase, c.OldestCommitTsXID, c.NewestCommitTsXID, c.OldestActiveXID, state)
}

func describeXact(op string, r *Record, c *Commit) []string {
	head := op + " "
	if c.Prepared {
		head = fmt.Sprintf("%s_PREPARED %d: ", op, c.XID)
	}
	s := append([]string{head + stamp(c.Time)}, append(list("rels", c.Dropped), xids(c.Subtransactions)...)...)
	if c.Origin != 0 {
		s = append(s, fmt.Sprintf("origin: node %d, lsn %s, at %s", c.Origin, c.OriginLSN, stamp(c.OriginTime)))
	}
	return s
}

func stamp(t time.Time) string { return t.Format("2006-01-02 15:04:05.000000 MST") }

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// path is the end of the relation's path: the part that does not depend on the version.
func path(f RelFile) string {
	s := fmt.Sprintf("/%d", f.Relation)
	if f.Database != 0 {
		s = fmt.Sprintf("/%d%s", f.Database, s)
	}
	if f.Fork != ForkMain {
		s += "_" + f.Fork.String()
	}
	return s
}

func list(head string, files []RelFile) []string {
	if len(files) == 0 {
		return nil
	}
	s := []string{head + ":"}
	for _, f := range files {
		s = append(s, path(f))
	}
	return s
}

func xids(list []uint32) []string {
	if len(list) == 0 {
		return nil
	}
	return []string{"subxacts: " + strings.Trim(fmt.Sprint(list), "[]")}
}

// What Decode makes of the fixtures' records is what pg_waldump says.
func TestDecodeEqualsOracle(t *testing.T) {
	seen := map[string]bool{}
	eachTimeline(t, func(t *testing.T, f *fixture, i int) {
		r := newTestReader(t, f.sources[i], f.options(i))
		for _, want := range f.records[i] {
			if !r.Next() {
				t.Fatal(r.End())
			}
			rec := r.Record()
			d, err := Decode(rec)
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range describe(rec, d) {
				if !strings.Contains(want.Desc, text) && len(want.Desc) < 1000 {
					t.Fatalf("%s: decoded %+v, but %q is not in %q", rec.LSN, d, text, want.Desc)
				}
			}
			if d == nil && decodable.MatchString(want.RMGR+" "+want.Desc) {
				t.Fatalf("%s: not decoded: %s %s", rec.LSN, want.RMGR, want.Desc)
			}
			if d == nil && rec.SpecialRelUpdate() {
				t.Errorf("%s: an unlogged change that is not known: %s %s", rec.LSN, want.RMGR, want.Desc)
			}
			if d != nil {
				seen[fmt.Sprintf("%d %T", f.Major, d)] = true
			}
		}
	})
	for _, major := range testMajors {
		for _, d := range []Detail{&Checkpoint{}, &EndOfRecovery{}, &ParameterChange{}, &FullPageWrites{}, &RestorePoint{}, &BackupEnd{}, &Switch{},
			&OverwriteContrecord{}, &Commit{}, &Abort{}, &Prepare{}, &RelationCreate{}, &RelationTruncate{}, &DatabaseCreate{}, &DatabaseDrop{},
			&TablespaceCreate{}, &TablespaceDrop{}, &RelationMapUpdate{}} {
			if !seen[fmt.Sprintf("%d %T", major, d)] {
				t.Errorf("PostgreSQL %d: the fixtures hold no %T", major, d)
			}
		}
	}
}

var decodable = regexp.MustCompile(`^(Storage|Database|Tablespace|RelMap) |^Transaction (COMMIT|ABORT|PREPARE)|^XLOG (CHECKPOINT|SWITCH|BACKUP_END|PARAM|RESTORE|FPW_|END_OF|OVERWRITE)`)

// A two-phase commit gives its own transaction, its subtransactions and, where
// the log is logical, its name.
func TestDecodeTwoPhase(t *testing.T) {
	for _, major := range testMajors {
		f := loadFixture(t, major)
		r := newTestReader(t, f.sources[0], f.options(0))
		var prepared *Prepare
		for r.Next() {
			d, err := Decode(r.Record())
			if err != nil {
				t.Fatal(err)
			}
			switch d := d.(type) {
			case *Prepare:
				if prepared == nil {
					prepared = d
				}
			case *Commit:
				if !d.Prepared {
					continue
				}
				if prepared == nil || d.XID != prepared.XID || len(d.Subtransactions) != 2 || len(d.Dropped) != 2 || len(prepared.AbortDrops) != 1 {
					t.Errorf("PostgreSQL %d: prepared %+v, committed %+v", major, prepared, d)
				}
				if major != 14 && d.GID != "tidemark one" {
					t.Errorf("PostgreSQL %d: committed with the name %q", major, d.GID)
				}
			}
		}
	}
}

// Main data of any shorter length is an error or nothing, never a panic.
func TestDecodeTruncatedMain(t *testing.T) {
	f := loadFixture(t, 17)
	r := newTestReader(t, f.sources[0], f.options(0))
	for r.Next() {
		rec := *r.Record()
		d, err := Decode(&rec)
		if d == nil || err != nil || len(rec.Main) == 0 {
			continue
		}
		main := rec.Main
		rec.Main = main[:0]
		if _, err := Decode(&rec); err == nil && rec.Op() != xlogSwitch {
			t.Fatalf("%T decoded from nothing", d)
		} else if err != nil && !errors.Is(err, ErrRecordContent) {
			t.Fatalf("%v is not ErrRecordContent", err)
		}
		for n := range min(len(main), 200) {
			rec.Main = main[:n]
			_, _ = Decode(&rec)
		}
	}
}
