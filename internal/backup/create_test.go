package backup_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/pgtest"
	"tidemark/internal/repo"
	"tidemark/pkg/wal"
)

// newRepo makes a repository with the command.
func newRepo(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "repo")
	pgtest.MustRun(t, "dbbackup", "init", "--repo", dir)
	return dir
}

// archiving are the settings by which a server archives into a repository.
func archiving(dir string) []string {
	return []string{"archive_mode = on", fmt.Sprintf("archive_command = '%s push --repo %s %%p'", pgtest.Bin("dbbackup"), dir)}
}

type created struct {
	ID           string
	Type         string
	Took         float64 `json:"took_seconds"`
	OldBlocks    int64   `json:"old_blocks"`
	NewBlocks    int64   `json:"new_blocks"`
	Read         int64   `json:"read_bytes"`
	StoredBytes  int64   `json:"stored_bytes"`
	FindingCount int64   `json:"finding_count"`
	Findings     []repo.Finding
	Source       repo.Origin
	Start        repo.Point
	Tail         string `json:"wal_tail"`
	Proof        string
	WAL          []repo.WALRange
	Stop         repo.Point
}

func create(t *testing.T, dir string, n *pgtest.Node, args ...string) created {
	t.Helper()
	begin := time.Now()
	out := pgtest.MustRun(t, "dbbackup", append([]string{"create", "--json", "--repo", dir, "-d", n.ConnInfo()}, args...)...)
	var c created
	t.Logf("create took %s", time.Since(begin).Round(time.Millisecond))
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return c
}

// restore writes a backup into a new directory and starts a server on it,
// which replays to the end of the archive's WAL and no further.
func restore(t *testing.T, dir, id string, like *pgtest.Node) *pgtest.Node {
	t.Helper()
	target := filepath.Join(t.TempDir(), "restored")
	if err := restoreFiles(t.Context(), dir, id, target); err != nil {
		t.Fatal(err)
	}
	n := pgtest.Attach(t, "restored", target, "archive_mode = off", "restore_command = ''")
	n.Start()
	return n
}

// restoreFiles is a restore in the plainest way: every file, then the WAL that
// the backup needs, then the control file and the label.
func restoreFiles(ctx context.Context, dir, id, target string) error {
	r, err := repo.Open(ctx, dir)
	if err != nil {
		return err
	}
	c, err := r.OnlyCluster(ctx)
	if err != nil {
		return err
	}
	src, err := c.OpenSource(ctx, id)
	if err != nil {
		return err
	}
	if err := os.Mkdir(target, 0o700); err != nil {
		return err
	}
	entries, err := src.List(ctx)
	if err != nil {
		return err
	}
	plan := &blockcopy.Plan{Operation: "restore"}
	for _, e := range entries {
		kind := map[blockcopy.EntryType]blockcopy.Kind{blockcopy.Dir: blockcopy.CreateDir, blockcopy.Link: blockcopy.CreateLink, blockcopy.File: blockcopy.Copy}[e.Type]
		plan.Actions = append(plan.Actions, blockcopy.Action{Kind: kind, Path: e.Path, Size: e.Size, LinkTarget: e.LinkTarget, Required: e.Type == blockcopy.File})
	}
	s := src.Summary()
	_, err = blockcopy.Run(ctx, blockcopy.Options{Target: target, Source: src, Plan: plan, NoSync: true,
		Finish: func(ctx context.Context) (blockcopy.Finish, error) {
			f := blockcopy.Finish{Control: s.Control, Label: []byte(s.BackupLabel)}
			if s.TablespaceMap != "" {
				f.TablespaceMap = []byte(s.TablespaceMap)
			}
			return f, neededWAL(ctx, c, s, target)
		}})
	return err
}

func neededWAL(ctx context.Context, c *repo.Cluster, s *repo.Summary, target string) error {
	size := wal.SegmentSize(s.WALSegmentSize)
	for _, r := range s.WAL {
		first, _ := wal.ParseFileName(r.First)
		last, _ := wal.ParseFileName(r.Last)
		from, _ := first.Number(size)
		to, _ := last.Number(size)
		for n := from; n <= to; n++ {
			name := wal.SegmentName(r.Timeline, n, size)
			f, err := os.OpenFile(filepath.Join(target, "pg_wal", name), os.O_CREATE|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			if _, err := c.FetchWAL(ctx, name, f); err != nil {
				return err
			}
			if err := f.Close(); err != nil {
				return err
			}
		}
	}
	return nil
}

// sound checks a server with amcheck, and its files' checksums.
func sound(t *testing.T, n *pgtest.Node) {
	t.Helper()
	for db := range strings.SplitSeq(n.SQL("SELECT datname FROM pg_database WHERE datallowconn"), "\n") {
		if n.TryExec(db, "CREATE EXTENSION IF NOT EXISTS amcheck") != nil {
			t.Log("no amcheck")
			return
		}
		n.ExecIn(db, `SELECT bt_index_check(i.indexrelid, true) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
			WHERE a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisvalid AND i.indisready`)
	}
	checksums := n.SQL("SHOW data_checksums") == "on"
	n.Stop()
	if checksums && n.Major == 15 {
		if out, err := exec.Command(pgtest.Tool(t, 15, "pg_checksums"), "--check", "-D", n.Dir).CombinedOutput(); err != nil {
			t.Errorf("pg_checksums: %v\n%s", err, out)
		}
	}
}

func sameContents(t *testing.T, got, want map[string]string) {
	t.Helper()
	if !maps.Equal(got, want) {
		for k, v := range want {
			if got[k] != v {
				t.Errorf("%s: restored %q, was %q", k, got[k], v)
			}
		}
		for k := range got {
			if _, ok := want[k]; !ok {
				t.Errorf("%s is there too much", k)
			}
		}
	}
}

// quiesce stops the load; what a backup taken from now on holds is then known.
func churn() []string {
	return []string{
		"CREATE TABLE churn AS SELECT g AS id, repeat('x', 100) AS t FROM generate_series(1, 2000) g",
		"CREATE INDEX ON churn (id)",
		"UPDATE churn SET t = 'y' WHERE id % 3 = 0",
		"VACUUM churn",
		"TRUNCATE churn",
		"INSERT INTO churn SELECT g, 'z' FROM generate_series(1, 500) g",
		"VACUUM FULL churn",
		"DROP TABLE churn",
	}
}

// TestCreateUnderLoad backs up a server that works, twice, then restores both.
// The counters of pgbench prove the restored state: each transaction adds the
// same amount to an account, a teller and a branch, and writes a history row.
func TestCreateUnderLoad(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, major int) {
		dir := newRepo(t)
		n := pgtest.New(t, pgtest.Options{Major: major, Checksums: true, Config: archiving(dir)})
		n.PgbenchInit(3)
		stop := n.Pgbench("-c", "2", "-T", "60")
		stopChurn := n.Churn(churn()...)
		full := create(t, dir, n)
		incr := create(t, dir, n, "--label", "second")
		over := create(t, dir, n, "--jobs", "1")
		stopChurn()
		stop()
		if full.Type != "full" || incr.Type != "incremental" || incr.OldBlocks == 0 || over.OldBlocks == 0 {
			t.Errorf("full %+v\nincremental %+v", full, incr)
		}
		if full.Source.Access != "files" || full.Source.Role != "primary" {
			t.Errorf("source: %+v", full.Source)
		}
		n.Exec("CHECKPOINT")
		last := create(t, dir, n)
		want := n.Digest()
		for _, b := range []created{full, incr, over, last} {
			r := restore(t, dir, b.ID, n)
			if got := r.SQL(`SELECT count(*) FROM (SELECT sum(abalance) FROM pgbench_accounts UNION SELECT sum(tbalance) FROM pgbench_tellers
				UNION SELECT sum(bbalance) FROM pgbench_branches UNION SELECT coalesce(sum(delta), 0) FROM pgbench_history) s`); got != "1" {
				t.Errorf("%s: the sums differ: %s", b.ID, got)
			}
			if b.ID == last.ID {
				sameContents(t, r.Digest(), want)
			}
			sound(t, r)
		}
	})
}
