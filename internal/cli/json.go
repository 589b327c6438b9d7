package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"

	"tidemark/internal/exit"
)

// ErrorDocument is the member "error" of a JSON document.
type ErrorDocument struct {
	Code    int    `json:"code"`           // the exit status
	Name    string `json:"name"`           // its name in the table of exit codes
	Message string `json:"message"`        // what happened and where
	Hint    string `json:"hint,omitempty"` // what to do next
}

func newErrorDocument(code exit.Code, status int, err error) *ErrorDocument {
	if err == nil {
		return nil
	}
	d := &ErrorDocument{Code: status, Name: "other", Message: err.Error(), Hint: hintFor(err)}
	for _, r := range exit.Table() {
		if r.Code == code {
			d.Name = r.Name
		}
	}
	return d
}

// LongList is a member of a result that is too long to be held as one text:
// its elements are encoded and written one after the other. The member's type
// is a pointer; nil is written as null.
type LongList interface {
	json.Marshaler
	// EachElement calls emit with each element as indented JSON, every line but
	// the first behind the prefix. emit does not keep the bytes.
	EachElement(prefix string, emit func([]byte) error) error
}

// writeJSON writes doc as indented JSON with the error as its last member. A
// result that is not an object moves into the member "result".
func writeJSON(w io.Writer, doc any, problem *ErrorDocument) error {
	var members []member
	var err error
	if doc != nil {
		if members, err = membersOf(doc); err != nil {
			return err
		}
	}
	if problem != nil {
		e, err := marshal(problem)
		if err != nil {
			return err
		}
		members = append(members, member{name: "error", value: e})
	}
	out := bufio.NewWriterSize(w, 64<<10)
	if len(members) == 0 {
		out.WriteString("{}\n")
		return out.Flush()
	}
	before := "{"
	for i := range members {
		m := &members[i]
		fmt.Fprintf(out, "%s\n  %q: ", before, m.name)
		before = ","
		if err := m.write(out); err != nil {
			return err
		}
	}
	out.WriteString("\n}\n")
	return out.Flush()
}

// member is one of a document's.
type member struct {
	name  string
	value json.RawMessage
	list  LongList // instead of the value
}

func (m *member) write(w *bufio.Writer) error {
	if m.list == nil {
		var b bytes.Buffer
		if err := json.Indent(&b, m.value, "  ", "  "); err != nil {
			return err
		}
		_, err := w.Write(b.Bytes())
		return err
	}
	w.WriteByte('[')
	next := "\n    "
	err := m.list.EachElement("    ", func(b []byte) error {
		w.WriteString(next)
		next = ",\n    "
		_, err := w.Write(b)
		return err
	})
	if next[0] == ',' {
		w.WriteString("\n  ")
	}
	w.WriteByte(']')
	return err
}

// membersOf encodes a document, but for its long lists.
func membersOf(doc any) ([]member, error) {
	short, lists := withoutLists(doc)
	body, err := marshal(short)
	if err != nil {
		return nil, err
	}
	if body[0] != '{' {
		return []member{{name: "result", value: body}}, nil
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	var out []member
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, err
		}
		m := member{name: fmt.Sprint(name)}
		if err := dec.Decode(&m.value); err != nil {
			return nil, err
		}
		m.list = lists[m.name]
		out = append(out, m)
	}
	return out, nil
}

// withoutLists returns a copy of a struct with its long lists taken out, and
// these by the names of their members.
func withoutLists(doc any) (any, map[string]LongList) {
	v := reflect.ValueOf(doc)
	for v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		return doc, nil
	}
	var short reflect.Value
	lists := map[string]LongList{}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.IsExported() || f.Type.Kind() != reflect.Pointer || v.Field(i).IsNil() {
			continue
		}
		l, ok := v.Field(i).Interface().(LongList)
		if !ok {
			continue
		}
		if !short.IsValid() {
			short = reflect.New(v.Type()).Elem()
			short.Set(v)
		}
		short.Field(i).SetZero()
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		lists[name] = l
	}
	if !short.IsValid() {
		return doc, nil
	}
	return short.Interface(), lists
}

// marshal leaves <, > and & readable: the output is not HTML.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSpace(b.Bytes()), err
}
