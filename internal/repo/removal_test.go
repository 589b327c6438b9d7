package repo_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"testing"

	"tidemark/internal/repo"
)

// stepping calls at before operation n of a store, n from 0 on.
type stepping struct {
	repo.Driver
	step atomic.Int64
	at   func(n int64)
}

func (d *stepping) next() { d.at(d.step.Add(1) - 1) }

func (d *stepping) Put(ctx context.Context, name string, write func(io.Writer) error) error {
	d.next()
	return d.Driver.Put(ctx, name, write)
}

func (d *stepping) Get(ctx context.Context, name string, offset, length int64) (*repo.Object, error) {
	d.next()
	return d.Driver.Get(ctx, name, offset, length)
}

func (d *stepping) List(ctx context.Context, prefix string, each func(repo.ObjectInfo) error) error {
	d.next()
	return d.Driver.List(ctx, prefix, each)
}

func (d *stepping) Delete(ctx context.Context, name string) error {
	d.next()
	return d.Driver.Delete(ctx, name)
}

// stepped opens the repository in a directory so that at is called before each
// operation.
func stepped(t *testing.T, dir string, at func(n int64)) *repo.Cluster {
	t.Helper()
	local, err := repo.NewLocal(dir)
	if err != nil {
		t.Fatal(err)
	}
	d := &stepping{Driver: local, at: func(int64) {}}
	r, err := repo.OpenDriver(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	d.step.Store(0)
	d.at = at
	return r.Cluster(testSystem)
}

// TestPinWhileRemoved: at every step of a removal somebody pins the backup, at
// every speed. Either the pin is confirmed and the backup stays, or the backup
// goes and the pin is refused.
func TestPinWhileRemoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	r, _, err := repo.Init(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	plain := r.Cluster(testSystem)
	plain.Tick()
	tr := smallTree(rand.New(rand.NewPCG(41, 1)))
	kept, gone := 0, 0
	for n := int64(0); ; n++ { // the step of the removal at which the pin begins
		reached := false
		for m := range int64(7) { // how many steps the pin makes meanwhile; with that many it waits
			s := backup(t, plain, tr, "")
			pinned := make(chan error, 1)
			far := make(chan struct{}) // closed when the pin has made its steps
			pinner := stepped(t, dir, func(k int64) {
				if k == m {
					close(far)
				}
			})
			all := false
			remover := stepped(t, dir, func(k int64) {
				if k != n {
					return
				}
				reached = true
				done := make(chan error, 1)
				go func() {
					_, err := pinner.Pin(t.Context(), s.ID, "", nil)
					done <- err
				}()
				select {
				case <-far:
					go func() { pinned <- <-done }()
				case err := <-done:
					all = true
					pinned <- err
				}
			})
			err := remover.DeleteBackup(t.Context(), s.ID)
			if err != nil && !errors.Is(err, repo.ErrPinned) {
				t.Fatal(err)
			}
			if !reached {
				break
			}
			perr := <-pinned
			_, serr := plain.Summary(t.Context(), s.ID)
			switch {
			case perr == nil && serr == nil && errors.Is(err, repo.ErrPinned):
				kept++
			case perr != nil && serr != nil && err == nil:
				gone++
			default:
				t.Fatalf("pinned at step %d by %d steps: the pin says %v, the removal %v, the backup %v", n, m, perr, err, serr)
			}
			if serr == nil {
				if _, _, err := plain.Unpin(t.Context(), s.ID); err != nil {
					t.Fatal(err)
				}
				if err := plain.DeleteBackup(t.Context(), s.ID); err != nil {
					t.Fatal(err)
				}
			}
			if all {
				break
			}
		}
		if !reached {
			break
		}
	}
	if kept == 0 || gone == 0 {
		t.Errorf("kept %d times, gone %d times", kept, gone)
	}
	t.Logf("kept %d times, gone %d times", kept, gone)
}

// TestPinReplaced: at no step of replacing a pin can the backup be removed, nor
// after a process that was killed there.
func TestPinReplaced(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	r, _, err := repo.Init(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	plain := r.Cluster(testSystem)
	s := backup(t, plain, smallTree(rand.New(rand.NewPCG(42, 1))), "")
	if _, err := plain.Pin(t.Context(), s.ID, "first", nil); err != nil {
		t.Fatal(err)
	}
	killed := errors.New("killed")
	for n := int64(0); ; n++ {
		ended := func() (ended bool) {
			defer func() {
				if p := recover(); p != nil && p != any(killed) {
					panic(p)
				}
			}()
			c := stepped(t, dir, func(k int64) {
				if k != n {
					return
				}
				if err := plain.DeleteBackup(t.Context(), s.ID); !errors.Is(err, repo.ErrPinned) {
					t.Errorf("at step %d: %v", n, err)
				}
				panic(killed)
			})
			if _, err := c.Pin(t.Context(), s.ID, "second", nil); err != nil {
				t.Fatal(err)
			}
			return true
		}()
		cat, err := plain.Catalog(t.Context())
		if err != nil || cat.Pins[s.ID].ID != s.ID {
			t.Fatalf("at step %d: %+v, %v", n, cat.Pins, err)
		}
		if ended {
			if cat.Pins[s.ID].Reason != "second" {
				t.Errorf("%+v", cat.Pins)
			}
			break
		}
	}
	if was, _, err := plain.Unpin(t.Context(), s.ID); !was || err != nil {
		t.Error(was, err)
	}
	if err := plain.DeleteBackup(t.Context(), s.ID); err != nil {
		t.Error(err)
	}
}
