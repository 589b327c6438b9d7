package repo_test

import (
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"tidemark/internal/blockcopy"
	"tidemark/internal/repo"
)

// writeShuffled writes a share of a tree in random order.
func writeShuffled(t *testing.T, r *rand.Rand, w *repo.BackupWriter, tr tree, share float64) {
	t.Helper()
	paths := tr.paths()
	r.Shuffle(len(paths), func(i, j int) { paths[i], paths[j] = paths[j], paths[i] })
	part := tree{}
	for _, p := range paths[:int(float64(len(paths))*share)] {
		part[p] = tr[p]
		writeSome(t, w, part, 1)
		delete(part, p)
	}
}

// inOrder checks that a manifest lists its files in path order, last at the end.
func inOrder(t *testing.T, c *repo.Cluster, id, last string) {
	t.Helper()
	m, err := c.OpenManifest(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	at := ""
	for files := m.Files(t.Context()); ; {
		f, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if f.Path <= at && f.Path != last {
			t.Errorf("%s comes after %s", f.Path, at)
		}
		at = f.Path
	}
	if last != "" && at != last {
		t.Errorf("%s is last, not %s", at, last)
	}
}

// TestAnyOrder: backups whose files come in any order and in path order make one
// chain; each references what the one before has, and is gone on with by either
// kind after it was interrupted.
func TestAnyOrder(t *testing.T) {
	for _, seed := range repo.Seeds(t, 2) {
		t.Logf("TIDEMARK_SEED=%d", seed)
		rnd := rand.New(rand.NewPCG(seed, 5))
		c, dir := newCluster(t)
		tr, parent := bigTree(rnd), ""
		tail := repo.TailPath("000000010000000000000002")
		for i := range 4 {
			begin := func(anyOrder bool) *repo.BackupWriter {
				o := small(parent)
				o.AnyOrder = anyOrder
				w, err := c.NewBackup(t.Context(), o)
				if err != nil {
					t.Fatal(err)
				}
				return w
			}
			for p := range tr {
				if i == 0 || rnd.IntN(2) == 0 {
					tr[p] = noise(rnd, len(tr[p])/testBlock*testBlock+testBlock)
				}
			}
			before := storedBytes(t, dir)
			w := begin(i%2 == 0)
			if i%2 == 0 {
				writeShuffled(t, rnd, w, tr, 0.7)
			} else {
				writeSome(t, w, tr, 0.7)
			}
			if err := w.Suspend(); err != nil {
				t.Fatal(err)
			}
			left := storedBytes(t, dir) - before
			anyOrder := rnd.IntN(2) == 0
			w = begin(anyOrder)
			if anyOrder {
				writeShuffled(t, rnd, w, tr, 1)
			} else if err := writeTree(w, tr); err != nil {
				t.Fatal(err)
			}
			writeSome(t, w, tree{tail: noise(rnd, testBlock)}, 1)
			s := summary()
			if err := w.Commit(s); err != nil {
				t.Fatal(err)
			}
			stored := storedBytes(t, dir) - before - left
			// What is stored does not compress, so that blocks can be weighed.
			if s.ResumedBlocks*testBlock < left*9/10 || (stored+left)*9/10 > s.NewBlocks*testBlock || i > 0 && (s.Type != repo.Incremental || s.OldBlocks < s.Blocks/4) {
				t.Errorf("backup %d (%s): %d bytes were left, %d stored in addition; %d blocks, %d old, %d resumed",
					i, s.Type, left, stored, s.Blocks, s.OldBlocks, s.ResumedBlocks)
			}
			if _, err := c.Sweep(t.Context(), nil, false); err != nil {
				t.Fatal(err)
			}
			inOrder(t, c, s.ID, tail)
			got, err := restore(t.Context(), c, s.ID)
			if err != nil {
				t.Fatal(err)
			}
			delete(got, tail)
			same(t, got, tr)
			parent = s.ID
		}
	}
}

// TestAnyOrderTwice: a file that comes twice is an error, and no backup.
func TestAnyOrderTwice(t *testing.T) {
	c, _ := newCluster(t)
	w, err := c.NewBackup(t.Context(), repo.WriterOptions{Tool: "test", BlockSize: testBlock, AnyOrder: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"b", "a", "b"} {
		if _, err := w.File(blockcopy.Entry{Path: p, Type: blockcopy.Dir}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(summary()); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("%v", err)
	}
	if err := w.Abort(); err != nil {
		t.Error(err)
	}
}
