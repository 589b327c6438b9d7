package rewind

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/pkg/volume"
	"tidemark/pkg/volume/faultfs"
	"tidemark/pkg/wal"
)

// refused runs, and wants an error of that code and words, with a hint, and an
// untouched target.
func refused(t *testing.T, o Options, code exit.Code, words string) {
	t.Helper()
	before := tree(t, o.Target)
	_, err := Run(t.Context(), o)
	if err == nil || exit.CodeOf(err) != code || !strings.Contains(err.Error(), words) || exit.HintOf(err) == "" {
		t.Errorf("code %d, %v, hint %q; wanted %d and %q", exit.CodeOf(err), err, exit.HintOf(err), code, words)
	}
	sameTree(t, before, o.Target)
}

func TestRefusals(t *testing.T) {
	p := newPair(t, pgtest.Options{WALSegMB: 1, HBA: []string{"local all nobody scram-sha-256"}})
	p.new.Promote()
	p.new.Exec("CREATE ROLE nobody LOGIN PASSWORD 'right'; CHECKPOINT")
	p.old.Exec("INSERT INTO t SELECT g, repeat('lost', 50) FROM generate_series(20001, 40000) g")

	t.Run("running target", func(t *testing.T) {
		_, err := Run(t.Context(), p.options())
		if exit.CodeOf(err) != exit.Refused || !strings.Contains(err.Error(), "running") {
			t.Error(err)
		}
	})
	p.old.Stop()
	t.Run("running local source", func(t *testing.T) {
		o := p.options()
		o.SourceConn, o.SourceDir, o.WriteRecoveryConf = "", p.new.Dir, false
		refused(t, o, exit.Refused, "running")
	})
	t.Run("no source", func(t *testing.T) {
		o := p.options()
		o.SourceConn = ""
		refused(t, o, exit.Usage, "source")
	})
	t.Run("recovery settings without a server", func(t *testing.T) {
		o := p.options()
		o.SourceConn, o.SourceDir = "", p.old.Dir
		refused(t, o, exit.Usage, "write-recovery-conf")
	})
	t.Run("wrong password", func(t *testing.T) {
		o := p.options()
		o.SourceConn = p.new.ConnInfo("user=nobody", "password=wrong-secret")
		refused(t, o, exit.Failed, "password")
		if _, err := Run(t.Context(), o); strings.Contains(err.Error()+exit.HintOf(err), "wrong-secret") {
			t.Error("the password is shown")
		}
	})
	t.Run("missing privilege", func(t *testing.T) {
		o := p.options()
		o.SourceConn = p.new.ConnInfo("user=nobody", "password=right")
		refused(t, o, exit.Failed, "")
	})
	t.Run("unreachable", func(t *testing.T) {
		o := p.options()
		o.SourceConn = "host=" + p.old.SocketDir + " port=1"
		refused(t, o, exit.Failed, "")
	})
	t.Run("another cluster", func(t *testing.T) {
		other := pgtest.New(t, pgtest.Options{Fresh: true, Checksums: true, WALSegMB: 1})
		o := p.options()
		o.SourceConn = other.ConnInfo()
		refused(t, o, exit.Refused, "system identifiers")
	})
	t.Run("missing segment", func(t *testing.T) {
		name := lastSegment(t, p, -2)
		if err := os.Rename(name, name+"~"); err != nil {
			t.Fatal(err)
		}
		refused(t, p.options(), exit.Refused, filepath.Base(name))
		if err := os.Rename(name+"~", name); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("flipped bit in the WAL", func(t *testing.T) {
		name := lastSegment(t, p, -2)
		restore := damage(t, name, func(data []byte) []byte { data[len(data)/2] ^= 4; return data })
		refused(t, p.options(), exit.Failed, "WAL")
		restore()
	})
	t.Run("truncated WAL", func(t *testing.T) {
		name := lastSegment(t, p, -2)
		restore := damage(t, name, func(data []byte) []byte { return data[:len(data)/3] })
		refused(t, p.options(), exit.Failed, "WAL")
		restore()
	})
	t.Run("torn pg_control", func(t *testing.T) {
		restore := damage(t, filepath.Join(p.old.Dir, volume.ControlPath), func(data []byte) []byte { data[100] ^= 1; return data })
		refused(t, p.options(), exit.Failed, "CRC")
		restore()
	})
	t.Run("directory here, file there", func(t *testing.T) {
		if err := os.Mkdir(filepath.Join(p.old.Dir, "thing"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(p.new.Dir, "thing"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, p.options(), exit.Refused, "thing is a file at the source and a dir")
		if err := errors.Join(os.Remove(filepath.Join(p.old.Dir, "thing")), os.Remove(filepath.Join(p.new.Dir, "thing"))); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("not a cluster", func(t *testing.T) {
		o := p.options()
		o.Target = t.TempDir()
		refused(t, o, exit.Failed, "not a PostgreSQL data directory")
	})
	t.Run("afterwards it works", func(t *testing.T) {
		mustRun(t, p.options())
		p.t = t
		p.proveEqual(p.new)
	})
	// Last: the source's WAL has records of it then (see guard_test.go).
	t.Run("full_page_writes off", func(t *testing.T) {
		p.new.Exec("ALTER SYSTEM SET full_page_writes = off")
		p.new.Reload()
		p.new.WaitSQL("SHOW full_page_writes", "off")
		refused(t, p.options(), exit.Refused, "full_page_writes")
		p.new.Exec("ALTER SYSTEM RESET full_page_writes")
		p.new.Reload()
		p.new.WaitSQL("SHOW full_page_writes", "on")
	})
}

// lastSegment is a segment of the target's, counted from the one that holds
// its last checkpoint.
func lastSegment(t testing.TB, p *pair, back int) string {
	t.Helper()
	c, err := volume.ReadControl(p.old.Dir)
	if err != nil {
		t.Fatal(err)
	}
	n := c.XLogSegSize.Number(c.CheckPoint) + wal.SegmentNumber(back)
	return filepath.Join(p.old.Dir, "pg_wal", wal.SegmentName(1, n, c.XLogSegSize))
}

// damage changes a file and returns what puts it back.
func damage(t testing.TB, name string, how func([]byte) []byte) func() {
	t.Helper()
	before := readFile(t, name)
	if err := os.WriteFile(name, how([]byte(before)), 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.WriteFile(name, []byte(before), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNoHintBits(t *testing.T) {
	p := &pair{t: t, old: pgtest.New(t, pgtest.Options{Major: 15, Name: "old", Config: config})}
	p.new = p.old.Standby(pgtest.StandbyOptions{Name: "new"})
	p.new.WaitFor(p.old)
	p.new.Promote()
	p.old.Exec("CREATE TABLE x (i int)")
	p.old.Stop()
	refused(t, p.options(), exit.Refused, "wal_log_hints")
}

// TestInterrupted stops the run at several of its operations with an error, as
// a full disk does, and with the source's connection gone; each time the server
// refuses to start, and the next run goes on.
func TestInterrupted(t *testing.T) {
	p := newPair(t, pgtest.Options{WALSegMB: 1})
	p.diverge()
	p.old.Stop()
	label := filepath.Join(p.old.Dir, volume.BackupLabelFile)
	o := p.options()
	o.fs = faultfs.Wrap(volume.OS, faultfs.FailAt(5, syscall.ENOSPC))
	if _, err := Run(t.Context(), o); !errors.Is(err, syscall.ENOSPC) || exit.CodeOf(err) != exit.Failed {
		t.Fatalf("a full disk before the first change: code %d: %v", exit.CodeOf(err), err)
	}
	if _, err := os.Stat(label); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a full disk before the first change leaves a label: %v", err)
	}
	changing := false // from the tombstone on
	for _, at := range []int{20, 60, 200, -1} {
		o := p.options()
		o.fs = faultfs.Wrap(volume.OS, func(op faultfs.Op) error {
			if changing = changing || op.Name == "rename" && op.Path == label; !changing {
				return nil
			}
			if at--; at == -1 || at < -1 && strings.Contains(op.Path, "standby.signal") {
				return syscall.ENOSPC
			}
			return nil
		})
		o.Jobs = 1
		_, err := Run(t.Context(), o)
		if !errors.Is(err, syscall.ENOSPC) || exit.CodeOf(err) != exit.Partial || exit.HintOf(err) == "" {
			t.Fatalf("code %d: %v", exit.CodeOf(err), err)
		}
		p.refusesToStart()
	}
	ctx, cancel := context.WithCancel(t.Context())
	o = p.options()
	o.fs = faultfs.Wrap(volume.OS, func(op faultfs.Op) error { cancel(); return nil })
	if _, err := Run(ctx, o); exit.CodeOf(err) != exit.Partial {
		t.Fatal(err)
	}
	p.refusesToStart()

	p.new.Stop()
	if _, err := Run(t.Context(), p.options()); err == nil || exit.HintOf(err) == "" {
		t.Fatal(err)
	}
	p.refusesToStart()
	p.new.Start()

	if _, err := Run(t.Context(), func() Options {
		o := p.options()
		o.SourceConn += " user=postgres application_name=x"
		o.DryRun = true
		return o
	}()); exit.CodeOf(err) != exit.Refused {
		t.Fatal(err)
	}
	rep, err := Check(t.Context(), p.options())
	if err != nil || rep.Pending == "" {
		t.Fatal(rep, err)
	}
	res := mustRun(t, p.options())
	if !res.Resumed || res.Skipped == 0 {
		t.Errorf("%+v", res)
	}
	p.proveEqual(p.new)
}

func (p *pair) refusesToStart() {
	p.t.Helper()
	if err := p.old.TryStart(); err == nil {
		p.t.Fatal("the half-rewound target starts")
	}
	if !strings.Contains(p.old.Log(), `invalid data in file "backup_label"`) {
		p.t.Fatal("it refuses for another reason:", p.old.Log())
	}
}
