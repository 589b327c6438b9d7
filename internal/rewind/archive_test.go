package rewind

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/internal/postgres"
	"tidemark/internal/repo"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/volume/faultfs"
	"tidemark/pkg/wal"
)

// archivedPair is a pair that keeps no more WAL than the server's own settings
// make it, and that archives all of it in one directory.
func archivedPair(t *testing.T, o pgtest.Options) (p *pair, archive string) {
	t.Helper()
	archive = t.TempDir()
	if o.WALSegMB == 0 {
		o.WALSegMB = 1
	}
	o.Config = append(o.Config, "wal_keep_size = 0", fmt.Sprintf("max_wal_size = %dMB", 4*o.WALSegMB), fmt.Sprintf("min_wal_size = %dMB", 2*o.WALSegMB),
		"archive_mode = on", "archive_command = "+postgres.QuoteGUC(fmt.Sprintf(`if test -f %[1]s/%%f; then cmp -s %%p %[1]s/%%f; else cp %%p %[1]s/%%f.$$ && mv %[1]s/%%f.$$ %[1]s/%%f; fi`, archive)))
	return newPair(t, o), archive
}

// recycle lets both sides write until neither has the WAL around the fork any
// more, and stops the old one.
func (p *pair) recycle() { p.recycleIn(6) }

func (p *pair) recycleIn(rounds int) {
	p.t.Helper()
	p.new.Promote()
	p.old.WaitSQL("SELECT count(*) FROM pg_replication_slots WHERE active", "0") // the walsender may not have noticed yet
	p.old.Exec("SELECT pg_drop_replication_slot('s_new')")
	p.write()
	for _, n := range []*pgtest.Node{p.old, p.new} {
		n.Exec("CREATE TABLE filler (v text)")
		for range rounds {
			n.Exec("INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 2000)")
			n.Exec("SELECT pg_switch_wal(); CHECKPOINT")
		}
		p.forgetFork(n)
	}
	p.old.Stop()
}

// forgetFork waits until a node has removed the segment of the fork: a
// checkpoint does once the segment is archived, and no longer of use to it.
func (p *pair) forgetFork(n *pgtest.Node) {
	p.t.Helper()
	segment := filepath.Join(n.Dir, "pg_wal", p.forkSegment(filepath.Join(p.new.Dir, "pg_wal")))
	gone := pgtest.Wait(p.t, func() bool {
		n.WaitSQL("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'", "0")
		n.Exec("CHECKPOINT")
		if _, err := os.Stat(segment); errors.Is(err, fs.ErrNotExist) {
			return true
		}
		n.SwitchWAL()
		return false
	})
	if !gone {
		p.t.Fatalf("%s keeps the segment of the fork: %s", n.Name, segment)
	}
}

// forkSegment returns the name of the old timeline's segment with the fork in
// it. The new timeline's history file in a directory says where that is.
func (p *pair) forkSegment(dir string) string {
	p.t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, wal.HistoryName(2)))
	if err != nil {
		p.t.Fatal(err)
	}
	h, err := timeline.Parse(2, data)
	if err != nil {
		p.t.Fatal(err)
	}
	c, err := volume.ReadControl(p.new.Dir)
	if err != nil {
		p.t.Fatal(err)
	}
	return wal.SegmentName(1, c.XLogSegSize.Number(h.Spans()[1].Begin), c.XLogSegSize)
}

func TestArchive(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		p, archive := archivedPair(t, pgtest.Options{Major: major})
		p.recycle()
		segment := p.forkSegment(archive)
		check := func(o Options, wants ...string) {
			t.Helper()
			refused(t, o, exit.Refused, segment)
			_, err := Check(t.Context(), o)
			text := fmt.Sprint(err, "\n", exit.HintOf(err))
			for _, want := range wants {
				if !strings.Contains(text, want) {
					t.Errorf("%q is not in:\n%s", want, text)
				}
			}
		}
		check(p.options(), inTarget, "-c (--restore-target-wal)", "--repo", "--compare")

		o := p.options()
		o.RestoreTargetWAL = true
		_, err := Run(t.Context(), o)
		if exit.CodeOf(err) != exit.Usage {
			t.Error("without a restore_command:", err)
		}
		p.old.Configure("restore_command = 'cp /nowhere/%f %p'")
		check(o, "the target's restore_command (exit status 1", "--repo")

		// The first answer for every file is a fault, the second a lie.
		counts := t.TempDir()
		script := filepath.Join(counts, "restore")
		text := fmt.Sprintf("#!/bin/sh\necho >> %[1]s/$1\ncase $(wc -l < %[1]s/$1) in 1) exit 255;; 2) exit 1;; esac\nexec cp %[2]s/$1 \"$2\"\n", counts, archive)
		if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		p.old.Configure("restore_command = '" + script + " %f \"%p\"'")
		before := tree(t, p.old.Dir)
		rep, err := Check(t.Context(), o)
		if err != nil || len(rep.Missing) > 0 || rep.WAL == nil {
			t.Fatal(rep, err)
		}
		found := func(list []WALRun, where string) (n int) {
			for _, r := range list {
				if r.FoundIn == where {
					n += r.Segments
				}
			}
			return n
		}
		if where := "the target's restore_command"; found(rep.WAL.Target, where) == 0 || found(rep.WAL.Replay, where) == 0 || found(rep.WAL.Target, inTarget) == 0 {
			t.Errorf("%+v", rep.WAL)
		}
		sameTree(t, before, p.old.Dir)
		dry := o
		dry.DryRun = true
		plan := mustRun(t, dry)
		sameTree(t, before, p.old.Dir)
		restored := 0
		for _, a := range plan.Plan.Actions {
			if strings.Contains(a.Reason, "restored from") {
				restored++
			}
		}
		res := mustRun(t, o)
		others := slices.DeleteFunc(slices.Clone(res.Warnings), func(w string) bool {
			return strings.Contains(w, "seeding the node afresh") // so small a cluster
		})
		if restored == 0 || !res.Diverged || len(others) > 0 {
			t.Errorf("%d segments restored: %+v", restored, res)
		}
		p.old.Configure("restore_command = ''") // everything is in pg_wal
		p.proveEqual(p.new)
		leftovers(t)
	})
}

// leftovers complains about files that a search left in the scratch directory.
func leftovers(t *testing.T) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "dbrewind-wal-*"))
	if err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}

// archiveRepository puts what an archive directory holds into a repository.
func archiveRepository(t *testing.T, n *pgtest.Node, archive string) string {
	t.Helper()
	location := filepath.Join(t.TempDir(), "repository")
	r, _, err := repo.Init(t.Context(), location)
	if err != nil {
		t.Fatal(err)
	}
	c, err := volume.ReadControl(n.Dir)
	if err != nil {
		t.Fatal(err)
	}
	push(t, r.Cluster(c.SystemIdentifier), archive)
	return location
}

func push(t *testing.T, c *repo.Cluster, archive string) {
	t.Helper()
	entries, err := os.ReadDir(archive)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data := readFile(t, filepath.Join(archive, e.Name()))
		if _, err := c.PushWAL(t.Context(), e.Name(), bytes.NewReader([]byte(data)), int64(len(data))); err != nil {
			t.Fatal(err)
		}
	}
}

// TestArchiveInRepository: the restore_command of both sides is of no use, the
// repository has everything. Neither stops the other.
func TestArchiveInRepository(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		p, archive := archivedPair(t, pgtest.Options{Major: major})
		p.recycle()
		o := p.options()
		o.Repositories = []string{t.TempDir() + "/unmounted"}
		if _, err := Run(t.Context(), o); exit.CodeOf(err) != exit.Failed || !strings.Contains(err.Error(), "unmounted") || !strings.Contains(err.Error(), p.forkSegment(archive)) {
			t.Error(err)
		}
		other := pgtest.New(t, pgtest.Options{Major: major, Fresh: true, NoStart: true})
		o.Repositories = []string{archiveRepository(t, other, archiveOf(t, other))}
		if _, err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "holds nothing of the target's cluster") {
			t.Error(err)
		}
		o.Repositories = append(o.Repositories, archiveRepository(t, p.old, archive))
		dry := o
		dry.DryRun = true
		mustRun(t, dry)
		p.old.Configure("restore_command = 'exit 200'")
		o.RestoreTargetWAL = true
		// An interrupted run goes on with the archives, and says so without them.
		before := true
		cut := o
		cut.fs = faultfs.Wrap(volume.OS, func(op faultfs.Op) error {
			if before = before && !strings.HasSuffix(op.Path, volume.BackupLabelFile); !before && strings.Contains(op.Path, "pg_wal/0000") && op.Name == "sync" {
				return syscall.ENOSPC
			}
			return nil
		})
		if _, err := Run(t.Context(), cut); exit.CodeOf(err) != exit.Partial {
			t.Fatal(err)
		}
		p.refusesToStart()
		without := p.options()
		without.Command = o.Command
		if _, err := Run(t.Context(), without); exit.CodeOf(err) != exit.Partial || !strings.Contains(err.Error(), "came from an archive") {
			t.Fatal(err)
		}
		res := mustRun(t, o)
		if !res.Resumed || len(res.Warnings) == 0 || !strings.Contains(res.Warnings[0], "the target's restore_command failed for") || !strings.Contains(res.Warnings[0], "exit status 200") {
			t.Errorf("%q", res.Warnings)
		}
		p.old.Configure("restore_command = ''")
		p.proveEqual(p.new)
		leftovers(t)
	})
}

// archiveOf is an archive of a stopped node: its pg_wal.
func archiveOf(t *testing.T, n *pgtest.Node) string {
	t.Helper()
	dir := t.TempDir()
	files, err := filepath.Glob(filepath.Join(n.Dir, "pg_wal", "0000*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files[:1] {
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(name)), []byte(readFile(t, name)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestSourceRestoreCommand: only the source's restore_command is set, and a
// target without one is served by it. The segments have 64 MB, the target's
// pg_wal is a link, the source is reached by TCP with a password from a file.
func TestSourceRestoreCommand(t *testing.T) {
	p, archive := archivedPair(t, pgtest.Options{WALSegMB: 64, TCP: true, HBA: []string{"host all all 127.0.0.1/32 scram-sha-256"}})
	p.recycleIn(3)
	p.new.Exec("SET password_encryption = 'scram-sha-256'; ALTER ROLE postgres PASSWORD 'secret'")
	passfile := filepath.Join(t.TempDir(), "pgpass")
	if err := os.WriteFile(passfile, []byte("127.0.0.1:*:*:postgres:secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.new.Configure("restore_command = 'cp " + archive + "/%f %p'")
	p.new.Restart()
	moved := p.old.Dir + ".wal"
	if err := os.Rename(filepath.Join(p.old.Dir, "pg_wal"), moved); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(moved, filepath.Join(p.old.Dir, "pg_wal")); err != nil {
		t.Fatal(err)
	}
	o := p.options()
	o.SourceConn, o.WriteRecoveryConf, o.RestoreTargetWAL = p.new.TCPConnInfo(), false, true
	refused(t, o, exit.Failed, "password")
	t.Setenv("PGPASSFILE", passfile)
	mustRun(t, o)
	if fi, err := os.Lstat(filepath.Join(p.old.Dir, "pg_wal")); err != nil || fi.Mode()&os.ModeSymlink == 0 {
		t.Error("pg_wal is no link any more", err)
	}
	p.old.Follow(p.new)
	p.old.AppendFile("standby.signal", "")
	p.proveEqual(p.new)
}

// TestHangingRestoreCommand: an interruption ends a command that hangs, and
// what it started.
func TestHangingRestoreCommand(t *testing.T) {
	p, _ := archivedPair(t, pgtest.Options{})
	p.recycle()
	p.old.Configure("restore_command = 'sleep 600; true'")
	before := tree(t, p.old.Dir)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	o := p.options()
	o.RestoreTargetWAL = true
	begin := time.Now()
	if _, err := Run(ctx, o); err == nil || time.Since(begin) > 20*time.Second {
		t.Error(err, time.Since(begin))
	}
	sameTree(t, before, p.old.Dir)
	leftovers(t)
}
