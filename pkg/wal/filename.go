package wal

import "fmt"

// FileKind says what a file name found in pg_wal or in an archive stands for.
type FileKind uint8

// The kinds, as access/xlog_internal.h names them.
const (
	FileSegment       FileKind = iota + 1 // 000000010000000000000003
	FilePartial                           // 000000010000000000000003.partial
	FileHistory                           // 00000002.history
	FileBackupHistory                     // 000000010000000000000003.00000028.backup
)

// String returns the kind in words.
func (k FileKind) String() string {
	switch k {
	case FileSegment:
		return "segment"
	case FilePartial:
		return "partial segment"
	case FileHistory:
		return "timeline history"
	case FileBackupHistory:
		return "backup history"
	}
	return "unknown"
}

// FileName is the name of a WAL file taken apart. Log and Seg are the middle
// and last eight digits; which segment they number depends on the segment size.
type FileName struct {
	Kind     FileKind
	Timeline TimelineID
	Log, Seg uint32 // zero for FileHistory
	Offset   uint32 // FileBackupHistory: offset of the backup's start in the segment
}

// SegmentName returns the file name of segment n on timeline tli.
func SegmentName(tli TimelineID, n SegmentNumber, size SegmentSize) string {
	return segmentFile(FileSegment, tli, n, size).String()
}

// PartialName returns the name under which an incomplete last segment is kept.
func PartialName(tli TimelineID, n SegmentNumber, size SegmentSize) string {
	return segmentFile(FilePartial, tli, n, size).String()
}

// HistoryName returns the name of the history file of timeline tli.
func HistoryName(tli TimelineID) string {
	return FileName{Kind: FileHistory, Timeline: tli}.String()
}

// BackupHistoryName returns the name of the file that the server archives at
// the end of a backup which began at start.
func BackupHistoryName(tli TimelineID, start LSN, size SegmentSize) string {
	f := segmentFile(FileBackupHistory, tli, size.Number(start), size)
	f.Offset = size.Offset(start)
	return f.String()
}

func segmentFile(k FileKind, tli TimelineID, n SegmentNumber, size SegmentSize) FileName {
	per := size.perID()
	return FileName{Kind: k, Timeline: tli, Log: uint32(uint64(n) / per), Seg: uint32(uint64(n) % per)}
}

// String formats the name; for a zero FileName it is empty.
func (f FileName) String() string {
	switch f.Kind {
	case FileSegment:
		return fmt.Sprintf("%08X%08X%08X", uint32(f.Timeline), f.Log, f.Seg)
	case FilePartial:
		return fmt.Sprintf("%08X%08X%08X.partial", uint32(f.Timeline), f.Log, f.Seg)
	case FileHistory:
		return fmt.Sprintf("%08X.history", uint32(f.Timeline))
	case FileBackupHistory:
		return fmt.Sprintf("%08X%08X%08X.%08X.backup", uint32(f.Timeline), f.Log, f.Seg, f.Offset)
	}
	return ""
}

// Number returns the segment that the name stands for in a cluster of the given
// segment size, and false when such a cluster could not have written the name
// (the last eight digits exceed what 4 GB hold) or the name is a history file.
func (f FileName) Number(size SegmentSize) (SegmentNumber, bool) {
	if f.Kind == 0 || f.Kind == FileHistory || !size.Valid() || uint64(f.Seg) >= size.perID() {
		return 0, false
	}
	return SegmentNumber(uint64(f.Log)*size.perID() + uint64(f.Seg)), true
}

// ParseFileName takes apart the name of a WAL file, without directories. It
// accepts exactly what String writes: a name with lower-case digits, for
// example, is not one that the server would look for.
func ParseFileName(name string) (FileName, bool) {
	f, ok := splitFileName(name)
	if !ok || f.String() != name {
		return FileName{}, false
	}
	return f, true
}

func splitFileName(name string) (FileName, bool) {
	const segLen = 24
	if len(name) < 8 {
		return FileName{}, false
	}
	tli, ok := parseHex32(name[:8])
	if !ok {
		return FileName{}, false
	}
	f := FileName{Kind: FileHistory, Timeline: TimelineID(tli)}
	if name[8:] == ".history" {
		return f, true
	}
	if len(name) < segLen {
		return FileName{}, false
	}
	var ok2 bool
	f.Log, ok = parseHex32(name[8:16])
	f.Seg, ok2 = parseHex32(name[16:segLen])
	if !ok || !ok2 {
		return FileName{}, false
	}
	switch rest := name[segLen:]; {
	case rest == "":
		f.Kind = FileSegment
	case rest == ".partial":
		f.Kind = FilePartial
	case len(rest) == len(".00000028.backup"):
		f.Kind = FileBackupHistory
		f.Offset, ok = parseHex32(rest[1:9])
	default:
		ok = false
	}
	return f, ok
}
