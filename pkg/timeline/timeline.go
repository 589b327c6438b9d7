// Package timeline reads and writes PostgreSQL's timeline history files and
// answers where timelines come from and where they part.
//
// A history file, 0000000N.history, is text (access/timeline.c). It lists the
// ancestors of timeline N, the oldest first, one line each:
//
//	parent timeline <TAB> switch point <TAB> reason <LF>
//
//	1	0/3000148	no recovery target specified
//
//	2	0/50001C0	before 2026-11-21 10:00:00+00
//
// The switch point is the first byte of WAL that does not belong to the
// parent any more. The server copies the parent's file, then an empty line,
// then its own entry. Empty lines and lines that begin with # are passed over,
// and so is whatever follows the switch point. Timeline 1 has no file.
package timeline

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"tidemark/pkg/wal"
)

// ID is the number of a timeline. 0 is no timeline.
type ID = wal.TimelineID

// Entry says where a timeline ended and the next one began.
type Entry struct {
	Timeline ID      `json:"timeline"`
	Switch   wal.LSN `json:"switch"` // first byte that belongs to the next timeline
	Reason   string  `json:"reason,omitempty"`
}

// Span is the range of WAL that one timeline of a history covers. End is 0
// for the last one, which has no end.
type Span struct {
	Timeline ID      `json:"timeline"`
	Begin    wal.LSN `json:"begin"`
	End      wal.LSN `json:"end"`
}

// Contains tells whether the byte at lsn lies in the span.
func (s Span) Contains(lsn wal.LSN) bool { return lsn >= s.Begin && (s.End == 0 || lsn < s.End) }

// History is the line of descent of one timeline.
type History struct {
	Timeline ID      `json:"timeline"`
	Entries  []Entry `json:"entries"` // the ancestors, the oldest first

	raw []byte // the file that it was read from
}

// Root returns the history of a timeline without ancestors, which has no
// file: timeline 1, or a timeline whose file is known not to exist.
func Root(id ID) *History { return &History{Timeline: id} }

// ParseError says what is wrong with a history file.
type ParseError struct {
	Timeline ID // whose file it is
	Line     int
	Cause    string
}

func (e *ParseError) Error() string {
	return fmt.Sprintf("history file of timeline %d, line %d: %s", e.Timeline, e.Line, e.Cause)
}

// Parse reads the history file of timeline id. It takes what the server takes
// and refuses what the server refuses.
func Parse(id ID, data []byte) (*History, error) {
	h := &History{Timeline: id, raw: bytes.Clone(data)}
	last, line := ID(0), 0
	for text := range bytes.Lines(data) {
		line++
		bad := func(cause string) error { return &ParseError{id, line, cause} }
		s := string(bytes.TrimLeft(text, " \t\n\v\f\r"))
		if s == "" || s[0] == '#' {
			continue
		}
		e, err := parseEntry(s)
		if err != nil {
			return nil, bad(err.Error())
		}
		if e.Timeline <= last {
			return nil, bad("timelines do not increase")
		}
		if e.Timeline >= id {
			return nil, bad("an ancestor's number is not less than the timeline's own")
		}
		last = e.Timeline
		h.Entries = append(h.Entries, e)
	}
	return h, nil
}

// parseEntry reads "timeline switchpoint reason" as sscanf("%u\t%X/%X") does:
// any amount of white space, even none, may stand between the parts.
func parseEntry(s string) (Entry, error) {
	number, rest, ok := scan(s, 10)
	if !ok {
		return Entry{}, errors.New("expected a timeline number")
	}
	hi, rest, ok1 := scan(skipSpace(rest), 16)
	rest, ok2 := strings.CutPrefix(rest, "/")
	lo, rest, ok3 := scan(skipSpace(rest), 16)
	if !ok1 || !ok2 || !ok3 {
		return Entry{}, errors.New("expected the location of a switch point")
	}
	lsn := wal.LSN(uint64(hi)<<32 | uint64(lo))
	return Entry{Timeline: ID(number), Switch: lsn, Reason: strings.TrimSpace(rest)}, nil
}

func skipSpace(s string) string { return strings.TrimLeft(s, " \t\n\v\f\r") }

// scan reads an unsigned number of 32 bits from the start of s.
func scan(s string, base int) (n uint32, rest string, ok bool) {
	if base == 16 && len(s) > 2 && s[0] == '0' && (s[1] == 'x' || s[1] == 'X') {
		s = s[2:]
	}
	end := 0
	for end < len(s) && isDigit(s[end], base) {
		end++
	}
	v, err := strconv.ParseUint(s[:end], base, 32)
	return uint32(v), s[end:], err == nil
}

func isDigit(c byte, base int) bool {
	return c >= '0' && c <= '9' || base == 16 && (c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F')
}

// Format returns the file: the bytes it was read from, or for a history made
// by Child those that the server would have written. It is empty for a
// timeline without ancestors.
func (h *History) Format() []byte {
	if h.raw != nil {
		return bytes.Clone(h.raw)
	}
	var b bytes.Buffer
	for i, e := range h.Entries {
		if i > 0 {
			b.WriteByte('\n')
		}
		writeEntry(&b, e)
	}
	return b.Bytes()
}

func writeEntry(b *bytes.Buffer, e Entry) {
	fmt.Fprintf(b, "%d\t%X/%X\t%s\n", uint32(e.Timeline), uint64(e.Switch)>>32, uint32(e.Switch), e.Reason)
}

// Child returns the history of the timeline id that leaves this one at the
// point sw, with the file that the server would write: this one's, an empty
// line, the new entry.
func (h *History) Child(id ID, sw wal.LSN, reason string) (*History, error) {
	if id <= h.Timeline {
		return nil, fmt.Errorf("timeline %d cannot descend from timeline %d", id, h.Timeline)
	}
	e := Entry{Timeline: h.Timeline, Switch: sw, Reason: reason}
	b := bytes.NewBuffer(h.Format())
	if b.Len() > 0 || h.raw != nil {
		b.WriteByte('\n')
	}
	writeEntry(b, e)
	return &History{Timeline: id, Entries: append(slices.Clip(slices.Clone(h.Entries)), e), raw: b.Bytes()}, nil
}

// Spans returns the ranges of WAL that lead to the timeline's end, the oldest
// first; the last is the timeline's own.
func (h *History) Spans() []Span {
	spans := make([]Span, 0, len(h.Entries)+1)
	begin := wal.LSN(0)
	for _, e := range h.Entries {
		spans = append(spans, Span{e.Timeline, begin, e.Switch})
		begin = e.Switch
	}
	return append(spans, Span{h.Timeline, begin, 0})
}

// TimelineAt returns the timeline that the byte at lsn belongs to.
func (h *History) TimelineAt(lsn wal.LSN) ID {
	for _, s := range h.Spans() {
		if s.Contains(lsn) {
			return s.Timeline
		}
	}
	return h.Timeline
}

// SpanOf returns the range of the timeline id, and false where id is not in
// the line of descent.
func (h *History) SpanOf(id ID) (Span, bool) {
	for _, s := range h.Spans() {
		if s.Timeline == id {
			return s, true
		}
	}
	return Span{}, false
}

// Contains tells whether the position (id, lsn) lies on the line of descent:
// a cluster that has written WAL on id up to lsn can follow this history. The
// end of a span is still on it: nothing was written past the switch.
func (h *History) Contains(id ID, lsn wal.LSN) bool {
	s, ok := h.SpanOf(id)
	return ok && lsn >= s.Begin && (s.End == 0 || lsn <= s.End)
}

// ErrNoCommonTimeline is returned when two histories share no timeline at all.
var ErrNoCommonTimeline = errors.New("the two histories have no timeline in common")

// Fork is the point where two histories part.
type Fork struct {
	Timeline ID      `json:"timeline"` // the last one they share
	Begin    wal.LSN `json:"begin"`    // where that timeline began
	LSN      wal.LSN `json:"lsn"`      // first byte that is not shared; 0 where they never part
}

// Diverge returns the last point that both histories share: the last span
// whose timeline and begin are equal, up to the smaller of its two ends. The
// same timeline number with another begin is another timeline.
func Diverge(a, b *History) (Fork, error) {
	as, bs := a.Spans(), b.Spans()
	n := 0
	for n < min(len(as), len(bs)) && as[n].Timeline == bs[n].Timeline && as[n].Begin == bs[n].Begin {
		n++
	}
	if n == 0 {
		return Fork{}, ErrNoCommonTimeline
	}
	sa, sb := as[n-1], bs[n-1]
	return Fork{Timeline: sa.Timeline, Begin: sa.Begin, LSN: earlierEnd(sa.End, sb.End)}, nil
}

// earlierEnd returns the smaller of two ends, of which 0 is infinite.
func earlierEnd(a, b wal.LSN) wal.LSN {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
