package backup

import (
	"encoding/binary"
	"os"
	"testing"

	"tidemark/internal/repo"
	"tidemark/pkg/volume"
)

// TestPageJudge: the number of a block, which is part of its checksum, counts
// segments as long as the control file says.
func TestPageJudge(t *testing.T) {
	data, err := os.ReadFile("../../testdata/15/pg_control")
	if err != nil {
		t.Fatal(err)
	}
	c, err := volume.ParseControl(data)
	if err != nil {
		t.Fatal(err)
	}
	usual := &repo.Summary{ID: "usual", Checksums: true, BlockSize: 8192, Start: repo.Point{LSN: 0x2000000}, Control: c.Encode()}
	c.RelSegSize = 16
	short := *usual
	short.ID, short.Control = "short", c.Encode()
	lost := *usual
	lost.ID, lost.Control = "lost", nil
	judge := pageJudge()
	for _, tt := range []struct {
		s     *repo.Summary
		path  string
		block int64
		whole uint32 // its number in the relation
	}{
		{usual, "base/5/16384", 3, 3},
		{usual, "base/5/16384.2", 3, 2*131072 + 3},
		{&short, "base/5/16384", 3, 3},
		{&short, "base/5/16384.2", 3, 2*16 + 3},
		{&lost, "base/5/16384.1", 0, 131072},
	} {
		page := make([]byte, 8192)
		binary.LittleEndian.PutUint32(page[4:], 0x1000000) // its LSN
		binary.LittleEndian.PutUint16(page[12:], 100)
		binary.LittleEndian.PutUint16(page[14:], 8000)
		binary.LittleEndian.PutUint16(page[16:], 8192)
		binary.LittleEndian.PutUint16(page[18:], 8192|4)
		binary.LittleEndian.PutUint16(page[8:], volume.Checksum(page, tt.whole))
		if why := judge(tt.s, tt.path, tt.block, page); why != "" {
			t.Errorf("%s: block %d of %s: %s", tt.s.ID, tt.block, tt.path, why)
		}
		page[5000] ^= 1
		if why := judge(tt.s, tt.path, tt.block, page); why == "" {
			t.Errorf("%s: a damaged block %d of %s passes", tt.s.ID, tt.block, tt.path)
		}
	}
}
