package rewind

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/internal/backup"
	"tidemark/internal/exit"
	"tidemark/internal/pgtest"
	"tidemark/internal/repo"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
)

// repoPair is an archived pair with a repository.
type repoPair struct {
	*pair
	archive string
	repo    *repo.Repository
	cluster *repo.Cluster
}

func newRepoPair(t *testing.T, o pgtest.Options) *repoPair {
	t.Helper()
	p, archive := archivedPair(t, o)
	r, _, err := repo.Init(t.Context(), filepath.Join(t.TempDir(), "repository"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := volume.ReadControl(p.old.Dir)
	if err != nil {
		t.Fatal(err)
	}
	return &repoPair{p, archive, r, r.Cluster(c.SystemIdentifier)}
}

// backup backs a running node up.
func (p *repoPair) backup(n *pgtest.Node) string {
	p.t.Helper()
	s, err := backup.Create(p.t.Context(), p.repo, backup.Options{Tool: "test", ConnInfo: n.ConnInfo(), DataDir: n.Dir})
	if err != nil {
		p.t.Fatal(err)
	}
	return s.ID
}

// end stops both and puts their WAL into the repository. It returns what the
// new one held.
func (p *repoPair) end() map[string]string {
	p.t.Helper()
	p.old.Stop()
	p.new.Exec("SELECT pg_switch_wal()")
	p.new.WaitSQL("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'", "0")
	digest := p.new.Digest()
	p.new.Stop()
	push(p.t.(*testing.T), p.cluster, p.archive)
	return digest
}

func (p *repoPair) options() Options {
	return Options{Target: p.old.Dir, SourceRepo: p.repo.Location(), FetchProgram: pgtest.Bin("dbrecover"), Command: "dbrewind ..."}
}

// prove starts the old one and compares it with what the new one held.
func (p *repoPair) prove(t *testing.T, want map[string]string, inRecovery string) {
	t.Helper()
	p.old.Start()
	p.old.WaitSQL("SELECT pg_is_in_recovery()", inRecovery)
	if inRecovery == "t" {
		p.old.WaitSQL("SELECT count(*) FROM pg_class WHERE relname = 'the_end'", "1")
	}
	if d := cmp.Diff(want, p.old.Digest()); d != "" {
		t.Errorf("contents differ:\n%s", d)
	}
	amcheck(t, p.old)
	p.old.Stop()
	checksums(t, p.old)
}

// TestRepositorySource: nobody is up but the old primary's files; a backup from
// before or from behind the fork, and the WAL archive, are the source.
func TestRepositorySource(t *testing.T) {
	pgtest.EachLong(t, func(t *testing.T, major int) {
		for _, when := range []string{"before the fork", "behind the fork"} {
			t.Run(when, func(t *testing.T) {
				p := newRepoPair(t, pgtest.Options{Major: major})
				behind := when == "behind the fork"
				if !behind {
					p.backup(p.old)
					p.old.Exec("CREATE TABLE common AS SELECT * FROM t; UPDATE t SET v = 'common' WHERE i % 3 = 0; CHECKPOINT")
					p.new.WaitFor(p.old)
				}
				p.diverge()
				if behind {
					p.backup(p.new)
				}
				execEach(p.new, "UPDATE t SET v = 'later' WHERE i % 11 = 0; DROP TABLE only_new; CREATE TABLE the_end AS SELECT 1 AS i")
				want := p.end()

				before := tree(t, p.old.Dir)
				rep, err := Check(t.Context(), p.options())
				if err != nil || !rep.Diverged || rep.Plan == nil || len(rep.Missing) > 0 || rep.Lost.Len() == 0 || rep.Source.Timeline != 2 {
					t.Fatalf("%+v, %v", rep, err)
				}
				if behind != (rep.Start.LSN == rep.Checkpoint.LSN) {
					t.Errorf("replay begins at %+v, the last common checkpoint is %+v", rep.Start, rep.Checkpoint)
				}
				dry := p.options()
				dry.DryRun = true
				mustRun(t, dry)
				sameTree(t, before, p.old.Dir)
				res := mustRun(t, p.options())
				t.Logf("moved %d of %d bytes, the backup has %d", res.Bytes, res.Totals.Bytes, res.Totals.SourceBytes)
				if again := mustRun(t, p.options()); again.Diverged {
					t.Errorf("a second run: %+v", again.Divergence)
				}
				if _, err := Undo(t.Context(), UndoOptions{Target: p.old.Dir}); err != nil {
					t.Fatal(err)
				}
				sameTree(t, before, p.old.Dir)
				o := p.options()
				o.WriteRecoveryConf = behind
				mustRun(t, o)
				p.prove(t, want, map[bool]string{true: "t", false: "f"}[behind])
			})
		}
	})
}

// TestRepositoryRefusals: what a repository lacks, and what is not clear.
func TestRepositoryRefusals(t *testing.T) {
	p := newRepoPair(t, pgtest.Options{})
	p.diverge()
	p.new.Exec("CREATE TABLE the_end AS SELECT 1 AS i")
	late := p.backup(p.new)
	p.end()
	walOnly, _, err := repo.Init(t.Context(), filepath.Join(t.TempDir(), "walonly"))
	if err != nil {
		t.Fatal(err)
	}
	push(t, walOnly.Cluster(p.cluster.SystemID()), p.archive)

	o := p.options()
	o.SourceRepo = walOnly.Location()
	refused(t, o, exit.Refused, "no backup in")
	rep, err := Check(t.Context(), o)
	if err != nil || !rep.Diverged || rep.Plan != nil || rep.Lost.Len() == 0 || len(rep.Missing) > 0 || rep.Fork == nil || rep.Source.Timeline != 2 {
		t.Fatalf("with the WAL alone: %+v, %v", rep, err)
	}
	o = p.options()
	o.SourceBackup = "20200101T000000Z"
	refused(t, o, exit.Refused, "no backup")
	o = p.options()
	o.SourceTimeline = 7
	refused(t, o, exit.Refused, "timeline 7")
	o = p.options()
	o.FetchProgram = ""
	refused(t, o, exit.Usage, "dbrecover")
	o = p.options()
	o.SourceDir = p.new.Dir
	refused(t, o, exit.Usage, "not clear")

	// A second branch of the common history.
	h, err := timeline.Root(1).Child(3, 0x1000100, "test")
	if err != nil {
		t.Fatal(err)
	}
	branch := t.TempDir()
	if err := os.WriteFile(filepath.Join(branch, "00000003.history"), h.Format(), 0o600); err != nil {
		t.Fatal(err)
	}
	push(t, p.cluster, branch)
	refused(t, p.options(), exit.Refused, "several branches")
	o = p.options()
	o.SourceTimeline, o.SourceBackup = 3, late
	refused(t, o, exit.Refused, "does not lead to timeline 3")

	// A gap in the archive behind the fork.
	gone := ""
	err = filepath.WalkDir(p.repo.Location(), func(path string, d os.DirEntry, err error) error {
		if strings.Contains(path, "/wal/00000002/") && strings.HasPrefix(d.Name(), "00000002000000") && gone == "" {
			gone = path
		}
		return err
	})
	if err != nil || gone == "" {
		t.Fatal(gone, err)
	}
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	o = p.options()
	o.SourceTimeline = 2
	refused(t, o, exit.Refused, filepath.Base(gone)[:24])
}

// TestRepositoryFileCopy: replay from a backup before the fork would make a
// database by copying a template whose blocks the target kept, as they became
// later. It is refused before anything is written.
func TestRepositoryFileCopy(t *testing.T) {
	p := newRepoPair(t, pgtest.Options{})
	p.old.Exec("CREATE DATABASE template")
	p.old.ExecIn("template", "CREATE TABLE x AS SELECT g AS i, 'before' AS v FROM generate_series(1, 1000) g")
	p.backup(p.old)
	strategy := ""
	if p.old.Major >= 15 {
		strategy = " STRATEGY file_copy"
	}
	p.old.Exec("CREATE DATABASE copied TEMPLATE template" + strategy)
	p.old.ExecIn("template", "UPDATE x SET v = 'after'")
	p.old.Exec("CHECKPOINT")
	p.new.WaitFor(p.old)
	p.diverge()
	p.end()
	before := tree(t, p.old.Dir)
	if _, err := Run(t.Context(), p.options()); exit.CodeOf(err) != exit.Refused || !strings.Contains(err.Error(), "by copying the files") {
		t.Fatal(exit.CodeOf(err), err)
	}
	sameTree(t, before, p.old.Dir)
}
