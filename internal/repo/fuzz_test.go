package repo

import (
	"bytes"
	"testing"
)

// FuzzIndex: an index decodes or fails; what decodes is consistent.
func FuzzIndex(f *testing.F) {
	var buf bytes.Buffer
	o, err := newObjectWriter(&buf, header{Kind: kindPack, SystemID: 5, MaxBlock: 8192, Name: "5/packs/x/000001.zst"}, nil)
	if err != nil {
		f.Fatal(err)
	}
	if err := o.add(compress(LevelFast, []byte("abc"), nil), []blockInfo{{3, HashBlock([]byte("abc"))}}); err != nil {
		f.Fatal(err)
	}
	at := o.off
	if err := o.finish(); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes()[at:], at)
	f.Fuzz(func(t *testing.T, b []byte, off int64) {
		// A correct hash leads past the first check.
		if len(b) > skipHeader+trailerLength {
			sum := HashBlock(b[skipHeader : len(b)-8-HashSize])
			b = bytes.Clone(b)
			copy(b[len(b)-8-HashSize:], sum[:])
		}
		idx, err := parseIndex(b, off)
		if err != nil {
			return
		}
		for i := range idx.blocks {
			if n := idx.frameOf(uint32(i)); n < 0 || n >= len(idx.frames) || idx.frames[n].first > uint32(i) {
				t.Fatalf("block %d in frame %d", i, n)
			}
		}
	})
}

// FuzzFile: a manifest's line decodes or fails; what decodes is written again
// the same, and its runs cover the file.
func FuzzFile(f *testing.F) {
	f.Add([]byte(`{"path":"base/1/1259","size":24580,"mode":"0600","mtime":"2026-11-21T22:50:01.5Z","blocks":"1@0:1 2z 1@1:1","digest":"f5d6f38430ed12169aa3c15e668a138e"}`))
	f.Add([]byte(`{"path64":"/w==","size":0}`))
	f.Add([]byte(`{"path":"pg_tblspc/16390","type":"link","target":"/srv/x"}`))
	packs := []Pack{{"a", 1, 100}, {"b", 1, 5}}
	f.Fuzz(func(t *testing.T, line []byte) {
		file, err := parseFile(line, packs, 8192)
		if err != nil {
			return
		}
		again, err := parseFile(appendFile(nil, file), packs, 8192)
		if err != nil {
			t.Fatalf("%v: %s", err, appendFile(nil, file))
		}
		if !bytes.Equal(appendFile(nil, again), appendFile(nil, file)) {
			t.Fatal("written again it differs")
		}
	})
}
