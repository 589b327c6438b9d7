package rewind

import (
	"bytes"
	"encoding/binary"
	"testing"

	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// heapPage is a sound page without tuples, of some LSN and with a checksum.
func heapPage(lsn wal.LSN, block uint32, edits ...func([]byte)) []byte {
	p := make([]byte, 8192)
	binary.LittleEndian.PutUint32(p[0:], uint32(lsn>>32))
	binary.LittleEndian.PutUint32(p[4:], uint32(lsn))
	for offset, v := range map[int]uint16{12: 28, 14: 8000, 16: 8192, 18: 8192 | 4} {
		binary.LittleEndian.PutUint16(p[offset:], v)
	}
	for _, e := range edits {
		e(p)
	}
	binary.LittleEndian.PutUint16(p[8:], volume.Checksum(p, block))
	return p
}

func TestJudge(t *testing.T) {
	const block = 3
	page := func(lsn wal.LSN, edits ...func([]byte)) []byte { return heapPage(lsn, block, edits...) }
	data := func(p []byte) { p[8100]++ }
	hint := func(p []byte) { p[10] |= 1 }
	broken := page(100)
	broken[8100]++
	for _, c := range []struct {
		what         string
		theirs, mine []byte
		ok, open     bool
	}{
		{"equal", page(100), page(100), true, false},
		{"a hint", page(100, hint), page(100), true, false},
		{"contents", page(100, data), page(100), false, false},
		{"contents behind the common LSN, of one LSN", page(900, data), page(900), false, false},
		{"older here", page(200), page(100), false, false},
		{"newer here", page(100), page(200), false, false},
		{"changed since at the source", page(900), page(100), false, true},
		{"changed since here", page(100), page(900), false, true},
		{"not here", page(100), nil, false, false},
		{"not here yet", page(900), nil, false, true},
		{"only here", nil, page(100), false, false},
		{"never used at the source", make([]byte, 8192), nil, true, false},
		{"never used here", nil, make([]byte, 8192), true, false},
		{"zeroed here", page(100), make([]byte, 8192), false, false},
		{"damaged here", page(100), broken, false, false},
		{"damaged at the source", broken, page(100), false, false},
	} {
		s := blockPair{block: block, theirs: c.theirs, mine: c.mine}.judge(500, true)
		if (s == nil) != c.ok || s != nil && s.open != c.open {
			t.Errorf("%s: %+v", c.what, s)
		}
	}
}

// TestSuspicion: what is wrong is so in two rounds; a bit of a visibility map
// that another round does not find was only late.
func TestSuspicion(t *testing.T) {
	vm := func(bits byte) []byte { return append(bytes.Repeat([]byte{0}, volume.PageHeaderSize), bits) }
	judge := func(theirs, mine byte) *suspicion {
		return blockPair{fork: wal.ForkVM, theirs: vm(theirs), mine: vm(mine)}.judge(500, false)
	}
	if s := judge(3, 1); s != nil {
		t.Errorf("the source has more: %+v", s)
	}
	one, other := judge(0, 1), judge(0, 2)
	if one == nil || other == nil || one.same(*other) || !one.same(*judge(4, 5)) {
		t.Errorf("%+v %+v", one, other)
	}
	wrong, open := suspicion{what: "x"}, suspicion{open: true}
	if !wrong.same(wrong) || wrong.same(open) || open.same(open) || wrong.same(*one) {
		t.Error("rounds")
	}
}
