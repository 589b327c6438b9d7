package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"
)

// Tombstone marks a data directory that is not whole. It is written as
// backup_label, as text that is no label: a server that finds it stops with
//
//	FATAL: invalid data in file "backup_label"
//
// before it replays or changes anything, and the operator who opens the file
// reads what happened and what to run. The last lines are for us:
//
//	-- tidemark tombstone 1
//	operation: restore
//	work: 6f1c...
//	started: 2026-11-21T22:50:01Z
//	command: dbrecover restore --repo /backup -D /data
//	hint: ...
//
// The tombstone is the first thing that is written into the directory, and the
// valid label (or nothing, where none is needed) takes its place at the very
// end.
type Tombstone struct {
	Operation string // what was being done, a verb: "restore", "rewind", "seed"
	Work      string // identifies the work to whoever resumes it
	Started   time.Time
	Command   string // the command line to run again, as a shell takes it
	Hint      string // more that the operator should know, one or more lines
}

// ErrNoTombstone is returned when a directory holds no tombstone.
var ErrNoTombstone = errors.New("no tombstone")

const tombstoneMark = "-- tidemark tombstone 1"

// Format returns the file's bytes.
func (t Tombstone) Format() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "This data directory is not complete: do not start a server on it.\n\n")
	fmt.Fprintf(&b, "The work on it (%s) began at %s and has not ended.\n", oneLine(t.Operation), LabelTime(t.Started))
	if t.Command != "" {
		fmt.Fprintf(&b, "Run the same command again, it goes on where it stopped:\n\n    %s\n\n", oneLine(t.Command))
	}
	for line := range strings.Lines(t.Hint) {
		fmt.Fprintf(&b, "%s\n", strings.TrimRight(line, "\n"))
	}
	fmt.Fprintf(&b, "This file stands in the place of backup_label so that the server refuses to start.\n"+
		"Do not remove it: a server would start on a mixture of old and new data.\n\n%s\n", tombstoneMark)
	field := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%s: %s\n", name, value)
		}
	}
	field("operation", oneLine(t.Operation))
	field("work", oneLine(t.Work))
	field("started", t.Started.UTC().Format(time.RFC3339))
	field("command", oneLine(t.Command))
	for line := range strings.Lines(t.Hint) {
		field("hint", strings.TrimRight(line, "\n"))
	}
	return b.Bytes()
}

func oneLine(s string) string { return strings.Join(strings.FieldsFunc(s, isLineBreak), " ") }

func isLineBreak(r rune) bool { return r == '\n' || r == '\r' }

// ParseTombstone reads a tombstone, or returns ErrNoTombstone for any other
// content.
func ParseTombstone(data []byte) (Tombstone, error) {
	_, fields, ok := strings.Cut(string(data), "\n"+tombstoneMark+"\n")
	if !ok || bytes.HasPrefix(data, []byte("START WAL LOCATION")) {
		return Tombstone{}, ErrNoTombstone
	}
	var t Tombstone
	var hints []string
	for line := range strings.Lines(fields) {
		name, value, _ := strings.Cut(strings.TrimRight(line, "\n"), ": ")
		switch name {
		case "operation":
			t.Operation = value
		case "work":
			t.Work = value
		case "started":
			t.Started, _ = time.Parse(time.RFC3339, value)
		case "command":
			t.Command = value
		case "hint":
			hints = append(hints, value)
		}
	}
	t.Hint = strings.Join(hints, "\n")
	return t, nil
}

// PlaceTombstone durably marks the data directory dir as incomplete. A valid
// label that is there is replaced: whoever needs it again has saved it before.
func PlaceTombstone(fsys FS, dir string, t Tombstone) error {
	return WriteFile(fsys, filepath.Join(dir, BackupLabelFile), t.Format(), 0o600)
}

// ReadTombstone reads the tombstone of the data directory dir. It returns
// ErrNoTombstone where there is no backup_label or one that is none of ours.
func ReadTombstone(fsys FS, dir string) (Tombstone, error) {
	data, err := ReadFile(fsys, filepath.Join(dir, BackupLabelFile), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return Tombstone{}, ErrNoTombstone
	}
	if err != nil {
		return Tombstone{}, err
	}
	return ParseTombstone(data)
}

// FinishTombstone ends an incomplete state: the valid label takes the
// tombstone's place in one rename, or where label is nil the tombstone is
// removed. All else in the directory must be durable before. Where the
// tombstone has gone already it returns ErrNoTombstone and changes nothing.
func FinishTombstone(fsys FS, dir string, label *BackupLabel, perm fs.FileMode) error {
	if _, err := ReadTombstone(fsys, dir); err != nil {
		return err
	}
	name := filepath.Join(dir, BackupLabelFile)
	if label == nil {
		return RemoveDurable(fsys, name)
	}
	return WriteFile(fsys, name, label.Format(), perm)
}
