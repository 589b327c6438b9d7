package cli

import (
	"bytes"
	"encoding/json"

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

// encodeDocument returns doc as indented JSON with the error as its last
// member. A result that is not an object moves into the member "result".
func encodeDocument(doc any, problem *ErrorDocument) ([]byte, error) {
	body := []byte("{}")
	if doc != nil {
		b, merr := marshal(doc)
		if merr != nil {
			return nil, merr
		}
		body = b
	}
	if problem != nil {
		e, merr := marshal(problem)
		if merr != nil {
			return nil, merr
		}
		body = splice(body, e)
	}
	var out bytes.Buffer
	if ierr := json.Indent(&out, body, "", "  "); ierr != nil {
		return nil, ierr
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

func splice(body, e []byte) []byte {
	body = bytes.TrimSpace(body)
	switch {
	case body[0] != '{':
		body = append([]byte(`{"result":`), body...)
	case len(body) == 2:
		body = []byte("{")
	default:
		body = body[:len(body)-1]
	}
	if len(body) > 1 {
		body = append(body, ',')
	}
	body = append(body, `"error":`...)
	body = append(body, e...)
	return append(body, '}')
}

// marshal leaves <, > and & readable: the output is not HTML.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSpace(b.Bytes()), err
}
