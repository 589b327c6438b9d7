package rewind

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"tidemark/internal/exit"
)

// TestRescueDir: what a rescue that failed leaves in its directory.
func TestRescueDir(t *testing.T) {
	full := &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}
	server := fmt.Errorf("reading rows: %w", &pgconn.PgError{Code: "53100", Message: "could not extend file"})
	for name, c := range map[string]struct {
		there bool // the directory, before
		err   error
		kept  bool // what was written
	}{
		"full disk":                      {false, full, false},
		"full disk, seen by the server":  {false, server, false},
		"full disk that is mounted":      {true, full, false},
		"anything else":                  {false, errors.New("a page is damaged"), true},
		"anything else, where it exists": {true, errors.New("a page is damaged"), true},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "out")
			if c.there {
				if err := os.Mkdir(path, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 { // the second time as if the first one had been killed
				d, err := openRescueDir(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.MkdirAll(filepath.Join(path, "postgres", "deep"), 0o700); err != nil {
					t.Fatal(err)
				}
				err = d.failed(c.err)
				if !errors.Is(err, c.err) || exit.CodeOf(err) != exit.Failed {
					t.Error(err)
				}
				if !c.kept && (!strings.Contains(err.Error(), "the disk filled up") || !strings.Contains(exit.HintOf(err), "again")) {
					t.Error(err)
				}
				entries, err := os.ReadDir(path)
				if c.kept && len(entries) != 2 || !c.kept && len(entries) != 0 || (err == nil) != (c.kept || c.there) {
					t.Errorf("%v, %v", entries, err)
				}
			}
		})
	}
	strangers := t.TempDir()
	if err := os.WriteFile(filepath.Join(strangers, "theirs"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openRescueDir(strangers); exit.CodeOf(err) != exit.Refused {
		t.Error(err)
	}
}

// TestErrorOfARow: only an error that can be a single row's leaves one out.
func TestErrorOfARow(t *testing.T) {
	for code, want := range map[string]bool{"XX001": true, "22021": true, "58030": true, "53100": false, "53200": false, "57P01": false, "57P02": false, "08006": false} {
		if ofTheRow(&pgconn.PgError{Code: code}) != want {
			t.Error(code, want)
		}
	}
}
