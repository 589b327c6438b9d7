package cli

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Text writes a result for people: lines, aligned keys and values, tables.
type Text struct {
	w   io.Writer
	err error
}

// NewText returns a Text on w, for code that renders outside of Env.Render.
func NewText(w io.Writer) *Text { return &Text{w: w} }

// Line writes one line.
func (t *Text) Line(format string, args ...any) {
	t.write(fmt.Sprintf(format, args...))
}

// Blank writes an empty line.
func (t *Text) Blank() { t.write("") }

// KV writes pairs of a key and a value, one pair a line, values aligned. A
// pair whose value is the empty string is left out.
func (t *Text) KV(pairs ...any) {
	width := 0
	for i := 0; i+1 < len(pairs); i += 2 {
		if fmt.Sprint(pairs[i+1]) != "" {
			width = max(width, utf8.RuneCountInString(fmt.Sprint(pairs[i])))
		}
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		value := fmt.Sprint(pairs[i+1])
		if value == "" {
			continue
		}
		t.write("  " + pad(fmt.Sprint(pairs[i]), width, false) + "  " + value)
	}
}

// Table writes rows under their headings.
func (t *Text) Table(tab *Table) {
	for _, line := range tab.lines() {
		t.write(line)
	}
}

func (t *Text) write(line string) {
	if t.err == nil {
		_, t.err = io.WriteString(t.w, strings.TrimRight(line, " ")+"\n")
	}
}

// Table is a table of aligned columns.
type Table struct {
	head  []string
	rows  [][]string
	right map[int]bool
}

// NewTable returns a table with these headings. A heading that starts with
// ">" makes its column right-aligned.
func NewTable(headings ...string) *Table {
	t := &Table{right: map[int]bool{}}
	for i, h := range headings {
		if r, ok := strings.CutPrefix(h, ">"); ok {
			t.right[i] = true
			h = r
		}
		t.head = append(t.head, h)
	}
	return t
}

// Row adds a row; a missing or empty cell is drawn as "-".
func (t *Table) Row(cells ...any) {
	row := make([]string, len(t.head))
	for i := range row {
		row[i] = "-"
		if i < len(cells) {
			if s := fmt.Sprint(cells[i]); s != "" {
				row[i] = s
			}
		}
	}
	t.rows = append(t.rows, row)
}

func (t *Table) lines() []string {
	widths := make([]int, len(t.head))
	for _, row := range append([][]string{t.head}, t.rows...) {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	var out []string
	for _, row := range append([][]string{t.head}, t.rows...) {
		cells := make([]string, len(row))
		for i, c := range row {
			cells[i] = pad(c, widths[i], t.right[i])
		}
		out = append(out, strings.TrimRight(strings.Join(cells, "  "), " "))
	}
	return out
}

func pad(s string, width int, right bool) string {
	fill := strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s)))
	if right {
		return fill + s
	}
	return s + fill
}
