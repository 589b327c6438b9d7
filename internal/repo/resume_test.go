package repo_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tidemark/internal/blockcopy"
	"tidemark/internal/repo"
)

// bigTree is enough for several parts in small packs.
func bigTree(r *rand.Rand) tree {
	tr := tree{"PG_VERSION": []byte("15\n")}
	for i := range 60 {
		tr[fmt.Sprintf("base/1/%d", 16384+i)] = noise(r, (10+r.IntN(40))*testBlock)
	}
	return tr
}

func storedBytes(t *testing.T, dir string) (n int64) {
	t.Helper()
	packs, err := filepath.Glob(filepath.Join(dir, "*", "packs", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packs {
		st, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		n += st.Size()
	}
	return n
}

func small(parent string) repo.WriterOptions {
	return repo.WriterOptions{Tool: "test", BlockSize: testBlock, Parent: parent, FrameBytes: 128 << 10, PackBytes: 400 << 10}
}

// writeSome writes the first part of a tree, in order. As with several readers,
// there is always a file that is open already when another is closed.
func writeSome(t *testing.T, w *repo.BackupWriter, tr tree, share float64) {
	t.Helper()
	paths := tr.paths()
	finish := func() {}
	for _, p := range paths[:int(float64(len(paths))*share)] {
		f, err := w.File(blockcopy.Entry{Path: p, Size: int64(len(tr[p])), Mode: 0o600})
		if err != nil {
			t.Fatal(err)
		}
		finish()
		finish = func() {
			if err := f.Write(0, tr[p]); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(int64(len(tr[p])), false); err != nil {
				t.Fatal(err)
			}
		}
	}
	finish()
}

// TestResume: a backup that was suspended is gone on with: what is durable is
// not stored again, in the clear and encrypted, and without a gap when that is
// interrupted too.
func TestResume(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		t.Run(fmt.Sprint("encrypted ", encrypted), func(t *testing.T) {
			c, dir := newCluster(t)
			key := ""
			if encrypted {
				var recipient string
				key, recipient = identity(t)
				c, dir = sealed(t, recipient)
			}
			rnd := rand.New(rand.NewPCG(31, 1))
			base := bigTree(rnd)
			parent := backup(t, c, base, "")
			tr := tree{}
			for p, d := range base {
				tr[p] = d
				if p != "PG_VERSION" {
					tr[p] = noise(rnd, len(d))
				}
			}
			full := storedBytes(t, dir)
			ctx, cancel := context.WithCancel(t.Context())
			w, err := c.NewBackup(ctx, small(parent.ID))
			if err != nil {
				t.Fatal(err)
			}
			writeSome(t, w, tr, 0.4)
			cancel()
			if err := w.Suspend(); err != nil {
				t.Fatal(err)
			}
			if w, err = c.NewBackup(t.Context(), small(parent.ID)); err != nil {
				t.Fatal(err)
			}
			writeSome(t, w, tr, 0.8)
			if err := w.Suspend(); err != nil {
				t.Fatal(err)
			}
			if cat, err := c.Catalog(t.Context()); err != nil || len(cat.Backups) != 1 || len(cat.Started) != 2 || !cat.Started[0].Dead() {
				t.Fatalf("%+v, %v", cat, err)
			}
			if plan, err := c.Sweep(t.Context(), nil, false); err != nil || len(plan.Packs) != 0 {
				t.Errorf("what can be resumed was swept: %+v, %v", plan, err)
			}
			left := storedBytes(t, dir) - full
			if w, err = c.NewBackup(t.Context(), small(parent.ID)); err != nil || len(w.Resumes()) != 2 {
				t.Fatal(err, w.Resumes())
			}
			if err := writeTree(w, tr); err != nil {
				t.Fatal(err)
			}
			s := summary()
			if err := w.Commit(s); err != nil {
				t.Fatal(err)
			}
			added := storedBytes(t, dir) - full
			t.Logf("interrupted: %d bytes, in all %d, for one backup %d", left, added, full)
			if added > full+full/20 || left < full*3/4 {
				t.Errorf("%d bytes were left, and with the resumed backup it is %d; one backup is %d", left, added, full)
			}
			if s.ResumedBlocks == 0 || s.NewBlocks+s.OldBlocks+s.ZeroBlocks != s.Blocks || s.OldBlocks != 1 {
				t.Errorf("%+v", s)
			}
			if _, err := c.Sweep(t.Context(), nil, false); err != nil {
				t.Fatal(err)
			}
			if cat, err := c.Catalog(t.Context()); err != nil || len(cat.Started) != 0 {
				t.Errorf("%+v, %v", cat, err)
			}
			reader := c
			if encrypted {
				reader = opened(t, dir, key)
			}
			mustRestore(t, reader, s.ID, tr)
			mustRestore(t, reader, parent.ID, base)
		})
	}
}

// TestResumeKilled: a writer that was killed left parts on the way; a full
// backup takes them up as well, and stores its own copy of all the rest.
func TestResumeKilled(t *testing.T) {
	c, dir := newCluster(t)
	rnd := rand.New(rand.NewPCG(32, 1))
	tr := bigTree(rnd)
	parent := backup(t, c, tr, "")
	w, err := c.NewBackup(t.Context(), small(""))
	if err != nil {
		t.Fatal(err)
	}
	writeSome(t, w, tr, 1)
	if err := w.Flush(); err != nil { // so that what is durable is known
		t.Fatal(err)
	}
	die(t, dir, w.ID())
	parts, _ := filepath.Glob(filepath.Join(dir, "*", "backups", w.ID(), "part-*"))
	if len(parts) < 2 {
		t.Fatalf("only %d parts were written on the way", len(parts))
	}
	again, err := c.NewBackup(t.Context(), small(""))
	if err != nil {
		t.Fatal(err)
	}
	if err := writeTree(again, tr); err != nil {
		t.Fatal(err)
	}
	s := summary()
	if err := again.Commit(s); err != nil {
		t.Fatal(err)
	}
	if s.Type != repo.Full || s.OldBlocks != 0 || s.ResumedBlocks < s.NewBlocks/2 {
		t.Errorf("%+v", s)
	}
	if err := c.DeleteBackup(t.Context(), parent.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Sweep(t.Context(), nil, false); err != nil {
		t.Fatal(err)
	}
	mustRestore(t, c, s.ID, tr)
}

// die makes a backup look as after kill -9: its process is another one's.
func die(t *testing.T, dir, id string) {
	t.Helper()
	path := filepath.Join(dir, fmt.Sprint(uint64(testSystem)), "backups", id, "started")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(path, 0o600)
	if err := os.WriteFile(path, repo.Aged(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestSweep: backups of a chain are deleted in any order, with a sweep after
// each; what is left restores, and at the end nothing is left.
func TestSweep(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			c, dir := newCluster(t)
			r := rand.New(rand.NewPCG(seed, 41))
			tr := randomTree(r)
			kept := map[string]tree{}
			parent := ""
			for range 5 {
				s := backup(t, c, tr, parent)
				kept[s.ID], parent = tr, s.ID
				tr = change(r, tr)
			}
			for len(kept) > 0 {
				var ids []string
				for id := range kept {
					ids = append(ids, id)
				}
				slices.Sort(ids)
				id := ids[r.IntN(len(ids))]
				dry, err := c.Sweep(t.Context(), []string{id}, true)
				if err != nil {
					t.Fatal(err)
				}
				if err := c.DeleteBackup(t.Context(), id); err != nil {
					t.Fatal(err)
				}
				delete(kept, id)
				plan, err := c.Sweep(t.Context(), nil, false)
				if err != nil || !slices.Equal(plan.Packs, dry.Packs) {
					t.Fatalf("planned %v, did %v, %v", dry, plan, err)
				}
				for id, want := range kept {
					mustRestore(t, c, id, want)
				}
			}
			if n := storedBytes(t, dir); n != 0 {
				t.Errorf("%d bytes of packs are left", n)
			}
		})
	}
}

// TestSweepWaits: while a backup runs, the packs of the one that it is compared
// with stay, though that one is deleted.
func TestSweepWaits(t *testing.T) {
	c, dir := newCluster(t)
	r := rand.New(rand.NewPCG(5, 42))
	tr := randomTree(r)
	first := backup(t, c, tr, "")
	w, err := c.NewBackup(t.Context(), small(first.ID))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteBackup(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	if plan, err := c.Sweep(t.Context(), nil, false); err != nil || len(plan.Packs) != 0 || !slices.Equal(plan.Waits, []string{w.ID()}) {
		t.Fatalf("%+v, %v", plan, err)
	}
	if err := writeTree(w, tr); err != nil {
		t.Fatal(err)
	}
	s := summary()
	if err := w.Commit(s); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Sweep(t.Context(), nil, false); err != nil {
		t.Fatal(err)
	}
	mustRestore(t, c, s.ID, tr)

	// The second line of defence: a pack that went away all the same.
	if w, err = c.NewBackup(t.Context(), small(s.ID)); err != nil {
		t.Fatal(err)
	}
	if err := writeTree(w, tr); err != nil {
		t.Fatal(err)
	}
	packs, _ := filepath.Glob(filepath.Join(dir, "*", "packs", "*", "*"))
	os.Remove(packs[0])
	if err := w.Commit(summary()); err == nil || !strings.Contains(err.Error(), "went away") {
		t.Errorf("%v", err)
	}
	if err := w.Suspend(); err != nil {
		t.Error(err)
	}
}

// TestSweepDamaged: packs stay while it is not known who needs them.
func TestSweepDamaged(t *testing.T) {
	c, dir := newCluster(t)
	r := rand.New(rand.NewPCG(6, 42))
	first := backup(t, c, randomTree(r), "")
	second := backup(t, c, randomTree(r), "")
	if err := c.DeleteBackup(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, fmt.Sprint(uint64(testSystem)), "backups", second.ID, "manifest.zst")
	os.Chmod(path, 0o600)
	os.Truncate(path, 100)
	before := storedBytes(t, dir)
	if _, err := c.Sweep(t.Context(), nil, false); err == nil || storedBytes(t, dir) != before {
		t.Errorf("%v", err)
	}
}

// TestResumeOpenFile: what was stored of a file that was not read to its end is
// not stored again, nor what was of one behind it.
func TestResumeOpenFile(t *testing.T) {
	for _, anyOrder := range []bool{false, true} {
		t.Run(fmt.Sprint("in any order ", anyOrder), func(t *testing.T) {
			c, dir := newCluster(t)
			rnd := rand.New(rand.NewPCG(7, 1))
			const blocks, read = 300, 171
			tr := tree{"base/1/16384": noise(rnd, blocks*testBlock), "base/1/16385": noise(rnd, 20*testBlock), "base/1/16386": noise(rnd, 5*testBlock)}
			o := small("")
			o.AnyOrder = anyOrder
			open := func() *repo.BackupWriter {
				t.Helper()
				w, err := c.NewBackup(t.Context(), o)
				if err != nil {
					t.Fatal(err)
				}
				return w
			}
			file := func(w *repo.BackupWriter, path string) *repo.FileWriter {
				t.Helper()
				f, err := w.File(blockcopy.Entry{Path: path, Size: int64(len(tr[path])), Mode: 0o600})
				if err != nil {
					t.Fatal(err)
				}
				return f
			}
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			w := open()
			first, second := file(w, "base/1/16384"), file(w, "base/1/16385")
			must(first.Write(100, tr["base/1/16384"][100*testBlock:(100+read)*testBlock])) // somewhere in the middle
			must(second.Write(0, tr["base/1/16385"]))
			must(second.Close(int64(len(tr["base/1/16385"])), false))
			must(w.Suspend())
			left := storedBytes(t, dir)
			w = open()
			must(writeTree(w, tr))
			s := summary()
			must(w.Commit(s))
			if s.ResumedBlocks != read+20 || s.NewBlocks != blocks+25 {
				t.Errorf("%d blocks of %d were there, %d are new", s.ResumedBlocks, read+20, s.NewBlocks)
			}
			if added := storedBytes(t, dir) - left; added > (blocks-read+5)*testBlock*21/20 {
				t.Errorf("%d bytes were added to %d", added, left)
			}
			mustRestore(t, c, s.ID, tr)
		})
	}
}
