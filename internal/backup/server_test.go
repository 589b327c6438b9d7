package backup

import (
	"testing"

	"tidemark/pkg/wal"
)

func TestRecordEnd(t *testing.T) {
	for in, want := range map[wal.LSN]wal.LSN{
		0x3000028: 0x3000000, // nothing in the segment but its header
		0x3002018: 0x3002000, // nothing on the page but its header
		0x3002028: 0x3002028, // a record of 16 bytes
		0x3000018: 0x3000018, // no place for a record
		0x3000110: 0x3000110,
		0x3000000: 0x3000000,
	} {
		if got := recordEnd(in, 16<<20, 8192); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
