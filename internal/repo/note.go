package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Notes are the small objects that are text: one line of JSON whose last
// member is "sum", the hash of the line without that member. A note is
// recognised by being what encoding its value again gives, so that no changed
// bit goes unnoticed. Objects of the time before sums are read without one.
const (
	maxNote   = 1 << 20
	sumMember = `,"sum":"`
)

// encodeNote returns the bytes of a note.
func encodeNote(v any) ([]byte, error) {
	line, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if len(line) < 3 || line[len(line)-1] != '}' {
		return nil, fmt.Errorf("%T is not an object", v)
	}
	sum := HashBlock(line)
	line = append(line[:len(line)-1], sumMember...)
	return append(line, sum.String()+"\"}\n"...), nil
}

// decodeNote reads a note into v, a pointer to a struct.
func decodeNote(name string, data []byte, v any) error {
	bad := func(reason string, err error) error {
		return &CorruptError{Object: name, Offset: -1, Reason: reason, Err: err}
	}
	body := data
	at := bytes.LastIndex(data, []byte(sumMember))
	if at >= 0 {
		body = append(bytes.Clone(data[:at]), '}')
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	if err := dec.Decode(v); err != nil {
		return bad("not a note", err)
	}
	again, err := encodeNote(v)
	if err != nil {
		return bad("", err)
	}
	if bytes.Equal(again, data) {
		return nil
	}
	if at < 0 && sameJSON(v, data) {
		return nil
	}
	return bad("its checksum does not match", nil)
}

// sameJSON compares a note without a sum with what its value gives.
func sameJSON(v any, data []byte) bool {
	line, err := json.Marshal(v)
	if err != nil {
		return false
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		return false
	}
	return bytes.Equal(line, compact.Bytes())
}

// putNote stores a note.
func putNote(ctx context.Context, d Driver, name string, v any) error {
	data, err := encodeNote(v)
	if err != nil {
		return err
	}
	return putBytes(ctx, d, name, data)
}

// getNote reads a note.
func getNote(ctx context.Context, d Driver, name string, v any) error {
	data, _, err := getBytes(ctx, d, name, 0, -1, maxNote, nil)
	if err != nil {
		return err
	}
	return decodeNote(name, data, v)
}

// ErrNotEncrypted is returned for what only an encrypted repository has.
var ErrNotEncrypted = errors.New("the repository is not encrypted")

// lastElement is the part of a name behind its last slash.
func lastElement(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }
