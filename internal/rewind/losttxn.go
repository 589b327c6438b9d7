package rewind

import (
	"cmp"
	"encoding/binary"
	"slices"
	"time"

	"tidemark/pkg/wal"
)

// rowCounts are the rows that a transaction changed in a relation's file.
type rowCounts struct {
	file                       wal.RelFile
	inserted, updated, deleted int64
}

// txn is what a transaction, or a subtransaction, did so far. Most touch a
// handful of files, which a list finds faster than a map.
type txn struct {
	files     []rowCounts
	index     map[wal.RelFile]int // into files, once there are many
	created   []wal.RelFile       // main forks
	truncated []uint32            // OIDs, where the WAL tells them
}

const manyFiles = 12

func (t *txn) at(f wal.RelFile) *rowCounts {
	if t.index != nil {
		if i, ok := t.index[f]; ok {
			return &t.files[i]
		}
	} else {
		for i := range t.files {
			if t.files[i].file == f {
				return &t.files[i]
			}
		}
	}
	t.files = append(t.files, rowCounts{file: f})
	if t.index != nil {
		t.index[f] = len(t.files) - 1
	} else if len(t.files) > manyFiles {
		t.index = map[wal.RelFile]int{}
		for i := range t.files {
			t.index[t.files[i].file] = i
		}
	}
	return &t.files[len(t.files)-1]
}

func (t *txn) add(o *txn) {
	for i := range o.files {
		c := t.at(o.files[i].file)
		c.inserted += o.files[i].inserted
		c.updated += o.files[i].updated
		c.deleted += o.files[i].deleted
	}
	t.created = append(t.created, o.created...)
	t.truncated = append(t.truncated, o.truncated...)
}

// clone copies t, which may then grow.
func (t *txn) clone() *txn {
	c := &txn{}
	c.files = make([]rowCounts, 0, len(t.files))
	c.add(t)
	return c
}

// txnPool keeps what ended transactions did. Hundreds of thousands of small
// ones do the same to the same tables, which is kept once.
type txnPool struct {
	known map[string]*txn
	key   []byte
}

func newTxnPool() txnPool { return txnPool{known: map[string]*txn{}} }

// Only transactions on so few files are compared, and only so many different
// ones: all others are kept each by itself.
const (
	pooledFiles = 32
	pooledTxns  = 4096
)

// keep returns a copy of t, made once for all that are equal. It must not be
// changed. It puts t's files in order.
func (p *txnPool) keep(t *txn) *txn {
	slices.SortFunc(t.files, func(a, b rowCounts) int { return compareRelFiles(a.file, b.file) })
	t.index = nil // no longer right
	if len(t.files) > pooledFiles || len(t.created)+len(t.truncated) > 0 {
		return t.frozen()
	}
	p.key = p.key[:0]
	for i := range t.files {
		c := &t.files[i]
		p.key = binary.LittleEndian.AppendUint32(p.key, c.file.Tablespace)
		p.key = binary.LittleEndian.AppendUint32(p.key, c.file.Database)
		p.key = binary.LittleEndian.AppendUint32(p.key, c.file.Relation)
		p.key = binary.AppendVarint(p.key, c.inserted)
		p.key = binary.AppendVarint(p.key, c.updated)
		p.key = binary.AppendVarint(p.key, c.deleted)
	}
	if kept := p.known[string(p.key)]; kept != nil {
		return kept
	}
	kept := t.frozen()
	if len(p.known) < pooledTxns {
		p.known[string(p.key)] = kept
	}
	return kept
}

// frozen copies t with no room to grow.
func (t *txn) frozen() *txn {
	return &txn{files: slices.Clone(t.files), created: slices.Clone(t.created), truncated: slices.Clone(t.truncated)}
}

func compareRelFiles(a, b wal.RelFile) int {
	return cmp.Or(cmp.Compare(a.Tablespace, b.Tablespace), cmp.Compare(a.Database, b.Database),
		cmp.Compare(a.Relation, b.Relation), cmp.Compare(a.Fork, b.Fork))
}

// ended is a transaction that committed, or was prepared, after the fork.
type ended struct {
	xid  uint32
	lsn  wal.LSN
	time moment
	work *txn // shared with others that did the same
	*details
}

// moment is a time as the WAL has it, in microseconds, which takes a third of
// the space of a time.Time.
type moment int64

func momentOf(t time.Time) moment { return moment(t.UnixMicro()) }

func (m moment) utc() time.Time { return time.UnixMicro(int64(m)).UTC() }

// details are what few transactions have.
type details struct {
	subs    []uint32
	gid     string
	dropped []wal.RelFile
}

var noDetails = &details{}

// newDetails returns details that may be shared: they must not be changed.
func newDetails(subs []uint32, gid string, dropped []wal.RelFile) *details {
	if len(subs) == 0 && gid == "" && len(dropped) == 0 {
		return noDetails
	}
	return &details{subs, gid, dropped}
}
