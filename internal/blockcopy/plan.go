package blockcopy

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"tidemark/internal/exit"
	"tidemark/pkg/volume"
)

// Kind is what an Action does to one path of the target.
type Kind uint8

// The kinds. Their order is the order of the stages in which they run.
const (
	CreateDir  Kind = iota + 1 // make the directory (its mode follows the target's)
	CreateLink                 // make the symbolic link to LinkTarget, and that directory where it is missing
	Copy                       // the whole file, Size bytes; what the target has under that name is replaced
	CopyBlocks                 // the byte spans in Spans, in place
	CopyTail                   // from From up to Size
	Truncate                   // shorten the target's file to Size
	Remove                     // a file, link or empty directory
	Keep                       // leave it; listed where the reader of a plan would ask why
)

var kindNames = [...]string{CreateDir: "create-dir", CreateLink: "create-link", Copy: "copy", CopyBlocks: "copy-blocks",
	CopyTail: "copy-tail", Truncate: "truncate", Remove: "remove", Keep: "keep"}

func (k Kind) String() string {
	if k > 0 && int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// MarshalText writes the kind's name.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads the kind's name.
func (k *Kind) UnmarshalText(b []byte) error {
	for i, name := range kindNames {
		if name != "" && name == string(b) {
			*k = Kind(i)
			return nil
		}
	}
	return fmt.Errorf("unknown action %q", b)
}

// Span is a run of bytes: offset and length. In JSON it is [offset, length].
type Span struct{ Offset, Length int64 }

// MarshalJSON writes [offset, length].
func (s Span) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, "[%d,%d]", s.Offset, s.Length), nil
}

// UnmarshalJSON reads [offset, length].
func (s *Span) UnmarshalJSON(b []byte) error {
	var pair []int64
	if err := json.Unmarshal(b, &pair); err != nil {
		return err
	}
	if len(pair) != 2 || pair[0] < 0 || pair[1] <= 0 {
		return fmt.Errorf("a span is [offset, length], not %s", b)
	}
	s.Offset, s.Length = pair[0], pair[1]
	return nil
}

// Action is one step of a plan. One path may have several, of different
// stages: blocks and a tail, blocks and a truncation.
type Action struct {
	Kind       Kind   `json:"action"`
	Path       string `json:"path"`
	Size       int64  `json:"size,omitempty"`        // Copy, CopyTail: the source's size when planned; Truncate: the size to keep
	From       int64  `json:"from,omitempty"`        // CopyTail: the first byte
	Zeros      int64  `json:"zeros,omitempty"`       // Copy: how many zero bytes the file has behind Size
	Spans      []Span `json:"spans,omitempty"`       // CopyBlocks: ascending, not overlapping
	LinkTarget string `json:"link_target,omitempty"` // CreateLink
	Required   bool   `json:"required,omitempty"`    // a source that lacks it (or ends before Size) is an error, not a removal
	Reason     string `json:"reason,omitempty"`      // why, where it is not plain
}

// Bytes is how many bytes the action fetches from the source.
func (a Action) Bytes() int64 {
	switch a.Kind {
	case Copy:
		return a.Size
	case CopyTail:
		return a.Size - a.From
	case CopyBlocks:
		var n int64
		for _, s := range a.Spans {
			n += s.Length
		}
		return n
	}
	return 0
}

// spans returns what the action fetches.
func (a Action) spans() []Span {
	switch {
	case a.Kind == CopyBlocks:
		return a.Spans
	case a.Kind == Copy && a.Size > 0:
		return []Span{{0, a.Size}}
	case a.Kind == CopyTail && a.Size > a.From:
		return []Span{{a.From, a.Size - a.From}}
	}
	return nil
}

// Plan is everything that a run will do to the target. It is data: it is
// printed by --dry-run, written into the journal before the first change, and
// read back by the run that resumes.
type Plan struct {
	Version   int             `json:"version"`           // of this format: PlanVersion
	ID        string          `json:"id"`                // names this run in the tombstone and the journal; set by Run
	Operation string          `json:"operation"`         // what is done, a verb: "rewind", "seed", "restore"
	Command   string          `json:"command,omitempty"` // the command line to run again, as a shell takes it
	Created   time.Time       `json:"created"`
	Source    string          `json:"source"`         // Source.Name()
	Meta      json.RawMessage `json:"meta,omitempty"` // what the planner needs to know again when it resumes
	Undo      bool            `json:"undo,omitempty"` // the journal keeps what an undo needs
	Actions   []Action        `json:"actions"`
	Totals    Totals          `json:"totals"`
	// TaskBytes is the size of one unit of work and of journalling. It is
	// kept in the plan so that a resumed run splits it in the same way.
	TaskBytes int64 `json:"task_bytes"`
}

// PlanVersion is the version of the plan's and the journal's format. 2 put
// tasks into batches and compresses what is kept for the undo; 3 begins with
// small batches.
const PlanVersion = 3

// Totals sums a plan up. Sizes are in bytes.
type Totals struct {
	Dirs          int   `json:"create_dirs"`
	Links         int   `json:"create_links"`
	Copied        int   `json:"copy_files"`
	CopiedBytes   int64 `json:"copy_bytes"`
	Patched       int   `json:"patch_files"` // files of which some blocks or the tail are copied
	PatchedBytes  int64 `json:"patch_bytes"`
	Truncated     int   `json:"truncate_files"`
	Removed       int   `json:"remove_paths"`
	Kept          int   `json:"keep_listed"`
	Bytes         int64 `json:"bytes"`        // that travel: CopiedBytes + PatchedBytes
	SourceBytes   int64 `json:"source_bytes"` // of all files at the source; set by the planner
	Unchanged     int   `json:"unchanged_files"`
	UnchangedSize int64 `json:"unchanged_bytes"` // both set by the planner: what is the same on both sides and is not read
}

// Sum sets the totals that follow from the actions and leaves the planner's.
func (p *Plan) Sum() {
	t := Totals{SourceBytes: p.Totals.SourceBytes, Unchanged: p.Totals.Unchanged, UnchangedSize: p.Totals.UnchangedSize}
	patched := ""
	for _, a := range p.Actions {
		switch a.Kind {
		case CreateDir:
			t.Dirs++
		case CreateLink:
			t.Links++
		case Copy:
			t.Copied++
			t.CopiedBytes += a.Bytes()
		case CopyBlocks, CopyTail:
			if a.Path != patched {
				t.Patched++
				patched = a.Path
			}
			t.PatchedBytes += a.Bytes()
		case Truncate:
			t.Truncated++
		case Remove:
			t.Removed++
		case Keep:
			t.Kept++
		}
	}
	t.Bytes = t.CopiedBytes + t.PatchedBytes
	p.Totals = t
}

// Validate checks what must hold before a plan touches a disk: a version that
// is known, safe names, spans that ascend. It guards against a damaged
// journal as well as against a planner's mistake.
func (p *Plan) Validate() error {
	if p.Version != PlanVersion {
		return exit.New(exit.Refused, "finish what was begun, or take it back, with the version of this program that began it",
			"plan format %d is not known (this program knows %d)", p.Version, PlanVersion)
	}
	if p.TaskBytes <= 0 {
		return fmt.Errorf("plan: task_bytes is %d", p.TaskBytes)
	}
	for i, a := range p.Actions {
		if err := a.validate(); err != nil {
			return fmt.Errorf("plan: action %d: %w", i, err)
		}
	}
	return nil
}

func (a Action) validate() error {
	if err := CheckPath(a.Path); err != nil {
		return err
	}
	if a.Kind < CreateDir || a.Kind > Keep {
		return fmt.Errorf("%s: unknown action %d", a.Path, a.Kind)
	}
	if a.Size < 0 || a.From < 0 || a.Zeros < 0 || (a.Kind == CopyTail && a.From > a.Size) {
		return fmt.Errorf("%s: size %d from %d", a.Path, a.Size, a.From)
	}
	if first, _, _ := strings.Cut(a.Path, "/"); first == JournalDir {
		return fmt.Errorf("%s lies in the journal", a.Path)
	}
	end := int64(0)
	for _, s := range a.Spans {
		if s.Offset < end || s.Length <= 0 {
			return fmt.Errorf("%s: spans do not ascend at %d", a.Path, s.Offset)
		}
		end = s.Offset + s.Length
	}
	return nil
}

// BlockSpans turns ascending block numbers into spans, neighbours merged.
func BlockSpans(blocks []uint32, blockSize int64) []Span {
	var spans []Span
	for _, b := range blocks {
		off := int64(b) * blockSize
		if n := len(spans); n > 0 && spans[n-1].Offset+spans[n-1].Length == off {
			spans[n-1].Length += blockSize
			continue
		}
		spans = append(spans, Span{off, blockSize})
	}
	return spans
}

// targetModes are the permissions that new files and directories get, derived
// from the target directory's own: group access or none.
type targetModes struct{ file, dir fs.FileMode }

func modesFor(dir fs.FileMode) targetModes {
	if dir&0o050 == 0o050 {
		return targetModes{file: 0o640, dir: 0o750}
	}
	return targetModes{file: 0o600, dir: 0o700}
}

// JournalDir is the one directory, inside the target, that holds the journal
// of an unfinished run. It is never copied, never removed by a plan, and not
// part of a backup.
const JournalDir = volume.OwnDir
