package volume

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"tidemark/pkg/timeline"
	"tidemark/pkg/wal"
)

// The names of the files that tell a server that its directory is a copy.
const (
	BackupLabelFile   = "backup_label"
	TablespaceMapFile = "tablespace_map"
)

// Where a copy was taken, and how.
const (
	MethodStreamed = "streamed"  // by the backup functions or BASE_BACKUP: an end-of-backup record will come
	MethodRewind   = "pg_rewind" // replay must reach pg_control's minimum recovery point, no record comes
	FromPrimary    = "primary"
	FromStandby    = "standby"
)

// ErrLabel is returned when a backup label is not one that a server accepts.
// A tombstone is such a file.
var ErrLabel = errors.New("invalid backup_label")

// BackupLabel is the file backup_label, text of one field per line
// (access/xlogrecovery.c, read_backup_label). The first two lines are
// required, in this order; a server stops at anything else in their place.
//
//	START WAL LOCATION: 0/2000028 (file 000000010000000000000002)
//	CHECKPOINT LOCATION: 0/2000060
//	BACKUP METHOD: streamed
//	BACKUP FROM: primary
//	START TIME: 2026-11-21 22:50:01 UTC
//	LABEL: nightly
//	START TIMELINE: 1
//	INCREMENTAL FROM LSN: 0/1000028     17 and up; a server refuses to start on it
//	INCREMENTAL FROM TLI: 1
type BackupLabel struct {
	StartWAL           wal.LSN // redo point, where replay begins
	WALFile            string  // name of the segment that holds it
	Checkpoint         wal.LSN // of the checkpoint record
	Method             string
	From               string
	StartTime          string // as in the file; see LabelTime
	Label              string
	StartTimeline      timeline.ID // 0: no such line
	IncrementalFromLSN wal.LSN     // 0: not incremental
	IncrementalFromTLI timeline.ID
}

// LabelTime formats a time as a backup label's START TIME.
func LabelTime(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// Timeline returns the timeline on which replay starts, which is that of the
// segment's name.
func (l *BackupLabel) Timeline() timeline.ID {
	if f, ok := wal.ParseFileName(l.WALFile); ok {
		return f.Timeline
	}
	return 0
}

// ParseBackupLabel reads a backup label. It refuses with ErrLabel what the
// server refuses.
func ParseBackupLabel(data []byte) (*BackupLabel, error) {
	if len(data) > 64<<10 {
		return nil, fmt.Errorf("%w: %d bytes long", ErrLabel, len(data))
	}
	lines := strings.Split(string(data), "\n")
	if len(lines) < 3 { // two lines, and what follows the second one's end
		return nil, fmt.Errorf("%w: the first two lines are not there", ErrLabel)
	}
	l := &BackupLabel{}
	if err := l.parseStart(lines[0], lines[1]); err != nil {
		return nil, err
	}
	for _, line := range lines[2:] {
		if err := l.parseField(line); err != nil {
			return nil, err
		}
	}
	if l.StartTimeline != 0 && l.StartTimeline != l.Timeline() {
		return nil, fmt.Errorf("%w: START TIMELINE is %d, but the segment's is %d", ErrLabel, l.StartTimeline, l.Timeline())
	}
	return l, nil
}

func (l *BackupLabel) parseStart(first, second string) (err error) {
	start, ok := strings.CutPrefix(first, "START WAL LOCATION: ")
	location, file, ok2 := strings.Cut(start, " (file ")
	file, ok3 := strings.CutSuffix(file, ")")
	if !ok || !ok2 || !ok3 {
		return fmt.Errorf("%w: no START WAL LOCATION", ErrLabel)
	}
	if l.StartWAL, err = wal.ParseLSN(location); err != nil {
		return fmt.Errorf("%w: START WAL LOCATION: %w", ErrLabel, err)
	}
	l.WALFile = file
	if l.Timeline() == 0 {
		return fmt.Errorf("%w: %q is not the name of a segment", ErrLabel, file)
	}
	location, ok = strings.CutPrefix(second, "CHECKPOINT LOCATION: ")
	if !ok {
		return fmt.Errorf("%w: no CHECKPOINT LOCATION", ErrLabel)
	}
	if l.Checkpoint, err = wal.ParseLSN(location); err != nil {
		return fmt.Errorf("%w: CHECKPOINT LOCATION: %w", ErrLabel, err)
	}
	return nil
}

func (l *BackupLabel) parseField(line string) (err error) {
	name, value, ok := strings.Cut(line, ": ")
	if !ok {
		return nil
	}
	switch name {
	case "BACKUP METHOD":
		l.Method = value
	case "BACKUP FROM":
		l.From = value
	case "START TIME":
		l.StartTime = value
	case "LABEL":
		l.Label = value
	case "START TIMELINE":
		l.StartTimeline, err = parseTimeline(value)
	case "INCREMENTAL FROM LSN":
		l.IncrementalFromLSN, err = wal.ParseLSN(value)
	case "INCREMENTAL FROM TLI":
		l.IncrementalFromTLI, err = parseTimeline(value)
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrLabel, name, err)
	}
	return nil
}

func parseTimeline(s string) (timeline.ID, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	return timeline.ID(n), err
}

// Format returns the file's bytes. Fields that are empty have no line.
func (l *BackupLabel) Format() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "START WAL LOCATION: %s (file %s)\n", l.StartWAL, l.WALFile)
	fmt.Fprintf(&b, "CHECKPOINT LOCATION: %s\n", l.Checkpoint)
	text := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%s: %s\n", name, strings.ReplaceAll(value, "\n", " "))
		}
	}
	text("BACKUP METHOD", l.Method)
	text("BACKUP FROM", l.From)
	text("START TIME", l.StartTime)
	text("LABEL", l.Label)
	if l.StartTimeline != 0 {
		fmt.Fprintf(&b, "START TIMELINE: %d\n", uint32(l.StartTimeline))
	}
	if l.IncrementalFromLSN != 0 {
		fmt.Fprintf(&b, "INCREMENTAL FROM LSN: %s\nINCREMENTAL FROM TLI: %d\n",
			l.IncrementalFromLSN, uint32(l.IncrementalFromTLI))
	}
	return b.Bytes()
}

// TablespaceLink is one line of tablespace_map: the link pg_tblspc/Oid leads
// to the directory Path.
type TablespaceLink struct {
	Oid  uint32 `json:"oid"`
	Path string `json:"path"`
}

// ErrTablespaceMap is returned when a tablespace map is not one that a server
// accepts.
var ErrTablespaceMap = errors.New("invalid tablespace_map")

// ParseTablespaceMap reads the file tablespace_map: one line per tablespace,
// the OID, a blank, the path. A backslash before a backslash, a line feed or a
// carriage return in the path makes it part of the path. Empty lines are
// passed over.
func ParseTablespaceMap(data []byte) ([]TablespaceLink, error) {
	var links []TablespaceLink
	var line []byte
	escaped := false
	for _, c := range data {
		switch {
		case !escaped && (c == '\n' || c == '\r'):
			if len(line) == 0 {
				continue
			}
			link, err := parseTablespaceLink(string(line))
			if err != nil {
				return nil, err
			}
			links = append(links, link)
			line = line[:0]
		case !escaped && c == '\\':
			escaped = true
		default:
			line = append(line, c)
			escaped = false
		}
	}
	if len(line) > 0 || escaped {
		return nil, fmt.Errorf("%w: the last line does not end", ErrTablespaceMap)
	}
	return links, nil
}

func parseTablespaceLink(line string) (TablespaceLink, error) {
	number, path, ok := strings.Cut(line, " ")
	oid, ok2 := parseOid(number)
	if !ok || !ok2 || path == "" {
		return TablespaceLink{}, fmt.Errorf("%w: %q is not an OID and a path", ErrTablespaceMap, line)
	}
	return TablespaceLink{Oid: oid, Path: path}, nil
}

// FormatTablespaceMap returns the file's bytes. Without links there is no such
// file, and the result is empty.
func FormatTablespaceMap(links []TablespaceLink) []byte {
	var b bytes.Buffer
	for _, l := range links {
		b.WriteString(strconv.FormatUint(uint64(l.Oid), 10))
		b.WriteByte(' ')
		for i := range len(l.Path) {
			if c := l.Path[i]; c == '\\' || c == '\n' || c == '\r' {
				b.WriteByte('\\')
			}
			b.WriteByte(l.Path[i])
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}
