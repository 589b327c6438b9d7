package repo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tidemark/internal/blockcopy"
	"tidemark/internal/repo"
)

const (
	testSystem = 7412345678901234567
	testBlock  = 8192
)

func newCluster(t *testing.T) (*repo.Cluster, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "r")
	r, created, err := repo.Init(t.Context(), dir)
	if err != nil || !created {
		t.Fatalf("init: created %v, %v", created, err)
	}
	return r.Cluster(testSystem), dir
}

// tree is a data directory in memory.
type tree map[string][]byte

func (tr tree) paths() []string {
	var out []string
	for p := range tr {
		out = append(out, p)
	}
	sort.Strings(out)
	return out
}

// noise is incompressible, text compresses well.
func noise(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func text(r *rand.Rand, n int) []byte {
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = fmt.Appendf(b, "row %d ", r.IntN(1000))
	}
	return b[:n]
}

func randomTree(r *rand.Rand) tree {
	tr := tree{"PG_VERSION": []byte("15\n"), "empty": {}, "zero": make([]byte, 3*testBlock), "global/1262": text(r, 2*testBlock)}
	for i := range 40 {
		data := text(r, r.IntN(40*testBlock))
		switch i % 5 {
		case 0:
			data = noise(r, r.IntN(30*testBlock))
		case 1:
			clear(data[len(data)/2:])
		}
		tr[fmt.Sprintf("base/%d/%d", 1+i%3, 16384+i)] = data
	}
	return tr
}

// change makes the next state of a cluster.
func change(r *rand.Rand, tr tree) tree {
	out := tree{}
	for p, d := range tr {
		d = slices.Clone(d)
		switch r.IntN(6) {
		case 0: // a block
			if len(d) > 0 {
				at := r.IntN(len(d))
				copy(d[at:], text(r, 200))
			}
		case 1: // grows
			d = append(d, text(r, r.IntN(5*testBlock))...)
		case 2: // shrinks
			d = d[:r.IntN(len(d)+1)]
		case 3: // is rewritten
			d = noise(r, len(d))
		case 4: // goes away
			if strings.HasPrefix(p, "base/") {
				continue
			}
		}
		out[p] = d
	}
	out[fmt.Sprintf("base/1/%d", 30000+r.IntN(10000))] = text(r, 3*testBlock+17)
	return out
}

func summary() *repo.Summary {
	return &repo.Summary{
		Major: 15, WALSegmentSize: 16 << 20,
		Start: repo.Point{LSN: 0x2000028, Timeline: 1}, Checkpoint: 0x2000060, Stop: repo.Point{LSN: 0x2000100, Timeline: 1},
		Began: time.Now(), Finished: time.Now(),
		WAL:     []repo.WALRange{{Timeline: 1, First: "000000010000000000000002", Last: "000000010000000000000002"}},
		Control: bytes.Repeat([]byte{7}, 8192), BackupLabel: "START WAL LOCATION: 0/2000028\n",
	}
}

// writeTree writes the files of a tree with several goroutines in pieces.
func writeTree(w *repo.BackupWriter, tr tree) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if err != nil && first == nil {
			first = err
		}
	}
	sem := make(chan struct{}, 4)
	for _, p := range tr.paths() {
		f, err := w.File(blockcopy.Entry{Path: p, Size: int64(len(tr[p])), Mode: 0o600, ModTime: time.Unix(1700000000, 5000)})
		if err != nil {
			fail(err)
			break
		}
		data := tr[p]
		sem <- struct{}{}
		wg.Go(func() {
			defer func() { <-sem }()
			var parts sync.WaitGroup
			const piece = 7 * testBlock
			for off := 0; off < len(data); off += piece {
				parts.Go(func() { fail(f.Write(int64(off/testBlock), data[off:min(off+piece, len(data))])) })
			}
			parts.Wait()
			fail(f.Close(int64(len(data)), false))
		})
	}
	wg.Wait()
	return first
}

func backup(t *testing.T, c *repo.Cluster, tr tree, parent string) *repo.Summary {
	t.Helper()
	w, err := c.NewBackup(t.Context(), repo.WriterOptions{
		Tool: "test", BlockSize: testBlock, Parent: parent, FrameBytes: 128 << 10, PackBytes: 400 << 10})
	if err != nil {
		t.Fatal(err)
	}
	if err := writeTree(w, tr); err != nil {
		t.Fatal(err)
	}
	s := summary()
	if err := w.Commit(s); err != nil {
		t.Fatal(err)
	}
	return s
}

// restore reads a backup back through the engine's fetch stage.
func restore(ctx context.Context, c *repo.Cluster, id string) (tree, error) {
	src, err := c.OpenSource(ctx, id)
	if err != nil {
		return nil, err
	}
	entries, err := src.List(ctx)
	if err != nil {
		return nil, err
	}
	out := tree{}
	var ranges []blockcopy.Range
	for _, e := range entries {
		if e.Type == blockcopy.File {
			out[e.Path] = make([]byte, e.Size)
			ranges = append(ranges, blockcopy.Range{Path: e.Path, Length: e.Size})
		}
	}
	var got atomic.Int64
	err = blockcopy.Fetch(ctx, src, ranges, blockcopy.FetchOptions{Jobs: 3, TaskBytes: 1 << 20},
		func(p blockcopy.Range, data []byte, gone bool) error {
			if gone || int64(len(data)) != p.Length {
				return fmt.Errorf("%s: gone %v, %d bytes", p, gone, len(data))
			}
			copy(out[p.Path][p.Offset:], data)
			got.Add(p.Length)
			return nil
		})
	return out, err
}

func mustRestore(t *testing.T, c *repo.Cluster, id string, want tree) {
	t.Helper()
	got, err := restore(t.Context(), c, id)
	if err != nil {
		t.Fatalf("restore %s: %v", id, err)
	}
	same(t, got, want)
}

func same(t *testing.T, got, want tree) {
	t.Helper()
	if fmt.Sprint(got.paths()) != fmt.Sprint(want.paths()) {
		t.Fatalf("files: got %v want %v", got.paths(), want.paths())
	}
	for p := range want {
		if !bytes.Equal(got[p], want[p]) {
			t.Fatalf("%s differs", p)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	c, _ := newCluster(t)
	tr := randomTree(rand.New(rand.NewPCG(1, 2)))
	s := backup(t, c, tr, "")
	if s.Type != repo.Full || s.OldBlocks != 0 || s.ZeroBlocks == 0 || s.Blocks != s.ZeroBlocks+s.NewBlocks || s.Files != int64(len(tr)) {
		t.Errorf("summary: %+v", s)
	}
	mustRestore(t, c, s.ID, tr)
	mustRestore(t, c, "latest", tr)

	got, err := c.Summary(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != s.ID || got.Start != s.Start || got.BackupLabel != s.BackupLabel || !bytes.Equal(got.Control, s.Control) || got.StoredSize != s.StoredSize {
		t.Errorf("read back: %+v", got)
	}
	src, err := c.OpenSource(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string][]byte{"PG_VERSION": tr["PG_VERSION"], "global/pg_control": s.Control, "backup_label": []byte(s.BackupLabel)} {
		if data, err := src.ReadFile(t.Context(), path); err != nil || !bytes.Equal(data, want) {
			t.Errorf("%s: %q, %v", path, data, err)
		}
	}
	for _, path := range []string{"nope", "base", "tablespace_map"} {
		if _, err := src.ReadFile(t.Context(), path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestFetchContract holds Source to what blockcopy.Deliver promises.
func TestFetchContract(t *testing.T) {
	c, _ := newCluster(t)
	r := rand.New(rand.NewPCG(3, 4))
	data := append(noise(r, 300*testBlock), text(r, 5*testBlock+99)...)
	clear(data[20*testBlock : 50*testBlock])
	s := backup(t, c, tree{"base/1/2": data}, "")
	src, err := c.OpenSource(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	size := int64(len(data))
	for range 300 {
		off := r.Int64N(size + 100)
		want := blockcopy.Range{Path: "base/1/2", Offset: off, Length: 1 + r.Int64N(size)}
		pos, ended := off, false
		err := src.Fetch(t.Context(), []blockcopy.Range{want}, func(p blockcopy.Range, b []byte, gone bool) error {
			if gone || ended || p.Offset != pos || p.End() > want.End() || int64(len(b)) > p.Length {
				return fmt.Errorf("asked for %s: piece %s of %d bytes at %d, gone %v, ended %v", want, p, len(b), pos, gone, ended)
			}
			if !bytes.Equal(b, data[min(pos, size):min(pos, size)+int64(len(b))]) {
				return fmt.Errorf("wrong data in %s", p)
			}
			ended = int64(len(b)) < p.Length
			pos = p.End()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if pos != want.End() || ended != (want.End() > size) {
			t.Fatalf("%s: delivered up to %d, end of file said: %v", want, pos, ended)
		}
	}
	gone := false
	err = src.Fetch(t.Context(), []blockcopy.Range{{Path: "x", Length: 1}}, func(_ blockcopy.Range, b []byte, g bool) error {
		gone = g && b == nil
		return nil
	})
	if err != nil || !gone {
		t.Errorf("a file that is not there: gone %v, %v", gone, err)
	}
}

// TestIncrementals makes chains and removes members: what is left restores.
func TestIncrementals(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			c, dir := newCluster(t)
			r := rand.New(rand.NewPCG(seed, 5))
			tr := randomTree(r)
			kept := map[string]tree{}
			var ids []string
			parent := ""
			for i := range 5 {
				s := backup(t, c, tr, parent)
				if i > 0 && (s.Type != repo.Incremental || s.OldBlocks == 0) {
					t.Errorf("nothing was shared: %+v", s)
				}
				kept[s.ID], ids, parent = tr, append(ids, s.ID), s.ID
				tr = change(r, tr)
			}
			// A backup stops to exist when its manifest goes; others do not notice.
			for range 3 {
				i := r.IntN(len(ids))
				if err := os.Remove(filepath.Join(dir, fmt.Sprint(uint64(testSystem)), "backups", ids[i], "manifest.zst")); err != nil {
					t.Fatal(err)
				}
				delete(kept, ids[i])
				ids = slices.Delete(ids, i, i+1)
			}
			for id, want := range kept {
				mustRestore(t, c, id, want)
			}
		})
	}
}

func TestUnchangedStoresNothing(t *testing.T) {
	c, _ := newCluster(t)
	tr := randomTree(rand.New(rand.NewPCG(8, 8)))
	a := backup(t, c, tr, "")
	b := backup(t, c, tr, a.ID)
	if b.NewBlocks != 0 || b.StoredSize != 0 || b.OldBlocks != a.NewBlocks {
		t.Errorf("%+v", b)
	}
	mustRestore(t, c, b.ID, tr)
}

// TestMissingPackIsNotReferenced: a block is not referenced in a pack that is gone.
func TestMissingPackIsNotReferenced(t *testing.T) {
	c, dir := newCluster(t)
	tr := randomTree(rand.New(rand.NewPCG(9, 8)))
	a := backup(t, c, tr, "")
	packs, _ := filepath.Glob(filepath.Join(dir, "*", "packs", a.ID, "*"))
	if len(packs) < 3 {
		t.Fatal("too few packs for this test")
	}
	os.Remove(packs[0])
	os.Chmod(packs[1], 0o600)
	os.Truncate(packs[1], 1000)
	b := backup(t, c, tr, a.ID)
	mustRestore(t, c, b.ID, tr)
	var short *repo.CorruptError
	if _, err := restore(t.Context(), c, a.ID); !errors.Is(err, repo.ErrNotExist) && !errors.As(err, &short) {
		t.Errorf("restore without a pack: %v", err)
	}
}

// TestDamagedParent: damage in the manifest of the parent costs space, not the backup.
func TestDamagedParent(t *testing.T) {
	c, dir := newCluster(t)
	tr := randomTree(rand.New(rand.NewPCG(10, 8)))
	a := backup(t, c, tr, "")
	path := filepath.Join(dir, fmt.Sprint(uint64(testSystem)), "backups", a.ID, "manifest.zst")
	os.Chmod(path, 0o600)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{300, len(data) - 30} { // the file list; the index
		bad := slices.Clone(data)
		bad[at] ^= 1
		os.WriteFile(path, bad, 0o600)
		w, err := c.NewBackup(t.Context(), repo.WriterOptions{Tool: "test", BlockSize: testBlock, Parent: a.ID})
		if err != nil {
			t.Fatal(err)
		}
		if err := writeTree(w, tr); err != nil {
			t.Fatal(err)
		}
		if w.ParentFault() == nil {
			t.Error("nothing is said of the damage")
		}
		s := summary()
		if err := w.Commit(s); err != nil {
			t.Fatal(err)
		}
		mustRestore(t, c, s.ID, tr)
	}
}

func TestEntries(t *testing.T) {
	c, _ := newCluster(t)
	w, err := c.NewBackup(t.Context(), repo.WriterOptions{Tool: "test", BlockSize: testBlock})
	if err != nil {
		t.Fatal(err)
	}
	mtime := time.Date(2026, 11, 21, 22, 50, 1, 123456789, time.UTC)
	want := []blockcopy.Entry{
		{Path: "base", Type: blockcopy.Dir, Mode: 0o700, ModTime: mtime},
		{Path: "base/ \"odd\"\n", Mode: 0o640, Size: 3},
		{Path: "base/gone", Size: 3},
		{Path: "base/µ", Mode: 0o600, Size: 3*testBlock + 1, ModTime: mtime},
		{Path: "base/\xff\xfe", Mode: 0o640, Size: 3},
		{Path: "pg_tblspc/16390", Type: blockcopy.Link, LinkTarget: "/srv/a b"},
	}
	for _, e := range want {
		f, err := w.File(e)
		if err != nil {
			t.Fatal(err)
		}
		if e.Type != blockcopy.File {
			continue
		}
		// Most of the long one is never written: a hole is zero.
		if err := f.Write((e.Size-1)/testBlock, []byte("abc")[:(e.Size-1)%testBlock+1]); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(e.Size, e.Path == "base/gone"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.File(blockcopy.Entry{Path: "a"}); err == nil {
		t.Error("a path out of order was accepted")
	}
	s := summary()
	if err := w.Commit(s); err != nil {
		t.Fatal(err)
	}
	src, err := c.OpenSource(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := src.List(t.Context())
	if d := cmp.Diff(slices.Delete(slices.Clone(want), 2, 3), got); d != "" {
		t.Error(d)
	}
	data, err := src.ReadFile(t.Context(), "base/µ")
	if err != nil || !bytes.Equal(data, append(make([]byte, 3*testBlock), 'a')) {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}

func TestAbort(t *testing.T) {
	c, dir := newCluster(t)
	tr := randomTree(rand.New(rand.NewPCG(11, 8)))
	ctx, cancel := context.WithCancel(t.Context())
	w, err := c.NewBackup(ctx, repo.WriterOptions{Tool: "test", BlockSize: testBlock, FrameBytes: 64 << 10, PackBytes: 200 << 10})
	if err != nil {
		t.Fatal(err)
	}
	cat, err := c.Catalog(t.Context())
	if err != nil || len(cat.Backups) != 0 || len(cat.Started) != 1 || cat.Started[0].ID != w.ID() || cat.Started[0].Dead() {
		t.Errorf("while it runs: %+v, %v", cat, err)
	}
	if plan, err := c.Sweep(t.Context(), nil, false); err != nil || len(plan.Unfinished)+len(plan.Packs) != 0 || len(plan.Waits) != 1 {
		t.Errorf("swept below a running backup: %+v, %v", plan, err)
	}
	if err := writeTree(w, tr); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
	var left []string
	filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if !d.IsDir() {
			left = append(left, p)
		}
		return nil
	})
	if len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := c.Summary(t.Context(), "latest"); err == nil {
		t.Error("there is a latest backup")
	}
}

// faulty fails the n-th operation that changes the store.
type faulty struct {
	repo.Driver
	left atomic.Int64
	dead atomic.Bool // after the fault nothing works: the process was killed
	tidy atomic.Bool // it was one in removing a part
}

var errInjected = errors.New("injected fault")

func (d *faulty) step() error {
	if d.dead.Load() || d.left.Add(-1) < 0 {
		d.dead.Store(true)
		return errInjected
	}
	return nil
}

func (d *faulty) Put(ctx context.Context, name string, write func(io.Writer) error) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.Driver.Put(ctx, name, func(w io.Writer) error {
		return write(writerFunc(func(p []byte) (int, error) {
			if err := d.step(); err != nil {
				return 0, err
			}
			return w.Write(p)
		}))
	})
}

func (d *faulty) Delete(ctx context.Context, name string) error {
	alive := !d.dead.Load()
	if err := d.step(); err != nil {
		d.tidy.CompareAndSwap(false, alive && strings.Contains(name, "/part-"))
		return err
	}
	return d.Driver.Delete(ctx, name)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestFaults fails operation n for n = 0, 1, 2, ... until a backup succeeds.
// After each: the older backup restores, and nothing incomplete is listed.
func TestFaults(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	r, _, err := repo.Init(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	good := r.Cluster(testSystem)
	rnd := rand.New(rand.NewPCG(12, 8))
	old := randomTree(rnd)
	first := backup(t, good, old, "")
	next := change(rnd, old)
	for n := int64(0); ; n++ {
		local, err := repo.NewLocal(dir)
		if err != nil {
			t.Fatal(err)
		}
		d := &faulty{Driver: local}
		d.left.Store(n)
		fr, err := repo.OpenDriver(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		c := fr.Cluster(testSystem)
		var s *repo.Summary
		err = func() error {
			w, err := c.NewBackup(t.Context(), repo.WriterOptions{Tool: "test", BlockSize: testBlock, Parent: first.ID,
				FrameBytes: 128 << 10, PackBytes: 400 << 10})
			if err != nil {
				return err
			}
			if err := writeTree(w, next); err != nil {
				w.Abort()
				return err
			}
			s = summary()
			if err := w.Commit(s); err != nil {
				w.Suspend()
				return err
			}
			return nil
		}()
		cat, cerr := good.Catalog(t.Context())
		if cerr != nil {
			t.Fatal(cerr)
		}
		if len(cat.Damaged) > 0 {
			t.Fatalf("after fault %d: damaged %v", n, cat.Damaged)
		}
		if err == nil {
			mustRestore(t, good, s.ID, next)
			if !d.dead.Load() {
				t.Logf("%d faults", n)
				break
			}
			if !d.tidy.Load() { // the backup is complete: its parts may stay
				t.Fatalf("fault %d was swallowed", n)
			}
			if err := good.DeleteBackup(t.Context(), s.ID); err != nil { // the next one may take more operations
				t.Fatal(err)
			}
			continue
		}
		if !errors.Is(err, errInjected) {
			t.Fatalf("fault %d: %v", n, err)
		}
		if len(cat.Backups) != 1 {
			t.Fatalf("after fault %d there are %d backups", n, len(cat.Backups))
		}
		if n%5 == 0 {
			mustRestore(t, good, first.ID, old)
		}
		// What the dead process left is swept; the next identifier is free.
		for _, st := range cat.Started {
			os.RemoveAll(filepath.Join(dir, fmt.Sprint(uint64(testSystem)), "backups", st.ID))
			os.RemoveAll(filepath.Join(dir, fmt.Sprint(uint64(testSystem)), "packs", st.ID))
		}
	}
}

// TestBitFlips flips bits in every object: reading never returns other data,
// and the error names the object.
func TestBitFlips(t *testing.T) {
	c, dir := newCluster(t)
	rnd := rand.New(rand.NewPCG(13, 8))
	tr := tree{"PG_VERSION": []byte("15\n"), "base/1/1": text(rnd, 40*testBlock), "base/1/2": noise(rnd, 9*testBlock+5)}
	s := backup(t, c, tr, "")
	var objects []string
	filepath.WalkDir(filepath.Join(dir, fmt.Sprint(uint64(testSystem))), func(p string, d fs.DirEntry, err error) error {
		if !d.IsDir() && !strings.HasSuffix(p, "started") {
			objects = append(objects, p)
		}
		return nil
	})
	for _, path := range objects {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		os.Chmod(path, 0o600)
		step := max(len(data)/150, 1)
		headerEnd := 8 + int(data[4])
		for at := 0; at < len(data); at += step {
			bad := slices.Clone(data)
			bad[at] ^= 1 << (at % 8)
			os.WriteFile(path, bad, 0o600)
			r, err := repo.Open(t.Context(), dir)
			if err != nil {
				t.Fatal(err)
			}
			got, err := restore(t.Context(), r.Cluster(testSystem), s.ID)
			var ce *repo.CorruptError
			switch {
			case errors.As(err, &ce):
				if rel, _ := filepath.Rel(dir, path); ce.Object != filepath.ToSlash(rel) {
					t.Errorf("%s at %d: the error names %s", rel, at, ce.Object)
				}
			case err == nil && at < headerEnd: // the front header is a copy
				same(t, got, tr)
			default:
				t.Errorf("%s at %d of %d: %v", path, at, len(data), err)
			}
		}
		for _, n := range []int{0, 1, len(data) / 2, len(data) - 1} {
			os.WriteFile(path, data[:n], 0o600)
			r, _ := repo.Open(t.Context(), dir)
			var ce *repo.CorruptError
			if _, err := restore(t.Context(), r.Cluster(testSystem), s.ID); !errors.As(err, &ce) {
				t.Errorf("%s cut to %d: %v", path, n, err)
			}
		}
		os.WriteFile(path, data, 0o600)
	}
	mustRestore(t, c, s.ID, tr)
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	if _, err := repo.Open(t.Context(), dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("empty directory: %v", err)
	}
	if _, err := repo.Open(t.Context(), filepath.Join(dir, "nope")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)
	if _, _, err := repo.Init(t.Context(), dir); err == nil {
		t.Error("init in a directory that is not empty")
	}
	if _, _, err := repo.Init(t.Context(), filepath.Join(dir, "a", "b")); err == nil {
		t.Error("init without a parent directory")
	}
	sub := filepath.Join(dir, "r")
	a, created, err := repo.Init(t.Context(), sub)
	if err != nil || !created {
		t.Fatal(created, err)
	}
	b, created, err := repo.Init(t.Context(), sub)
	if err != nil || created || a.ID() != b.ID() {
		t.Errorf("second init: %v %v", created, err)
	}
	if _, err := a.OnlyCluster(t.Context()); err == nil {
		t.Error("a cluster in an empty repository")
	}
	backup(t, a.Cluster(5), tree{"x": []byte("1")}, "")
	if c, err := a.OnlyCluster(t.Context()); err != nil || c.SystemID() != 5 {
		t.Error(err)
	}
	backup(t, a.Cluster(6), tree{"x": []byte("1")}, "")
	if _, err := a.OnlyCluster(t.Context()); err == nil || !strings.Contains(err.Error(), "5, 6") {
		t.Error(err)
	}
}
