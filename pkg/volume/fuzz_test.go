package volume

import (
	"bytes"
	"errors"
	"testing"
)

func FuzzControl(f *testing.F) {
	for _, major := range majors {
		f.Add(fixture(f, major)[:512])
	}
	f.Add([]byte("1234567890123456"))
	f.Fuzz(func(t *testing.T, data []byte) {
		// A CRC that a fuzzer never guesses would hide everything behind it.
		for _, v := range versions {
			if len(data) >= v.CRC+4 {
				c := &Control{version: v, raw: bytes.Clone(data[:v.CRC+4])}
				for _, field := range c.fields() {
					field.load(c.raw)
				}
				if out := c.Encode(); !bytes.Equal(out[:v.CRC], data[:v.CRC]) {
					t.Fatalf("%d: not written back", v.Major)
				}
				_ = c.Validate()
			}
		}
		_, _ = ParseControl(data)
	})
}

func FuzzBackupLabel(f *testing.F) {
	f.Add([]byte(streamedLabel))
	f.Add([]byte(streamedLabel + "INCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\n"))
	f.Add(Tombstone{Operation: "restore", Command: "dbrecover restore", Hint: "x"}.Format())
	f.Fuzz(func(t *testing.T, data []byte) {
		label, err := ParseBackupLabel(data)
		_, stone := ParseTombstone(data)
		if err == nil && stone == nil {
			t.Fatal("both a label and a tombstone")
		}
		if err != nil {
			if !errors.Is(err, ErrLabel) {
				t.Fatal(err)
			}
			return
		}
		again, err := ParseBackupLabel(label.Format())
		if err != nil || *again != *label {
			t.Fatalf("%+v is not what %+v was, %v", again, label, err)
		}
	})
}

func FuzzTombstone(f *testing.F) {
	f.Add([]byte(Tombstone{Operation: "restore", Command: "dbrecover restore", Hint: "x\ny"}.Format()))
	f.Fuzz(func(t *testing.T, data []byte) {
		stone, err := ParseTombstone(data)
		if err != nil {
			return
		}
		again, err := ParseTombstone(stone.Format())
		if err != nil || again.Work != oneLine(stone.Work) {
			t.Fatalf("%+v is not what %+v was, %v", again, stone, err)
		}
	})
}

func FuzzTablespaceMap(f *testing.F) {
	f.Add([]byte("16500 /srv/a b\n16501 /srv/back\\\\slash\n16502 /srv/line\\\nfeed\\\rreturn\n"))
	f.Add([]byte("\r\n1 \\\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		links, err := ParseTablespaceMap(data)
		if err != nil {
			return
		}
		again, err := ParseTablespaceMap(FormatTablespaceMap(links))
		if err != nil || len(again) != len(links) {
			t.Fatalf("%v is not what %v was, %v", again, links, err)
		}
		for i := range links {
			if links[i] != again[i] {
				t.Fatalf("%v is not what %v was", again[i], links[i])
			}
		}
	})
}

func FuzzManifest(f *testing.F) {
	for version := 1; version <= 2; version++ {
		data, err := sampleManifest(version).Format()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parseManifest(data, false)
		if err != nil {
			return
		}
		out, err := m.Format()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseManifest(out)
		if err != nil || len(again.Files) != len(m.Files) || len(again.WALRanges) != len(m.WALRanges) {
			t.Fatalf("does not survive: %v\n%s", err, out)
		}
		for i := range m.Files {
			if m.Files[i].Path != again.Files[i].Path {
				t.Fatalf("%q became %q", m.Files[i].Path, again.Files[i].Path)
			}
		}
	})
}

func FuzzRelPath(f *testing.F) {
	for _, s := range []string{"base/5/1259_fsm.1", "pg_tblspc/16500/PG_15_202209061/5/t3_16501", "global/pg_control", "pg_wal/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		Classify(path)
		ClassifyDir(path)
		_ = CheckPath(path)
		if _, ok := ParseRelPath(path); ok && CheckPath(path) != nil {
			t.Fatalf("%q is a relation outside of the data directory", path)
		}
	})
}

func FuzzPage(f *testing.F) {
	f.Add(make([]byte, 8192), uint32(0))
	f.Add(bytes.Repeat([]byte{1}, 1024), uint32(7))
	f.Fuzz(func(t *testing.T, page []byte, block uint32) {
		CheckPage(page, block)
		CheckPageHeader(page)
		if Checksum(page, block) != slowChecksum(page, block) {
			t.Fatal("the fast checksum is another one")
		}
	})
}
