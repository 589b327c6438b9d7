package repo_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/repo"
	"tidemark/internal/repo/drivertest"
	"tidemark/internal/repo/storetest"
)

func openSFTP(t *testing.T, location string) *repo.SFTP {
	t.Helper()
	d := openAt(t, location).(*repo.SFTP)
	t.Cleanup(func() { d.Close() })
	return d
}

func TestSFTPConformance(t *testing.T) {
	s := storetest.NewSFTP(t)
	drivertest.Run(t, func(t *testing.T) (repo.Driver, repo.Driver) {
		name := filepath.Base(t.Name())
		s.MakeDir(t, name)
		return openSFTP(t, s.Location(name)), openSFTP(t, s.Location(name))
	})
}

// TestSFTPCut cuts the connection ever later in a put, twice each time: the
// object is there whole all the same, and nothing else is.
func TestSFTPCut(t *testing.T) {
	s := storetest.NewSFTP(t)
	s.MakeDir(t, "cut")
	data := content(5 << 20)
	for n, at := 0, int64(5000); ; n, at = n+1, at*3 {
		relay := storetest.NewRelay(t, s.Port(), at, at+50_000)
		s.Trust(t, relay.Port)
		d := openSFTP(t, s.At(relay.Port, "cut"))
		name := fmt.Sprintf("a/%d", n)
		if err := d.Put(t.Context(), name, writer(data)); err != nil {
			t.Fatalf("cut after %d bytes: %v", at, err)
		}
		got, err := readAll(t, openSFTP(t, s.Location("cut")), name)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("cut after %d bytes: %d bytes are there, %v", at, len(got), err)
		}
		if left, _ := os.ReadDir(filepath.Join(s.Dir, "cut", ".tmp")); len(left) != 0 {
			t.Errorf("cut after %d bytes: left behind: %v", at, left)
		}
		if relay.Connections() == 1 {
			if at < 5<<20 {
				t.Errorf("never cut: %d bytes", at)
			}
			return
		}
	}
}

// TestSFTPCutWhileReading: a read goes on where it was.
func TestSFTPCutWhileReading(t *testing.T) {
	s := storetest.NewSFTP(t)
	s.MakeDir(t, "r")
	data := content(8 << 20)
	if err := openSFTP(t, s.Location("r")).Put(t.Context(), "x", writer(data)); err != nil {
		t.Fatal(err)
	}
	relay := storetest.NewRelay(t, s.Port(), -1<<20, -3<<20, -2<<20)
	s.Trust(t, relay.Port)
	got, err := readAll(t, openSFTP(t, s.At(relay.Port, "r")), "x")
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if relay.Connections() < 2 {
		t.Error("it was never cut")
	}
}

// TestSFTPDown: a host that is away is an error after a bounded time, and
// never an object that is not there; when it is back, the same driver goes on.
func TestSFTPDown(t *testing.T) {
	s := storetest.NewSFTP(t)
	s.MakeDir(t, "d")
	s.Stop()
	d := openSFTP(t, s.Location("d", "attempts=2"))
	_, err := d.Get(t.Context(), "x", 0, -1)
	if err == nil || errors.Is(err, repo.ErrNotExist) || !strings.Contains(exit.HintOf(err), "sshd is reachable") {
		t.Errorf("get: %v, hint %q", err, exit.HintOf(err))
	}
	if err := d.Put(t.Context(), "x", writer(nil)); err == nil {
		t.Error("put: no error")
	}
	s.Start(t)
	if err := d.Put(t.Context(), "x", writer([]byte("1"))); err != nil {
		t.Errorf("put when it is back: %v", err)
	}
}

// TestSFTPGone: a directory that has vanished is not an empty store.
func TestSFTPGone(t *testing.T) {
	s := storetest.NewSFTP(t)
	d := openSFTP(t, s.Location("none"))
	if _, err := d.Get(t.Context(), "x", 0, -1); err == nil || errors.Is(err, repo.ErrNotExist) {
		t.Errorf("get: %v", err)
	}
	if err := d.List(t.Context(), "", nil); err == nil {
		t.Error("list: no error")
	}
	if err := d.Put(t.Context(), "x", writer(nil)); err == nil {
		t.Error("put: no error")
	}
	if _, err := os.Stat(filepath.Join(s.Dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it was made: %v", err)
	}
	r, created, err := repo.Init(t.Context(), s.Location("new"))
	if err != nil || !created {
		t.Fatalf("created %v, %v", created, err)
	}
	if again, err := repo.Open(t.Context(), s.Location("new")); err != nil || again.ID() != r.ID() {
		t.Errorf("open: %v", err)
	}
}

// TestSFTPErrors: what an operator can mend comes with how to mend it.
func TestSFTPErrors(t *testing.T) {
	s := storetest.NewSFTP(t)
	s.MakeDir(t, "e")
	relay := storetest.NewRelay(t, s.Port())
	tests := []struct{ location, hint string }{
		{strings.Replace(s.Location("e"), "sftp://", "sftp://no", 1), "a key that the host accepts"},
		{s.At(relay.Port, "e"), "host's key is not known"},
		{s.Location("e", "config=/none"), "twice"},
		{strings.Replace(s.Location("e", "attempts=1"), "127.0.0.1", "no.such.host.invalid", 1), "name of the host"},
		{strings.Replace(s.Location("e"), "ssh_config", "no_config", 1), "try: ssh"},
		{s.Location("e"), "dbbackup init"},
	}
	for _, tt := range tests {
		_, err := repo.Open(t.Context(), tt.location)
		if err == nil || !strings.Contains(exit.HintOf(err)+err.Error(), tt.hint) {
			t.Errorf("%s:\n error %v\n hint %s\n want %q", tt.location, err, exit.HintOf(err), tt.hint)
		}
	}
}

// TestSFTPKilled: a process that dies in the middle of a put leaves nothing
// that is listed, and the name free; what it leaves is swept a day later.
func TestSFTPKilled(t *testing.T) {
	if at := os.Getenv("REPO_TEST_KILLED"); at != "" {
		dieInPut(t, at)
	}
	s := storetest.NewSFTP(t)
	s.MakeDir(t, "k")
	killed(t, s.Location("k"), "TestSFTPKilled")
	tmp := filepath.Join(s.Dir, "k", ".tmp")
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) != 1 {
		t.Fatalf("left behind: %v, %v", left, err)
	}
	d := openSFTP(t, s.Location("k"))
	if n, err := d.Sweep(t.Context()); n != 0 || err != nil {
		t.Errorf("a sweep at once removed %d, %v", n, err)
	}
	old := time.Now().Add(-25 * time.Hour)
	if err := os.Chtimes(filepath.Join(tmp, left[0].Name()), old, old); err != nil {
		t.Fatal(err)
	}
	if n, err := d.Sweep(t.Context()); n != 1 || err != nil {
		t.Errorf("a sweep a day later removed %d, %v", n, err)
	}
}
