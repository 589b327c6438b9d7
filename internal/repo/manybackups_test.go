package repo_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/repo"
)

// counting counts the reads of packs.
type counting struct {
	repo.Driver
	reads atomic.Int64
}

func (d *counting) Get(ctx context.Context, name string, offset, length int64) (*repo.Object, error) {
	if strings.Contains(name, "/packs/") {
		d.reads.Add(1)
	}
	return d.Driver.Get(ctx, name, offset, length)
}

// manyBackups is a repository in which the blocks of one file come from many
// backups, in turn; the reads of its packs are counted, and no index is
// remembered for long.
type manyBackups struct {
	*repo.Cluster
	t     *testing.T
	store *counting
	packs int
	data  []byte // of the file
	last  string // backup
}

const (
	manyPath   = "base/5/1259"
	manyCount  = 60
	manyBlocks = 960
)

func newManyBackups(t *testing.T) *manyBackups {
	t.Helper()
	r := rand.New(rand.NewPCG(4, 2))
	m := &manyBackups{t: t, data: noise(r, manyBlocks*testBlock)}
	c, dir := newCluster(t)
	for k := range manyCount {
		for n := k; n < manyBlocks && k > 0; n += manyCount {
			copy(m.data[n*testBlock:(n+1)*testBlock], noise(r, testBlock))
		}
		m.last = backup(t, c, tree{manyPath: m.data}, m.last).ID
	}
	names, err := c.PackNames(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	local, err := repo.NewLocal(dir)
	if err != nil {
		t.Fatal(err)
	}
	m.packs, m.store = len(names), &counting{Driver: local}
	opened, err := repo.OpenDriver(t.Context(), m.store)
	if err != nil {
		t.Fatal(err)
	}
	m.Cluster = opened.Cluster(testSystem)
	m.Forget()
	m.TickFrom(time.Now().Add(time.Hour))
	return m
}

// few wants that packs were read a few times each since the last call.
func (m *manyBackups) few(what string, each int) {
	m.t.Helper()
	if n := m.store.reads.Swap(0); n == 0 || n > int64(each*m.packs) {
		m.t.Errorf("%s: %d reads for %d packs", what, n, m.packs)
	}
}

// again takes a backup in which nothing has changed.
func (m *manyBackups) again(write func(*repo.BackupWriter) error) {
	m.t.Helper()
	w, err := m.NewBackup(m.t.Context(), repo.WriterOptions{Tool: "test", BlockSize: testBlock, Parent: m.last})
	if err != nil {
		m.t.Fatal(err)
	}
	if err := write(w); err != nil {
		m.t.Fatal(err)
	}
	s := summary()
	if err := w.Commit(s); err != nil || s.OldBlocks != manyBlocks {
		m.t.Fatalf("%v, %+v", err, s)
	}
	m.last = s.ID
}

// TestManyBackups: what it takes to compare the blocks of many backups and to
// refer to them goes by the number of packs, not by that of the blocks.
func TestManyBackups(t *testing.T) {
	m := newManyBackups(t)
	m.again(func(w *repo.BackupWriter) error { return writeTree(w, tree{manyPath: m.data}) })
	m.few("comparing", 2)
	m.again(func(w *repo.BackupWriter) error {
		f, err := w.File(blockcopy.Entry{Path: manyPath, Size: int64(len(m.data)), Mode: 0o600})
		if err != nil {
			return err
		}
		for n := int64(0); n < manyBlocks; n += 10 {
			if err := f.Reference(n, 10); err != nil {
				return err
			}
		}
		return f.Close(int64(len(m.data)), false)
	})
	m.few("referring", 2)
}

// TestReadManyBackups: and so does what it takes to read them.
func TestReadManyBackups(t *testing.T) {
	m := newManyBackups(t)
	src, err := m.OpenSource(t.Context(), m.last)
	if err != nil {
		t.Fatal(err)
	}
	src.Forget()
	size := int64(len(m.data))
	var scattered []blockcopy.Range
	for at := int64(0); at < size; at += 3 * testBlock {
		scattered = append(scattered, blockcopy.Range{Path: manyPath, Offset: at, Length: 2 * testBlock})
	}
	for what, ranges := range map[string][]blockcopy.Range{
		"reading":            {{Path: manyPath, Length: size + testBlock}},
		"reading some of it": scattered,
	} {
		got := make([]byte, size)
		m.store.reads.Store(0)
		if err := src.Fetch(t.Context(), ranges, func(p blockcopy.Range, b []byte, gone bool) error {
			copy(got[p.Offset:], b)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		m.few(what, 4)
		for _, r := range ranges {
			if end := min(r.End(), size); !bytes.Equal(got[r.Offset:end], m.data[r.Offset:end]) {
				t.Errorf("%s: other bytes at %d", what, r.Offset)
			}
		}
	}
}

// TestLongFile compares and refers to blocks on both sides of the edges between
// what is known of a file at a time.
func TestLongFile(t *testing.T) {
	c, _ := newCluster(t)
	const blocks = 2<<17 + 5
	r := rand.New(rand.NewPCG(8, 1))
	data := map[int64][]byte{}
	for _, n := range []int64{0, 1<<17 - 1, 1 << 17, 2<<17 - 1, 2 << 17, blocks - 1} { // all others are zero
		data[n] = noise(r, testBlock)
	}
	last := ""
	again := func(write func(*repo.FileWriter) error) *repo.Summary {
		t.Helper()
		w, err := c.NewBackup(t.Context(), repo.WriterOptions{Tool: "test", BlockSize: testBlock, Parent: last})
		if err != nil {
			t.Fatal(err)
		}
		f, err := w.File(blockcopy.Entry{Path: manyPath, Size: blocks * testBlock, Mode: 0o600})
		if err != nil {
			t.Fatal(err)
		}
		s := summary()
		if err := errors.Join(write(f), f.Close(blocks*testBlock, false), w.Commit(s)); err != nil {
			t.Fatal(err)
		}
		last = s.ID
		return s
	}
	writeAll := func(f *repo.FileWriter) error {
		for n, b := range data { // in any order
			if err := f.Write(n, b); err != nil {
				return err
			}
		}
		return nil
	}
	if s := again(writeAll); s.NewBlocks != int64(len(data)) {
		t.Errorf("at first: %+v", s)
	}
	if s := again(writeAll); s.OldBlocks != int64(len(data)) || s.NewBlocks != 0 {
		t.Errorf("compared: %+v", s)
	}
	if s := again(func(f *repo.FileWriter) error { return f.Reference(0, blocks) }); s.OldBlocks != int64(len(data)) || s.NewBlocks != 0 {
		t.Errorf("referred to: %+v", s)
	}
	src, err := c.OpenSource(t.Context(), last)
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range data {
		if err := src.Fetch(t.Context(), []blockcopy.Range{{Path: manyPath, Offset: n * testBlock, Length: testBlock}}, func(_ blockcopy.Range, b []byte, _ bool) error {
			if !bytes.Equal(b, want) {
				t.Errorf("block %d is another one", n)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}
