package backup_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/internal/pgtest"
)

// TestPushReceipts: a segment that was taken along is not compared when the
// server calls for it, unless the file, its content or the archive's object is
// another one by then.
func TestPushReceipts(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	t.Setenv("TIDEMARK_STATE", state)
	dir := newRepo(t)
	n := pgtest.New(t, pgtest.Options{WALSegMB: 1, Config: []string{"archive_mode = on", "archive_command = 'false'"}})
	n.Exec("CREATE TABLE t (id int)")
	var names []string
	for range 8 {
		n.Exec("INSERT INTO t SELECT generate_series(1, 100)")
		names = append(names, n.SQL("SELECT pg_walfile_name(pg_current_wal_lsn())"))
		n.SwitchWAL()
	}
	system := n.SQL("SELECT system_identifier FROM pg_control_system()")
	n.Stop()
	file := func(i int) string { return filepath.Join(n.Dir, "pg_wal", names[i]) }
	object := func(i int) string {
		return filepath.Join(dir, system, "wal", "00000001", names[i]+".zst")
	}
	pgtest.Wait(t, func() bool { // a file that has just changed gets no receipt
		st, err := os.Stat(file(len(names) - 1))
		return err == nil && time.Since(st.ModTime()) > 2*time.Second
	})
	pushed := func(i int) pgtest.Result { return pushFile(t, dir, n, "pg_wal/"+names[i]) }
	already := func(what string, i int) {
		t.Helper()
		if r := pushed(i); r.Code != 0 || !strings.Contains(r.Stdout, "already") {
			t.Errorf("%s: %+v", what, r)
		}
	}
	conflict := func(what string, i int) {
		t.Helper()
		if r := pushed(i); r.Code == 0 || !strings.Contains(r.Stderr, "other content") {
			t.Errorf("%s: %+v", what, r)
		}
	}
	if r := pushed(0); r.Code != 0 || !strings.Contains(r.Stdout, "waited behind it") {
		t.Fatalf("%+v", r)
	}
	receipts, err := filepath.Glob(filepath.Join(state, "*."+system+".pushed"))
	if err != nil || len(receipts) != 1 {
		t.Fatalf("receipts: %v, %v", receipts, err)
	}
	if data := read(t, receipts[0]); strings.Count(data, `"object"`) != 7 {
		t.Errorf("receipts: %s", data)
	}

	flip(t, object(1), 400) // what is not looked at cannot be missed: verify finds it
	already("with a receipt", 1)
	flip(t, file(2), 3000)
	conflict("the file was written into", 2)

	st, err := os.Stat(file(3))
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), names[3])
	write(t, other, read(t, file(3)))
	flip(t, other, 3000)
	if err := os.Chtimes(other, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(other, file(3)); err != nil {
		t.Fatal(err)
	}
	conflict("another file of the same size and time", 3)

	if err := os.Remove(object(4)); err != nil {
		t.Fatal(err)
	}
	if r := pushed(4); r.Code != 0 || !strings.Contains(r.Stdout, names[4]+" archived") {
		t.Errorf("the archive lost it: %+v", r)
	}

	if err := os.Remove(object(5)); err != nil {
		t.Fatal(err)
	}
	other = filepath.Join(t.TempDir(), names[5])
	write(t, other, read(t, file(5)))
	flip(t, other, 3000)
	if r := pushFile(t, dir, n, other); r.Code != 0 {
		t.Fatalf("%+v", r)
	}
	conflict("the archive holds another object", 5)

	write(t, receipts[0], "{")
	already("a damaged receipt", 6)
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
	write(t, state, "")
	already("no place for receipts", 7)
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func write(t *testing.T, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

// flip turns one bit of a file, in place.
func flip(t *testing.T, path string, at int64) {
	t.Helper()
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}
