package backup_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/internal/backup"
	"tidemark/internal/pgtest"
	"tidemark/internal/repo/storetest"
)

var killSeed = flag.Uint64("kill-seed", 0, "seed of the moments at which processes are killed; 0: by the clock")

// seeded returns a source of random numbers, and prints its seed.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := *killSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-kill-seed=%d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// killed runs the command and kills it after a time, by SIGKILL. It reports
// false where it was done before.
func killed(t *testing.T, after time.Duration, args ...string) bool {
	t.Helper()
	cmd := exec.Command(pgtest.Bin("dbbackup"), args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("%v: %v", args, err)
		}
		return false
	case <-time.After(after):
		cmd.Process.Kill()
		<-done
		return true
	}
}

// within chooses a moment of something that takes so long.
func within(r *rand.Rand, whole time.Duration) time.Duration {
	return time.Duration((0.05 + 0.9*r.Float64()) * float64(whole))
}

// noisy fills a server with so many tables of 4 MB whose rows do not compress;
// but for a column they are the same, at which a backup does not look.
func noisy(t *testing.T, tables int) *pgtest.Node {
	t.Helper()
	n := pgtest.New(t, pgtest.Options{Checksums: true, Config: []string{"max_wal_size = 2GB", "fsync = off"}})
	n.Exec(`CREATE TABLE noise AS SELECT g AS id, (SELECT string_agg(sha512(g::text::bytea || i::text::bytea), '') FROM generate_series(1, 30) i) AS data
		FROM generate_series(1, 2000) g`)
	n.Exec(fmt.Sprintf(`DO $$ BEGIN FOR k IN 1..%d LOOP
		EXECUTE format('CREATE TABLE noise%%s AS SELECT id + k AS id, data FROM noise, (SELECT %%s AS k) AS k', k, k);
		END LOOP; END $$`, tables-1))
	n.Exec("CHECKPOINT")
	return n
}

func (c shownBackup) stored(id string) int {
	for _, l := range c.Chain {
		if l.Backup == id {
			return l.Packs
		}
	}
	return 0
}

type shownBackup struct {
	ID      string
	Resumed int64 `json:"resumed_blocks"`
	Chain   []backup.ChainLink
}

func shown(t *testing.T, at string) shownBackup {
	t.Helper()
	var s shownBackup
	if err := json.Unmarshal([]byte(pgtest.MustRun(t, "dbbackup", "show", "--json", "--repo", at)), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// packsOf counts the packs that each backup stored.
func packsOf(t *testing.T, dir string) map[string]int {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "*", "packs", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, p := range all {
		out[filepath.Base(filepath.Dir(p))]++
	}
	return out
}

// TestKilledAnywhere: create and copy are killed at random moments, again and
// again, and run again. In the end there is a sound backup that restores, and
// what had come is not stored a second time.
func TestKilledAnywhere(t *testing.T) {
	rnd := seeded(t)
	n := noisy(t, 40) // 5 packs
	whole := newRepo(t)
	begin := time.Now()
	create(t, whole, n)
	took := time.Since(begin)

	dir := newRepo(t)
	left := map[string]int{}
	for range 4 {
		if !killed(t, within(rnd, took), "create", "--full", "--quiet", "--repo", dir, "-d", n.ConnInfo()) {
			break
		}
		for id, packs := range packsOf(t, dir) {
			left[id] = packs
		}
	}
	c := create(t, dir, n)
	s := shown(t, dir)
	for id, packs := range left {
		// Up to three packs are on their way to be named by a part when the process is killed.
		if used := s.stored(id); id != c.ID && used < packs-3 {
			t.Errorf("backup %s was killed with %d packs in the repository, %d are used: %+v", id, packs, used, s)
		}
	}
	t.Logf("a backup takes %s; left by those that were killed: %v; %d blocks resumed", took, left, s.Resumed)
	if r := pgtest.Run(t, "dbbackup", "verify", "--deep", "--repo", dir); r.Code != 0 {
		t.Errorf("%+v", r)
	}
	want := n.Digest()
	sameContents(t, restore(t, dir, c.ID, n).Digest(), want)

	// The copy goes to a bucket, in parts.
	s3 := storetest.NewS3(t, false)
	at := s3.Location("copy")
	pgtest.MustRun(t, "dbbackup", "init", "--repo", at)
	for range 4 {
		if !killed(t, within(rnd, took), "copy", "--quiet", "--repo", dir, "--to", at) {
			break
		}
	}
	came := s3.Stamps(t)
	pgtest.MustRun(t, "dbbackup", "copy", "--repo", dir, "--to", at)
	now := s3.Stamps(t)
	for name, stamp := range came {
		if strings.Contains(name, "/packs/") && !now[name].Equal(stamp) {
			t.Errorf("%s was sent again", name)
		}
	}
	for name := range now {
		if strings.HasSuffix(name, "/started") || strings.HasSuffix(name, "/stopped") {
			t.Errorf("left: %s", name)
		}
	}
	t.Logf("%d objects of %d had come before the last copy", len(came), len(now))
	if r := pgtest.Run(t, "dbbackup", "verify", "--deep", "--repo", at); r.Code != 0 {
		t.Errorf("%+v", r)
	}
	target := filepath.Join(t.TempDir(), "from-copy")
	if err := restoreFiles(t.Context(), at, c.ID, target); err != nil {
		t.Error(err)
	}
}

// TestKilledTar: the next create --tar removes what a killed one left, and
// nothing else.
func TestKilledTar(t *testing.T) {
	rnd := seeded(t)
	n := noisy(t, 6)
	dir := filepath.Join(t.TempDir(), "tars")
	args := []string{"create", "--plain", dir, "--tar", "--rate", "4MB", "--quiet", "-d", n.ConnInfo()}
	for range 2 {
		cmd := exec.Command(pgtest.Bin("dbbackup"), args...)
		begin := time.Now()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		wait := int64(rnd.IntN(6 << 20))
		pgtest.Wait(t, func() bool {
			st, err := os.Stat(filepath.Join(dir, "base.tar.partial"))
			return err == nil && st.Size() >= wait && st.ModTime().After(begin) // not what the last one left
		})
		if r := pgtest.Run(t, "dbbackup", args...); r.Code != 6 || !strings.Contains(r.Stderr, "another process") {
			t.Errorf("while another one is at work: %+v", r)
		}
		cmd.Process.Kill()
		cmd.Wait()
	}
	other := filepath.Join(dir, "notes.txt")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	args[5] = "1GB"
	if r := pgtest.Run(t, "dbbackup", args...); r.Code != 6 || !strings.Contains(r.Stderr, "not empty") {
		t.Errorf("with something else in the directory: %+v", r)
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	pgtest.MustRun(t, "dbbackup", args...)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("%v, %v", entries, err)
	}
}
