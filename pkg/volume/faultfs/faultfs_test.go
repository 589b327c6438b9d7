package faultfs

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"testing"

	"tidemark/pkg/volume"
)

// WriteFile leaves either the old content or the new one, whatever operation
// the power fails at and whatever of the unsynced data survives.
func TestWriteFileSurvivesEveryFault(t *testing.T) {
	for n := 0; ; n++ {
		mem := NewMem()
		if err := volume.WriteFile(mem, "/f", []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		f := Wrap(mem, StopAt(n))
		err := volume.WriteFile(f, "/f", []byte("new"), 0o600)
		if (err == nil) != (f.Count() <= n) {
			t.Fatalf("operation %d: %v after %v", n, err, f.Ops())
		}
		for seed := range uint64(32) {
			after := mem.Crash(rand.New(rand.NewPCG(seed, 1)))
			data, readErr := volume.ReadFile(after, "/f", 0)
			if s := string(data); readErr != nil || s != "new" && (s != "old" || err == nil) {
				t.Fatalf("operation %d: found %q, %v; WriteFile said %v", n, s, readErr, err)
			}
		}
		if err == nil {
			return
		}
	}
}

func TestCrashLosesWhatIsNotSynced(t *testing.T) {
	mem := NewMem()
	f, err := mem.OpenFile("/a", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	mustWrite := func(s string) {
		if _, err := f.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	mustWrite("one")
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if _, err := mem.Crash(nil).Stat("/a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a name without SyncDir survived: %v", err)
	}
	if err := mem.SyncDir("/"); err != nil {
		t.Fatal(err)
	}
	mustWrite("two")
	after, err := volume.ReadFile(mem.Crash(nil), "/a", 0)
	if err != nil || string(after) != "one" {
		t.Errorf("after the crash: %q, %v", after, err)
	}
	if now, _ := volume.ReadFile(mem, "/a", 0); string(now) != "onetwo" {
		t.Errorf("without a crash: %q", now)
	}
}

// SyncAll makes contents durable before names, and passes over what vanished.
func TestSyncAll(t *testing.T) {
	mem := NewMem()
	if err := mem.Mkdir("/d", 0o700); err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, name := range []string{"/d/a", "/d/b", "/c"} {
		f, err := mem.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(name)); err != nil {
			t.Fatal(err)
		}
		files = append(files, name)
	}
	f := Wrap(mem, nil)
	if err := volume.SyncAll(t.Context(), f, append(files, "/gone"), []string{"/d", "/"}, 3); err != nil {
		t.Fatal(err)
	}
	for i, op := range f.Ops() {
		if (op.Name == "sync") != (i < len(files)) {
			t.Errorf("operation %s is out of order", op)
		}
	}
	after := mem.Crash(nil)
	for _, name := range files {
		if data, err := volume.ReadFile(after, name, 0); err != nil || string(data) != name {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	failing := Wrap(mem, FailAt(1, fs.ErrPermission))
	if err := volume.SyncAll(t.Context(), failing, files, []string{"/"}, 1); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a failing sync went unnoticed: %v", err)
	}
}

func TestMemLinks(t *testing.T) {
	mem := NewMem()
	for _, err := range []error{
		mem.Mkdir("/d", 0o700), mem.Mkdir("/t", 0o700), mem.Symlink("../t", "/d/link"),
		volume.WriteFile(mem, "/d/link/f", []byte("x"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if data, err := volume.ReadFile(mem, "/t/f", 0); err != nil || string(data) != "x" {
		t.Errorf("through the link: %q, %v", data, err)
	}
	if err := mem.Remove("/t"); err == nil {
		t.Error("a directory that is not empty was removed")
	}
	if err := volume.RemoveAll(mem, "/d"); err != nil {
		t.Error(err)
	}
	if _, err := mem.Stat("/t/f"); err != nil {
		t.Errorf("RemoveAll followed a link: %v", err)
	}
}
