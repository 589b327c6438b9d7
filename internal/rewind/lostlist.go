package rewind

import (
	"bytes"
	"encoding/json"
	"iter"
	"strconv"
	"time"
)

// LostTransactions are the transactions that the target committed after the
// fork, in the order of their commits. Of hundreds of thousands each takes
// some 40 bytes: its description is made when it is asked for.
type LostTransactions struct {
	list  pile[ended]
	names *names
}

// newLostTransactions takes the transactions over. It describes each once, so
// that all names are known when neither source nor target can be asked any more.
func newLostTransactions(w *lostWork, n *names) *LostTransactions {
	for e := range w.committed.all() {
		n.deeds(e)
	}
	return &LostTransactions{w.committed, n}
}

// Len is their number; that of nil is 0.
func (l *LostTransactions) Len() int {
	if l == nil {
		return 0
	}
	return l.list.len()
}

// All yields them in the order of their commits.
func (l *LostTransactions) All() iter.Seq[LostTransaction] {
	return func(yield func(LostTransaction) bool) {
		if l == nil {
			return
		}
		for e := range l.list.all() {
			if !yield(l.names.describe(e)) {
				return
			}
		}
	}
}

// Deeds yields what they did, and how many did the same.
func (l *LostTransactions) Deeds() iter.Seq2[*LostDeeds, int64] {
	return func(yield func(*LostDeeds, int64) bool) {
		times := map[*LostDeeds]int64{}
		for e := range l.list.all() {
			d := l.names.deeds(e)
			if l.names.kept(e) {
				times[d]++
			} else if !yield(d, 1) {
				return
			}
		}
		for d, n := range times {
			if !yield(d, n) {
				return
			}
		}
	}
}

// MarshalJSON makes one text of them. EachElement does without.
func (l *LostTransactions) MarshalJSON() ([]byte, error) {
	out := []byte{'['}
	err := l.EachElement("", func(b []byte) error {
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(out, b...)
		return nil
	})
	return append(out, ']'), err
}

// EachElement calls emit with each of them as a JSON object, every line of it
// but the first indented by prefix. emit must not keep the bytes.
func (l *LostTransactions) EachElement(prefix string, emit func([]byte) error) error {
	enc := lostEncoder{prefix: prefix, known: map[*LostDeeds][]byte{}}
	for e := range l.list.all() {
		x := l.names.describe(e)
		if err := enc.encode(&x, l.names.kept(e)); err != nil {
			return err
		}
		if err := emit(enc.out); err != nil {
			return err
		}
	}
	return nil
}

// lostEncoder writes what encoding/json would, and what many transactions
// share it encodes once.
type lostEncoder struct {
	prefix string
	out    []byte
	known  map[*LostDeeds][]byte // their members, each behind a comma
}

func (n *lostEncoder) encode(x *LostTransaction, shared bool) error {
	b := append(n.out[:0], '{')
	member := func(name string) {
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(append(append(b, '\n'), n.prefix...), "  \""...)
		b = append(append(b, name...), `": `...)
	}
	member("xid")
	b = strconv.AppendUint(b, uint64(x.XID), 10)
	member("lsn")
	b = append(append(append(b, '"'), x.LSN.String()...), '"')
	member("commit_time")
	b = append(x.Time.AppendFormat(append(b, '"'), time.RFC3339Nano), '"')
	if x.GID != "" {
		gid, err := readable(x.GID, "")
		if err != nil {
			return err
		}
		member("gid")
		b = append(b, gid...)
	}
	deeds := n.known[x.LostDeeds]
	if deeds == nil {
		var err error
		if deeds, err = n.members(x.LostDeeds); err != nil {
			return err
		}
		if shared {
			n.known[x.LostDeeds] = deeds
		}
	}
	b = append(b, deeds...)
	if x.Subxacts != 0 {
		member("subtransactions")
		b = strconv.AppendInt(b, int64(x.Subxacts), 10)
	}
	n.out = append(append(append(b, '\n'), n.prefix...), '}')
	return nil
}

// members are the deeds as members of an object, with a comma before each.
func (n *lostEncoder) members(d *LostDeeds) ([]byte, error) {
	object, err := readable(d, n.prefix)
	if err != nil {
		return nil, err
	}
	text := bytes.TrimSuffix(object, []byte("\n"+n.prefix+"}"))
	if bytes.Equal(text, []byte("{}")) {
		return []byte{}, nil
	}
	return append([]byte{','}, text[1:]...), nil
}

// readable is a value as indented JSON that leaves <, > and & as they are.
func readable(v any, prefix string) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent(prefix, "  ")
	err := enc.Encode(v)
	return bytes.TrimSpace(b.Bytes()), err
}
