package repo_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"tidemark/internal/repo"
	"tidemark/internal/repo/drivertest"
)

func openLocal(t *testing.T, dir string) *repo.Local {
	t.Helper()
	d, err := repo.NewLocal(dir)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestLocalConformance(t *testing.T) {
	drivertest.Run(t, func(t *testing.T) (repo.Driver, repo.Driver) {
		dir := t.TempDir()
		return openLocal(t, dir), openLocal(t, dir)
	})
}

// TestLocalKilled kills a process in the middle of a Put: nothing of it is
// visible, a sweep removes what it left, and the name is free.
func TestLocalKilled(t *testing.T) {
	if dir := os.Getenv("REPO_TEST_KILLED"); dir != "" {
		d := openLocal(t, dir)
		d.Put(context.Background(), "k/x", func(w io.Writer) error {
			w.Write(make([]byte, 1<<20))
			os.Stdout.WriteString("ready\n")
			select {}
		})
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestLocalKilled$")
	cmd.Env = append(os.Environ(), "REPO_TEST_KILLED="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	d := openLocal(t, dir)
	if n, err := d.Sweep(t.Context()); n != 0 || err != nil {
		t.Fatalf("sweep while it lives removed %d, %v", n, err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if _, err := d.Get(t.Context(), "k/x", 0, -1); !errors.Is(err, repo.ErrNotExist) {
		t.Fatalf("get: %v", err)
	}
	if n, err := d.Sweep(t.Context()); n != 1 || err != nil {
		t.Fatalf("sweep after the kill removed %d, %v", n, err)
	}
	if err := d.Put(t.Context(), "k/x", func(io.Writer) error { return nil }); err != nil {
		t.Fatal(err)
	}
}

// TestLocalGone: a store that has vanished is not an empty one.
func TestLocalGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d := openLocal(t, dir)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Get(t.Context(), "x", 0, -1); err == nil || errors.Is(err, repo.ErrNotExist) {
		t.Errorf("get from a store that is gone: %v", err)
	}
	if err := d.List(t.Context(), "", nil); err == nil {
		t.Error("list of a store that is gone: no error")
	}
	if err := d.Put(t.Context(), "x", func(io.Writer) error { return nil }); err == nil {
		t.Error("put into a store that is gone: no error")
	}
}
