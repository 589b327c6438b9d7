// Package drivertest is the conformance suite of repo.Driver. Every driver
// runs it against a real store of its kind.
package drivertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"tidemark/internal/repo"
)

// Run runs the suite. open returns a driver for the same, at first empty,
// store each time it is called during one test: the second driver stands for a
// second process.
func Run(t *testing.T, open func(t *testing.T) (first, second repo.Driver)) {
	tests := []struct {
		name string
		run  func(*testing.T, repo.Driver, repo.Driver)
	}{
		{"PutGet", putGet},
		{"Ranges", ranges},
		{"CreateOnly", createOnly},
		{"CreateOnlyRace", createOnlyRace},
		{"TwoLargeAtOnce", twoLargeAtOnce},
		{"FailedPutLeavesNothing", failedPut},
		{"UnfinishedIsInvisible", unfinished},
		{"CancelledPut", cancelledPut},
		{"NotExist", notExist},
		{"List", list},
		{"ListIsFolders", listIsFolders},
		{"ListIsCurrent", listIsCurrent},
		{"Delete", del},
		{"Names", names},
		{"OddNames", oddNames},
		{"Sweep", sweep},
		{"ManyAtOnce", manyAtOnce},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := open(t)
			tt.run(t, a, b)
		})
	}
}

func put(t *testing.T, d repo.Driver, name string, data []byte) {
	t.Helper()
	if err := d.Put(context.Background(), name, writing(data)); err != nil {
		t.Fatalf("put %s: %v", name, err)
	}
}

func writing(data []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}
}

func get(t *testing.T, d repo.Driver, name string, off, n int64) []byte {
	t.Helper()
	o, err := d.Get(context.Background(), name, off, n)
	if err != nil {
		t.Fatalf("get %s [%d,%d]: %v", name, off, n, err)
	}
	defer o.Close()
	data, err := io.ReadAll(o)
	if err != nil {
		t.Fatalf("read %s: %v", name, err)
	}
	if int64(len(data)) != o.Length {
		t.Fatalf("%s: Length says %d, read %d", name, o.Length, len(data))
	}
	return data
}

func listed(t *testing.T, d repo.Driver, prefix string) []string {
	t.Helper()
	var names []string
	err := d.List(context.Background(), prefix, func(i repo.ObjectInfo) error {
		names = append(names, fmt.Sprintf("%s=%d", i.Name, i.Size))
		return nil
	})
	if err != nil {
		t.Fatalf("list %q: %v", prefix, err)
	}
	sort.Strings(names)
	return names
}

func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7 + i>>8)
	}
	return p
}

func putGet(t *testing.T, a, b repo.Driver) {
	for _, n := range []int{0, 1, 4096, 20<<20 + 17} {
		name := fmt.Sprintf("x/y/obj-%d", n)
		want := pattern(n)
		put(t, a, name, want)
		for _, d := range []repo.Driver{a, b} {
			if got := get(t, d, name, 0, -1); !bytes.Equal(got, want) {
				t.Fatalf("%d bytes: read back differs", n)
			}
		}
	}
}

func ranges(t *testing.T, a, _ repo.Driver) {
	want := pattern(100_000)
	put(t, a, "r", want)
	for _, c := range []struct{ off, n, from, to int64 }{
		{0, 10, 0, 10},
		{10, 0, 10, 10},
		{99_990, 100, 99_990, 100_000},
		{100_000, 10, 100_000, 100_000},
		{-10, -1, 99_990, 100_000},
		{-10, 4, 99_990, 99_994},
		{-200_000, -1, 0, 100_000},
		{5, -1, 5, 100_000},
	} {
		o, err := a.Get(context.Background(), "r", c.off, c.n)
		if err != nil {
			t.Fatalf("[%d,%d]: %v", c.off, c.n, err)
		}
		if o.Size != 100_000 || o.Offset != c.from || o.Length != c.to-c.from {
			t.Errorf("[%d,%d]: size %d offset %d length %d", c.off, c.n, o.Size, o.Offset, o.Length)
		}
		got, err := io.ReadAll(o)
		o.Close()
		if err != nil || !bytes.Equal(got, want[c.from:c.to]) {
			t.Errorf("[%d,%d]: %d bytes, err %v", c.off, c.n, len(got), err)
		}
	}
}

func createOnly(t *testing.T, a, b repo.Driver) {
	put(t, a, "once", []byte("first"))
	for _, d := range []repo.Driver{a, b} {
		err := d.Put(context.Background(), "once", writing([]byte("second")))
		if !errors.Is(err, repo.ErrExist) || !errors.Is(err, fs.ErrExist) {
			t.Fatalf("second put: %v, want ErrExist", err)
		}
	}
	if got := get(t, b, "once", 0, -1); string(got) != "first" {
		t.Fatalf("overwritten: %q", got)
	}
}

func createOnlyRace(t *testing.T, a, b repo.Driver) {
	for round := range 20 {
		name := fmt.Sprintf("race/%d", round)
		var wins atomic.Int32
		var winner atomic.Int32
		var wg sync.WaitGroup
		for i := range 8 {
			d := a
			if i%2 == 1 {
				d = b
			}
			wg.Go(func() {
				err := d.Put(context.Background(), name, writing([]byte{byte(i)}))
				switch {
				case err == nil:
					wins.Add(1)
					winner.Store(int32(i))
				case !errors.Is(err, repo.ErrExist):
					t.Errorf("put: %v", err)
				}
			})
		}
		wg.Wait()
		if wins.Load() != 1 {
			t.Fatalf("%d winners", wins.Load())
		}
		if got := get(t, a, name, 0, -1); len(got) != 1 || int32(got[0]) != winner.Load() {
			t.Fatalf("holds %v, winner was %d", got, winner.Load())
		}
	}
}

// twoLargeAtOnce has two writers begin before either ends.
func twoLargeAtOnce(t *testing.T, a, b repo.Driver) {
	var begun, done sync.WaitGroup
	var wins atomic.Int32
	begun.Add(2)
	for i, d := range []repo.Driver{a, b} {
		done.Go(func() {
			content := bytes.Repeat([]byte{byte('a' + i)}, 17<<20+i)
			err := d.Put(context.Background(), "large/x", func(w io.Writer) error {
				if _, err := w.Write(content[:9<<20]); err != nil {
					return err
				}
				begun.Done()
				begun.Wait()
				_, err := w.Write(content[9<<20:])
				return err
			})
			switch {
			case err == nil:
				wins.Add(1)
				if got := get(t, d, "large/x", 0, -1); !bytes.Equal(got, content) {
					t.Errorf("%d has won, and %d bytes of %q are there", i, len(got), got[0])
				}
			case !errors.Is(err, repo.ErrExist):
				t.Errorf("put: %v", err)
			}
		})
	}
	done.Wait()
	if wins.Load() != 1 {
		t.Fatalf("%d winners", wins.Load())
	}
	if got := listed(t, b, ""); len(got) != 1 {
		t.Fatalf("listed %v", got)
	}
}

func failedPut(t *testing.T, a, b repo.Driver) {
	boom := errors.New("boom")
	err := a.Put(context.Background(), "failed/x", func(w io.Writer) error {
		if _, err := w.Write(pattern(9 << 20)); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatalf("got %v", err)
	}
	if names := listed(t, b, ""); len(names) != 0 {
		t.Fatalf("left behind: %v", names)
	}
	put(t, b, "failed/x", []byte("ok"))
}

func unfinished(t *testing.T, a, b repo.Driver) {
	err := a.Put(context.Background(), "u/x", func(w io.Writer) error {
		if _, err := w.Write(pattern(6 << 20)); err != nil {
			return err
		}
		if names := listed(t, b, ""); len(names) != 0 {
			t.Errorf("listed before it is whole: %v", names)
		}
		if _, err := b.Get(context.Background(), "u/x", 0, -1); !errors.Is(err, repo.ErrNotExist) {
			t.Errorf("readable before it is whole: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if names := listed(t, b, ""); len(names) != 1 {
		t.Fatalf("listed after: %v", names)
	}
}

func cancelledPut(t *testing.T, a, _ repo.Driver) {
	ctx, cancel := context.WithCancel(context.Background())
	err := a.Put(ctx, "c/x", func(w io.Writer) error {
		w.Write([]byte("some"))
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if names := listed(t, a, ""); len(names) != 0 {
		t.Fatalf("left behind: %v", names)
	}
}

func notExist(t *testing.T, a, _ repo.Driver) {
	put(t, a, "dir/x", []byte("1"))
	for _, name := range []string{"nope", "dir/nope", "nope/x", "dir", "dir/x/below"} {
		_, err := a.Get(context.Background(), name, 0, -1)
		if !errors.Is(err, repo.ErrNotExist) || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("get %s: %v, want ErrNotExist", name, err)
		}
	}
}

func list(t *testing.T, a, b repo.Driver) {
	if n := listed(t, a, ""); len(n) != 0 {
		t.Fatalf("a new store lists %v", n)
	}
	want := make([]string, 1100) // more than one page of an object store
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < len(want); i += 8 {
				name := fmt.Sprintf("many/%02d/%04d", i%7, i)
				if err := a.Put(context.Background(), name, writing([]byte("x"))); err != nil {
					t.Errorf("put %s: %v", name, err)
				}
				want[i] = name + "=1"
			}
		})
	}
	wg.Wait()
	sort.Strings(want)
	if got := listed(t, b, ""); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("listed %d of %d", len(got), len(want))
	}
	stop := errors.New("stop")
	n := 0
	err := a.List(context.Background(), "many/", func(repo.ObjectInfo) error {
		n++
		if n == 3 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || n != 3 {
		t.Fatalf("stopping a listing: %v after %d", err, n)
	}
}

func listIsFolders(t *testing.T, a, _ repo.Driver) {
	put(t, a, "ab/x", []byte("1"))
	put(t, a, "abc/x", []byte("1"))
	put(t, a, "ab.d", []byte("12"))
	if got := listed(t, a, "ab/"); fmt.Sprint(got) != "[ab/x=1]" {
		t.Errorf("listed %v", got)
	}
	if got := listed(t, a, "none/"); len(got) != 0 {
		t.Errorf("listed %v", got)
	}
}

// listIsCurrent: what one process has stored or deleted, the other lists.
func listIsCurrent(t *testing.T, a, b repo.Driver) {
	for i := range 10 {
		name := fmt.Sprintf("now/%d", i)
		put(t, a, name, pattern(i))
		want := fmt.Sprintf("[%s=%d]", name, i)
		if got := listed(t, b, "now/"); fmt.Sprint(got) != want {
			t.Fatalf("after a put: listed %v, want %s", got, want)
		}
		if err := b.Delete(context.Background(), name); err != nil {
			t.Fatal(err)
		}
		if got := listed(t, a, "now/"); len(got) != 0 {
			t.Fatalf("after a delete: listed %v", got)
		}
	}
}

func del(t *testing.T, a, b repo.Driver) {
	put(t, a, "d/x", []byte("1"))
	for range 2 {
		if err := b.Delete(context.Background(), "d/x"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Get(context.Background(), "d/x", 0, -1); !errors.Is(err, repo.ErrNotExist) {
		t.Fatalf("after delete: %v", err)
	}
	put(t, a, "d/x", []byte("2"))
}

func names(t *testing.T, a, _ repo.Driver) {
	ctx := context.Background()
	for _, bad := range []string{"", "/", "/x", "x/", "x//y", ".", "..", "x/../y", ".x", "x/.y", "a b", "ä", "x\x00"} {
		if err := a.Put(ctx, bad, writing(nil)); !errors.Is(err, repo.ErrBadName) {
			t.Errorf("put %q: %v", bad, err)
		}
		if _, err := a.Get(ctx, bad, 0, -1); !errors.Is(err, repo.ErrBadName) {
			t.Errorf("get %q: %v", bad, err)
		}
		if err := a.Delete(ctx, bad); !errors.Is(err, repo.ErrBadName) {
			t.Errorf("delete %q: %v", bad, err)
		}
	}
	if err := a.List(ctx, "x", nil); !errors.Is(err, repo.ErrBadName) {
		t.Errorf("list without slash: %v", err)
	}
}

// oddNames are valid ones that a store may trip over.
func oddNames(t *testing.T, a, b repo.Driver) {
	names := []string{"a._-b", "-rf", "_", "A/x", "a/x", "x..y", "x.", "a-/-b", "00000001.history", "CON", "x.tmp",
		strings.Repeat("n", 200), strings.Repeat("d/", 100) + "x"}
	var want []string
	for i, name := range names {
		put(t, a, name, pattern(i))
		if got := get(t, b, name, 0, -1); len(got) != i {
			t.Errorf("%s: %d bytes of %d", name, len(got), i)
		}
		want = append(want, fmt.Sprintf("%s=%d", name, i))
	}
	sort.Strings(want)
	if got := listed(t, b, ""); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("listed %v", got)
	}
	for _, name := range names {
		if err := b.Delete(context.Background(), name); err != nil {
			t.Errorf("delete %s: %v", name, err)
		}
	}
	if got := listed(t, a, ""); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

func sweep(t *testing.T, a, b repo.Driver) {
	s, ok := b.(repo.Sweeper)
	if !ok {
		t.Skip("nothing to sweep in this store")
	}
	err := a.Put(context.Background(), "s/x", func(w io.Writer) error {
		if _, err := w.Write(pattern(6 << 20)); err != nil {
			return err
		}
		if n, err := s.Sweep(context.Background()); n != 0 || err != nil {
			t.Errorf("sweep during a put removed %d, err %v", n, err)
		}
		_, err := w.Write([]byte("end"))
		return err
	})
	if err != nil {
		t.Fatalf("put under sweep: %v", err)
	}
}

func manyAtOnce(t *testing.T, a, b repo.Driver) {
	var wg sync.WaitGroup
	for i := range 16 {
		d := a
		if i%2 == 1 {
			d = b
		}
		wg.Go(func() {
			for j := range 20 {
				name := fmt.Sprintf("m/%d/%d/%d", j%3, i, j)
				if err := d.Put(context.Background(), name, writing(pattern(i*100+j))); err != nil {
					t.Errorf("put %s: %v", name, err)
				}
			}
		})
	}
	wg.Wait()
	if n := len(listed(t, a, "m/")); n != 320 {
		t.Fatalf("%d objects, want 320", n)
	}
}
