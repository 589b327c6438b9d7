package repo_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	command "tidemark/internal/backup"
	"tidemark/internal/exit"
	"tidemark/internal/repo"
	"tidemark/internal/repo/storetest"
)

// brokenOff copies a backup until a share of its bytes has passed; the process
// that did so counts as killed.
func brokenOff(t *testing.T, from, to *repo.Cluster, dir, id string, bytes int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := to.CopyBackup(ctx, from, id, 1, func(n int64) {
		if bytes -= n; bytes <= 0 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("the copy was not broken off: %v", err)
	}
	stopped, err := filepath.Glob(filepath.Join(dir, "*", "backups", "*", "stopped"))
	if err != nil || len(stopped) != 1 {
		t.Fatalf("%v, %v", stopped, err)
	}
	os.Remove(stopped[0])
	die(t, dir, filepath.Base(filepath.Dir(stopped[0])))
}

// stamps tells when each pack of a repository was written.
func stamps(t *testing.T, dir string) map[string]time.Time {
	t.Helper()
	packs, err := filepath.Glob(filepath.Join(dir, "*", "packs", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]time.Time{}
	for _, p := range packs {
		st, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		out[p] = st.ModTime()
	}
	return out
}

// TestCopyResumed: a copy that was killed goes on with the packs that came,
// though there was a sweep between; in the end nothing is too much.
func TestCopyResumed(t *testing.T) {
	from, _ := newCluster(t)
	from.Tick() // its backups are older than the copies
	r := rand.New(rand.NewPCG(31, 1))
	tr := bigTree(r)
	if _, err := pushGolden(t, from); err != nil {
		t.Fatal(err)
	}
	first := backup(t, from, tr, "")
	next := change(r, tr)
	second := backup(t, from, next, first.ID)

	to, dir := newCluster(t)
	brokenOff(t, from, to, dir, second.ID, 3<<20)
	came := stamps(t, dir)
	if len(came) == 0 {
		t.Fatal("nothing came")
	}
	if _, err := to.Sweep(t.Context(), nil, false); err != nil {
		t.Fatal(err)
	}
	res, err := command.Copy(t.Context(), []*repo.Cluster{from}, to, command.CopyOptions{Backups: []string{second.ID}})
	if err != nil || !slices.Equal(res.Copied, []string{second.ID}) {
		t.Fatalf("%+v, %v", res, err)
	}
	now := stamps(t, dir)
	for p, at := range came {
		if !now[p].Equal(at) {
			t.Errorf("%s was sent again", filepath.Base(p))
		}
	}
	mustRestore(t, to, second.ID, next)
	if notes, _ := filepath.Glob(filepath.Join(dir, "*", "backups", "*", "*")); len(notes) != 1 {
		t.Errorf("left: %v", notes)
	}
	// Once that backup goes, all that came for it does.
	if err := to.DeleteBackup(t.Context(), second.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := to.Sweep(t.Context(), nil, false); err != nil || storedBytes(t, dir) != 0 {
		t.Errorf("%d bytes are left, %v", storedBytes(t, dir), err)
	}
}

func pushGolden(t *testing.T, c *repo.Cluster) (repo.WALPush, error) {
	name, seg := goldenSegment()
	return push(t, c, name, seg)
}

// TestCopyResumedEncrypted: into an encrypted repository the blocks that came
// are not sent again.
func TestCopyResumedEncrypted(t *testing.T) {
	from, _ := newCluster(t)
	from.Tick() // its backups are older than the copies
	tr := bigTree(rand.New(rand.NewPCG(32, 1)))
	s := backup(t, from, tr, "")
	key, recipient := identity(t)
	to, dir := sealed(t, recipient)
	ctx, cancel := context.WithCancel(t.Context())
	sent := int64(0)
	_, err := to.CopyBackup(ctx, from, s.ID, 1, func(n int64) {
		if sent += n; sent > 5<<20 {
			cancel()
		}
	})
	if err == nil {
		t.Fatal("the copy was not broken off")
	}
	came := stamps(t, dir)
	if did, err := to.CopyBackup(t.Context(), from, s.ID, 1, func(int64) {}); err != nil || !did {
		t.Fatal(did, err)
	}
	copied, err := to.Summary(t.Context(), s.ID)
	if err != nil || copied.ResumedBlocks == 0 || len(came) == 0 {
		t.Fatalf("nothing was used of what came: %+v, %v", copied, err)
	}
	now := stamps(t, dir)
	for p, at := range came {
		if !now[p].Equal(at) {
			t.Errorf("%s was sent again", filepath.Base(p))
		}
	}
	mustRestore(t, opened(t, dir, key), s.ID, tr)
}

// TestCopyUnvouched: a pack that is there and that nothing vouches for may be
// about to be swept. A copy does without it.
func TestCopyUnvouched(t *testing.T) {
	from, _ := newCluster(t)
	from.Tick() // its backups are older than the copies
	tr := randomTree(rand.New(rand.NewPCG(34, 1)))
	s := backup(t, from, tr, "")
	to, dir := newCluster(t)
	if _, err := to.CopyBackup(t.Context(), from, s.ID, 2, func(int64) {}); err != nil {
		t.Fatal(err)
	}
	if err := to.DeleteBackup(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	old := stamps(t, dir) // a sweep elsewhere has decided that these go
	if did, err := to.CopyBackup(t.Context(), from, s.ID, 2, func(int64) {}); err != nil || !did {
		t.Fatal(did, err)
	}
	for p := range old {
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
	}
	mustRestore(t, to, s.ID, tr)
}

// TestExpireLocked: what the store's lock keeps is kept whole, said, and stands
// in nobody's way.
func TestExpireLocked(t *testing.T) {
	server := storetest.NewS3(t, true)
	at := server.Location("locked", "lock=governance", "lock-days=1")
	r, _, err := repo.Init(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	c := r.Cluster(testSystem)
	c.Tick()
	if _, err := pushGolden(t, c); err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(35, 1))
	tr := smallTree(rnd)
	want := map[string]tree{}
	var ids []string
	parent := ""
	for i := range 3 {
		w := c
		if i > 0 { // the later ones are not locked
			free, err := repo.Open(t.Context(), server.Location("locked"))
			if err != nil {
				t.Fatal(err)
			}
			w = free.Cluster(testSystem)
		}
		s := backup(t, w, tr, parent)
		want[s.ID], parent, ids = tr, s.ID, append(ids, s.ID)
		tr = change(rnd, tr)
	}
	slices.Sort(ids)
	res, err := command.Expire(t.Context(), r, command.ExpireOptions{Keep: command.Retention{Last: 1}})
	if err != nil {
		t.Fatal(err)
	}
	e := res.Clusters[0]
	if len(e.Removed) != 1 || e.Removed[0].ID != ids[1] || len(e.Kept) != 2 || !slices.Contains(e.Kept[0].Reasons, "locked in the store") ||
		e.Locked == 0 || !strings.Contains(strings.Join(e.Notes, " "), "locked in the store") {
		t.Errorf("%+v", e)
	}
	for _, k := range e.Kept {
		mustRestore(t, c, k.ID, want[k.ID])
	}
}

// TestCopyOtherOfThatName: a backup that merely has the same name is not taken
// for the one to be copied, nor a pack for its namesake.
func TestCopyOtherOfThatName(t *testing.T) {
	from, _ := newCluster(t)
	to, _ := newCluster(t)
	begin := time.Now()
	for _, c := range []*repo.Cluster{from, to} {
		c.TickFrom(begin)
	}
	rnd := rand.New(rand.NewPCG(36, 1))
	first, second := smallTree(rnd), smallTree(rnd)
	s := backup(t, from, first, "")
	if o := backup(t, to, second, ""); o.ID == s.ID {
		t.Errorf("two backups of one second in two repositories are both named %s", s.ID)
	}
	named := func(c *repo.Cluster, tr tree, change func(*repo.Summary)) error {
		w, err := c.NewBackup(t.Context(), repo.WriterOptions{Tool: "test", BlockSize: testBlock, Name: "20261122T101500Z-abcd"})
		if err != nil {
			return err
		}
		if err := writeTree(w, tr); err != nil {
			return err
		}
		sum := summary()
		sum.Began, sum.Finished = begin, begin
		change(sum)
		return w.Commit(sum)
	}
	const id = "20261122T101500Z-abcd"
	same := func(*repo.Summary) {}
	if err := errors.Join(named(from, first, same), named(to, second, func(s *repo.Summary) { s.Stop.LSN++ })); err != nil {
		t.Fatal(err)
	}
	if did, err := to.CopyBackup(t.Context(), from, id, 1, func(int64) {}); did || exit.CodeOf(err) != exit.Refused || !strings.Contains(err.Error(), "another one") {
		t.Errorf("%v, %v", did, err)
	}
	// One command's backup, whose packs came out differently in each.
	both, _ := newCluster(t)
	if err := named(both, second, same); err != nil {
		t.Fatal(err)
	}
	if did, err := both.CopyBackup(t.Context(), from, id, 1, func(int64) {}); did || err != nil {
		t.Errorf("%v, %v", did, err)
	}
	next := backup(t, from, first, id) // references packs that both have under one name
	if did, err := both.CopyBackup(t.Context(), from, next.ID, 1, func(int64) {}); !did || err != nil {
		t.Fatalf("%v, %v", did, err)
	}
	mustRestore(t, both, next.ID, first)
	mustRestore(t, both, id, second)
	if s, err := both.Summary(t.Context(), "20261122T1015"); err != nil || s.ID != id {
		t.Errorf("the beginning of an identifier: %+v, %v", s, err)
	}
	if _, err := from.Summary(t.Context(), "2026"); exit.CodeOf(err) != exit.Usage {
		t.Errorf("the beginning of several: %v", err)
	}
}
