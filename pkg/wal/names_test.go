package wal

import (
	"encoding/json"
	"testing"
)

func TestLSN(t *testing.T) {
	for text, want := range map[string]LSN{
		"0/0": 0, "0/16B3748": 0x16B3748, "1/0": 1 << 32, "FFFFFFFF/FFFFFFFF": ^LSN(0), "a/b": 0xA_0000_000B, "00000000/0A": 10,
	} {
		got, err := ParseLSN(text)
		if err != nil || got != want {
			t.Errorf("ParseLSN(%q) = %s, %v", text, got, err)
		}
		if again, err := ParseLSN(got.String()); err != nil || again != got {
			t.Errorf("%s does not parse back", got)
		}
	}
	for _, text := range []string{"", "/", "0", "0/", "/0", "0/0 ", " 0/0", "0/0/0", "G/0", "0/-1", "0/+1", "0x0/0", "1_0/0", "000000000/0", "0/100000000"} {
		if got, err := ParseLSN(text); err == nil {
			t.Errorf("ParseLSN(%q) = %s", text, got)
		}
	}
	type doc struct{ At LSN }
	b, err := json.Marshal(doc{0x16B3748})
	var d doc
	if err != nil || string(b) != `{"At":"0/16B3748"}` || json.Unmarshal(b, &d) != nil || d.At != 0x16B3748 {
		t.Errorf("JSON %s, %v, %v", b, err, d)
	}
	if err := json.Unmarshal([]byte(`{"At":"nowhere"}`), &d); err == nil {
		t.Error("an LSN from nowhere")
	}
	if LSN(1).Align() != 8 || LSN(8).Align() != 8 || LSN(0).Align() != 0 {
		t.Error("Align")
	}
}

func TestSegmentArithmetic(t *testing.T) {
	for size := MinSegmentSize; size != 0 && size <= MaxSegmentSize; size *= 2 {
		if size.Validate() != nil {
			t.Fatalf("%d is not valid", size)
		}
		for _, lsn := range []LSN{0, 1, LSN(size) - 1, LSN(size), LSN(size) + 1, 1<<32 - 1, 1 << 32, 1<<32 + 5, 0xABCDEF_12345678, ^LSN(0) - LSN(size)} {
			n := size.Number(lsn)
			if size.Start(n)+LSN(size.Offset(lsn)) != lsn || lsn >= size.End(n) {
				t.Errorf("size %d: %s lies in segment %d at %d", size, lsn, n, size.Offset(lsn))
			}
			if before := size.NumberBefore(lsn); lsn > 0 && before != size.Number(lsn-1) {
				t.Errorf("size %d: the byte before %s lies in %d", size, lsn, before)
			}
			name := SegmentName(7, n, size)
			f, ok := ParseFileName(name)
			back, fits := f.Number(size)
			if !ok || !fits || back != n || f.Timeline != 7 || f.Kind != FileSegment {
				t.Errorf("size %d: %s parses as %+v, segment %d", size, name, f, back)
			}
		}
	}
	for _, size := range []SegmentSize{0, 1, 1 << 19, 3 << 20, 1<<30 + 1<<20, 1 << 31} {
		if size.Valid() || size.Validate() == nil {
			t.Errorf("%d is valid", size)
		}
	}
	if DefaultSegmentSize.NumberBefore(0) != 0 {
		t.Error("the byte before 0")
	}
}

func TestFileNames(t *testing.T) {
	const mb16 = DefaultSegmentSize
	tests := []struct {
		name string
		want FileName
		made string
	}{
		{"000000010000000000000003", FileName{FileSegment, 1, 0, 3, 0}, SegmentName(1, 3, mb16)},
		{"0000000A000000FF000000FF", FileName{FileSegment, 10, 255, 255, 0}, SegmentName(10, 0xFFFF, mb16)},
		{"000000020000000100000000.partial", FileName{FilePartial, 2, 1, 0, 0}, PartialName(2, 256, mb16)},
		{"00000002.history", FileName{FileHistory, 2, 0, 0, 0}, HistoryName(2)},
		{"000000010000000000000003.00000028.backup", FileName{FileBackupHistory, 1, 0, 3, 0x28}, BackupHistoryName(1, 0x3000028, mb16)},
	}
	for _, test := range tests {
		got, ok := ParseFileName(test.name)
		if !ok || got != test.want || got.String() != test.name || test.made != test.name {
			t.Errorf("%s: %+v, %v, made %s", test.name, got, ok, test.made)
		}
	}
	for _, name := range []string{
		"", "x", "00000001", "00000001.history ", "00000001.History", "0000000g.history", "0000000a.history",
		"00000001000000000000000", "0000000100000000000000031", "00000001000000000000000a",
		"000000010000000000000003.part", "000000010000000000000003.partial2", "000000010000000000000003.00000028.backu",
		"000000010000000000000003.0000002a.backup", "000000010000000000000003.00000028_backup", "000000010000000000000003_00000028.backup",
		"+00000010000000000000003", "00000001.partial", "archive_status",
	} {
		if got, ok := ParseFileName(name); ok {
			t.Errorf("%q: %+v", name, got)
		}
	}
	// The last part of a name cannot be anything: 4 GB hold 256 segments of 16 MB.
	f, _ := ParseFileName("000000010000000000000100")
	if _, ok := f.Number(mb16); ok {
		t.Error("segment 256 in 4 GB of 16 MB segments")
	}
	if n, ok := f.Number(1 << 20); !ok || n != 256 {
		t.Error("segment 256 of 1 MB")
	}
	if _, ok := (FileName{Kind: FileHistory}).Number(mb16); ok {
		t.Error("a history file has no segment")
	}
	if (FileName{}).String() != "" {
		t.Error("the zero name")
	}
}

func TestRelFileText(t *testing.T) {
	for text, want := range map[string]RelFile{
		"1663/5/16384": {1663, 5, 16384, ForkMain}, "1664/0/1262_fsm": {1664, 0, 1262, ForkFSM},
		"1663/5/16384_vm": {1663, 5, 16384, ForkVM}, "1663/5/16384_init": {1663, 5, 16384, ForkInit},
	} {
		got, err := ParseRelFile(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
		var again RelFile
		if b, _ := got.MarshalText(); again.UnmarshalText(b) != nil || again != want {
			t.Errorf("%q does not survive as text", text)
		}
	}
	for _, text := range []string{"", "1/2", "1/2/3/4", "1/2/x", "1/2/3_", "1/2/3_main", "1/2/3_toast", "01/2/3", "1/2/4294967296", "1/2/3 "} {
		if got, err := ParseRelFile(text); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func TestFormats(t *testing.T) {
	for _, f := range Formats() {
		a, err := FormatByMajor(f.Major)
		b, err2 := FormatByMagic(f.PageMagic)
		if err != nil || err2 != nil || *a != f || *b != f {
			t.Errorf("PostgreSQL %d: %v, %v", f.Major, err, err2)
		}
	}
	for _, major := range []int{0, 12, 19} {
		if _, err := FormatByMajor(major); err == nil {
			t.Errorf("PostgreSQL %d is known", major)
		}
	}
	if _, err := FormatByMagic(0xD101); err == nil {
		t.Error("12's magic is known")
	}
	f13, _ := FormatByMajor(13)
	f15, _ := FormatByMajor(15)
	if f13.validRmgr(200) || !f15.validRmgr(200) || f15.validRmgr(22) || RMID(200).String() != "custom200" || RMID(22).String() != "unknown22" {
		t.Error("custom resource managers")
	}
}

func TestOptions(t *testing.T) {
	good := Options{SegmentSize: DefaultSegmentSize}
	if _, err := good.withDefaults(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*Options){
		"segment size": func(o *Options) { o.SegmentSize = 0 },
		"page size":    func(o *Options) { o.PageSize = 4095 },
		"block size":   func(o *Options) { o.BlockSize = 65536 },
		"major":        func(o *Options) { o.Major = 12 },
		"range":        func(o *Options) { o.Start, o.End = 2, 1 },
	} {
		o := good
		spoil(&o)
		if _, err := NewReader(t.Context(), MemorySource{}, o); err == nil {
			t.Errorf("bad %s is accepted", name)
		}
	}
}
