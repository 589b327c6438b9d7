package volume

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func sampleManifest(version int) *Manifest {
	at := time.Date(2026, 11, 21, 22, 50, 1, 0, time.UTC)
	m := &Manifest{Version: version, Files: []ManifestFile{
		{Path: "base/1/1247", Size: 122880, ModTime: at, Algorithm: ChecksumCRC32C, Checksum: []byte{0x9a, 0x7d, 0x5d, 0x68}},
		{Path: "odd \"name\"\\ \n\x01 ü", Size: 0, ModTime: at},
		{Path: "no\xffutf8", Size: 3, ModTime: at, Algorithm: ChecksumSHA256, Checksum: bytes.Repeat([]byte{7}, 32)},
	}, WALRanges: []ManifestRange{{1, 0x2000028, 0x2000100}, {2, 0x2000100, 0x3000000}}}
	if version == 2 {
		m.SystemIdentifier = 7710758304828890643
	}
	return m
}

func TestManifest(t *testing.T) {
	for version := 1; version <= 2; version++ {
		want := sampleManifest(version)
		data, err := want.Format()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseManifest(data)
		if err != nil {
			t.Fatalf("version %d: %v\n%s", version, err, data)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("version %d: -want +got\n%s", version, d)
		}
		for at := range data {
			bad := bytes.Clone(data)
			bad[at] ^= 1
			if _, err := ParseManifest(bad); err == nil {
				t.Fatalf("version %d: a changed byte %d went unnoticed", version, at)
			}
		}
	}
	if _, err := (&Manifest{Version: 3}).Format(); err == nil {
		t.Error("version 3 was written")
	}
}

func TestManifestChecksum(t *testing.T) {
	data, err := sampleManifest(1).Format()
	if err != nil {
		t.Fatal(err)
	}
	data = bytes.Replace(data, []byte("122880"), []byte("122881"), 1)
	if _, err := ParseManifest(data); !errors.Is(err, ErrManifestChecksum) {
		t.Errorf("%v", err)
	}
}

// TestChecksumOrder checks against values that other programs print: "123456789"
// is the usual check string, its CRC-32C is e3069283.
func TestChecksumOrder(t *testing.T) {
	for alg, want := range map[ChecksumAlgorithm]string{
		ChecksumCRC32C: "839206e3",
		ChecksumSHA256: "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
	} {
		h, err := alg.New()
		if err != nil {
			t.Fatal(err)
		}
		h.Write([]byte("123456789"))
		if got := fmt.Sprintf("%x", h.Sum(nil)); got != want {
			t.Errorf("%s: %s", alg, got)
		}
	}
	if _, err := ChecksumAlgorithm("MD5").New(); err == nil || !strings.Contains(err.Error(), "MD5") {
		t.Errorf("MD5: %v", err)
	}
}
