package repo

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"tidemark/internal/blockcopy"
)

// fileLine is the JSON of a File. Part of the format, do not change.
type fileLine struct {
	Path   string `json:"path,omitempty"`
	Path64 []byte `json:"path64,omitempty"` // instead of Path when it is not UTF-8
	Type   string `json:"type,omitempty"`   // "dir", "link"; absent for a file
	Size   int64  `json:"size,omitempty"`
	Mode   string `json:"mode,omitempty"`  // octal
	MTime  string `json:"mtime,omitempty"` // RFC 3339, UTC
	Target string `json:"target,omitempty"`
	Blocks string `json:"blocks,omitempty"` // runs: count@pack:first, or <count>z
	Digest string `json:"digest,omitempty"`
}

// appendFile appends the line of f. It is written by hand because a cluster
// may have a million files.
func appendFile(b []byte, f *File) []byte {
	b = append(b, '{')
	if utf8.ValidString(f.Path) {
		b = append(b, `"path":`...)
		b = appendString(b, f.Path)
	} else {
		b = append(b, `"path64":"`...)
		b = base64.StdEncoding.AppendEncode(b, []byte(f.Path))
		b = append(b, '"')
	}
	switch f.Type {
	case blockcopy.Dir:
		b = append(b, `,"type":"dir"`...)
	case blockcopy.Link:
		b = append(b, `,"type":"link","target":`...)
		b = appendString(b, f.LinkTarget)
	default:
		b = append(b, `,"size":`...)
		b = strconv.AppendInt(b, f.Size, 10)
	}
	if f.Mode != 0 {
		b = append(b, `,"mode":"0`...)
		b = strconv.AppendUint(b, uint64(f.Mode.Perm()), 8)
		b = append(b, '"')
	}
	if !f.ModTime.IsZero() {
		b = append(b, `,"mtime":"`...)
		b = f.ModTime.UTC().AppendFormat(b, time.RFC3339Nano)
		b = append(b, '"')
	}
	if f.Type == blockcopy.File && f.Size > 0 {
		b = append(b, `,"blocks":"`...)
		b = appendRuns(b, f.Runs)
		b = append(b, `","digest":"`...)
		b = append(b, f.Digest.String()...)
		b = append(b, '"')
	}
	return append(b, "}\n"...)
}

func appendString(b []byte, s string) []byte {
	q, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings always marshal
	}
	return append(b, q...)
}

func appendRuns(b []byte, runs []Run) []byte {
	for i, r := range runs {
		if i > 0 {
			b = append(b, ' ')
		}
		b = strconv.AppendUint(b, uint64(r.Count), 10)
		if r.Pack == ZeroPack {
			b = append(b, 'z')
			continue
		}
		b = append(b, '@')
		b = strconv.AppendInt(b, int64(r.Pack), 10)
		b = append(b, ':')
		b = strconv.AppendUint(b, uint64(r.First), 10)
	}
	return b
}

var errBadRuns = errors.New("malformed block list")

// parseRuns reads what appendRuns wrote. packs bounds the pack numbers, and
// blocks is how many blocks there have to be in all.
func parseRuns(s string, packs []Pack, blocks int64) ([]Run, error) {
	runs := make([]Run, 0, min(strings.Count(s, " ")+1, 1<<16))
	var total int64
	for len(s) > 0 {
		var item string
		item, s, _ = strings.Cut(s, " ")
		r := Run{Pack: ZeroPack}
		count, place, stored := strings.Cut(item, "@")
		if !stored {
			var ok bool
			if count, ok = strings.CutSuffix(item, "z"); !ok {
				return nil, errBadRuns
			}
		}
		n, err := strconv.ParseUint(count, 10, 32)
		if err != nil || n == 0 {
			return nil, errBadRuns
		}
		r.Count = uint32(n)
		if stored {
			pack, first, _ := strings.Cut(place, ":")
			p, err1 := strconv.ParseInt(pack, 10, 31)
			f, err2 := strconv.ParseUint(first, 10, 32)
			if err1 != nil || err2 != nil || p < 0 || p >= int64(len(packs)) || f+n > uint64(packs[p].Blocks) {
				return nil, errBadRuns
			}
			r.Pack, r.First = int32(p), uint32(f)
		}
		total += int64(n)
		runs = append(runs, r)
	}
	if total != blocks {
		return nil, fmt.Errorf("the block list covers %d blocks of %d", total, blocks)
	}
	return runs, nil
}

// blockCount is the number of blocks of a file, the last of which may be short.
func blockCount(size int64, blockSize uint32) int64 {
	return (size + int64(blockSize) - 1) / int64(blockSize)
}

// parseFile reads a line.
func parseFile(line []byte, packs []Pack, blockSize uint32) (*File, error) {
	var l fileLine
	if err := json.Unmarshal(line, &l); err != nil {
		return nil, err
	}
	f := &File{Entry: blockcopy.Entry{Path: l.Path, Size: l.Size, LinkTarget: l.Target}}
	if l.Path64 != nil {
		f.Path = string(l.Path64)
	}
	if err := blockcopy.CheckPath(f.Path); err != nil {
		return nil, err
	}
	switch l.Type {
	case "":
		f.Type = blockcopy.File
	case "dir":
		f.Type = blockcopy.Dir
	case "link":
		f.Type = blockcopy.Link
	default:
		return nil, fmt.Errorf("%s: unknown type %q", f.Path, l.Type)
	}
	if l.Mode != "" {
		m, err := strconv.ParseUint(l.Mode, 8, 9)
		if err != nil {
			return nil, fmt.Errorf("%s: mode %q", f.Path, l.Mode)
		}
		f.Mode = fs.FileMode(m)
	}
	if l.MTime != "" {
		t, err := time.Parse(time.RFC3339Nano, l.MTime)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path, err)
		}
		f.ModTime = t
	}
	if f.Type != blockcopy.File {
		return f, nil
	}
	if f.Size < 0 {
		return nil, fmt.Errorf("%s: size %d", f.Path, f.Size)
	}
	runs, err := parseRuns(l.Blocks, packs, blockCount(f.Size, blockSize))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	f.Runs = runs
	if f.Size > 0 {
		if err := f.Digest.UnmarshalText([]byte(l.Digest)); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	return f, nil
}
