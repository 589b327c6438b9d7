package repo_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidemark/internal/exit"
	"tidemark/internal/repo"
	"tidemark/pkg/wal"
)

const segSize = wal.SegmentSize(2 << 20)

// segment makes a segment that has the right page headers and noise between.
func segment(r *rand.Rand, system uint64, tli wal.TimelineID, n wal.SegmentNumber, used int) []byte {
	b := make([]byte, segSize)
	copy(b[:used], noise(r, used))
	f, err := wal.FormatByMajor(15)
	if err != nil {
		panic(err)
	}
	for at := 0; at < used; at += wal.DefaultPageSize {
		p := b[at:]
		binary.LittleEndian.PutUint16(p, f.PageMagic)
		binary.LittleEndian.PutUint16(p[2:], 0)
		binary.LittleEndian.PutUint32(p[4:], uint32(tli))
		binary.LittleEndian.PutUint64(p[8:], uint64(segSize.Start(n))+uint64(at))
		binary.LittleEndian.PutUint32(p[16:], 0)
		if at == 0 {
			binary.LittleEndian.PutUint16(p[2:], uint16(wal.PageLongHeader))
			binary.LittleEndian.PutUint64(p[24:], system)
			binary.LittleEndian.PutUint32(p[32:], uint32(segSize))
			binary.LittleEndian.PutUint32(p[36:], wal.DefaultPageSize)
		}
	}
	return b
}

func push(t *testing.T, c *repo.Cluster, name string, data []byte) (repo.WALPush, error) {
	t.Helper()
	return c.PushWAL(t.Context(), name, bytes.NewReader(data), int64(len(data)))
}

func TestWALPushFetch(t *testing.T) {
	c, _ := newCluster(t)
	r := rand.New(rand.NewPCG(1, 1))
	name := wal.SegmentName(1, 3, segSize)
	seg := segment(r, testSystem, 1, 3, int(segSize))
	files := map[string][]byte{
		name:                           seg,
		wal.PartialName(1, 4, segSize): segment(r, testSystem, 1, 4, 30*wal.DefaultPageSize),
		wal.SegmentName(2, 4, segSize): segment(r, testSystem, 1, 4, 30*wal.DefaultPageSize), // begun on timeline 1
		"00000002.history":             []byte("1\t0/800000\tno recovery target specified\n"),
		"000000010000000000000003.00000028.backup": []byte("START WAL LOCATION: 0/6000028\n"),
	}
	for n, data := range files {
		if p, err := push(t, c, n, data); err != nil || p.Existed || p.Stored == 0 {
			t.Fatalf("%s: %+v, %v", n, p, err)
		}
		if p, err := push(t, c, n, data); err != nil || !p.Existed {
			t.Fatalf("%s again: %+v, %v", n, p, err)
		}
		var got bytes.Buffer
		if size, err := c.FetchWAL(t.Context(), n, &got); err != nil || size != int64(len(data)) || !bytes.Equal(got.Bytes(), data) {
			t.Fatalf("fetch %s: %d bytes, %v", n, size, err)
		}
	}
	for _, missing := range []string{wal.SegmentName(1, 5, segSize), "00000003.history"} {
		if _, err := c.FetchWAL(t.Context(), missing, &bytes.Buffer{}); !errors.Is(err, repo.ErrNotArchived) || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("fetch %s: %v", missing, err)
		}
		if has, err := c.HasWAL(t.Context(), missing); has || err != nil {
			t.Errorf("has %s: %v, %v", missing, has, err)
		}
	}
	f, err := c.OpenWAL(t.Context(), name)
	if err != nil || f.Size() != int64(segSize) {
		t.Fatal(err)
	}
	part := make([]byte, 3000)
	if _, err := f.ReadAt(part, 1<<20-1000); err != nil || !bytes.Equal(part, seg[1<<20-1000:][:3000]) {
		t.Errorf("read across blocks: %v", err)
	}
}

func TestWALRefused(t *testing.T) {
	c, _ := newCluster(t)
	r := rand.New(rand.NewPCG(2, 1))
	name := wal.SegmentName(1, 3, segSize)
	good := segment(r, testSystem, 1, 3, int(segSize))
	flip := func(at int) []byte {
		b := slices.Clone(good)
		b[at] ^= 0x40
		return b
	}
	for what, tt := range map[string]struct {
		name string
		data []byte
		want string
	}{
		"another cluster":    {name, segment(r, 99, 1, 3, int(segSize)), "system identifier 99"},
		"another segment":    {name, segment(r, testSystem, 1, 7, int(segSize)), "begins at 0/E00000"},
		"a later timeline":   {name, segment(r, testSystem, 2, 3, int(segSize)), "timeline 2"},
		"truncated":          {name, good[:len(good)-8192], "not the size of a segment"},
		"half":               {name, good[:len(good)/2], "its header says"},
		"empty":              {name, nil, "0 bytes"},
		"no name":            {"postgresql.conf", good, "not the name"},
		"a path":             {"../" + name, good, "not the name"},
		"zeros":              {name, make([]byte, segSize), "header"},
		"magic":              {name, flip(0), "header"},
		"address":            {name, flip(9), "begins at"},
		"system":             {name, flip(30), "system identifier"},
		"a page in between":  {name, flip(5*8192 + 9), "offset 40960"},
		"empty history file": {"00000002.history", nil, "0 bytes"},
	} {
		_, err := push(t, c, tt.name, tt.data)
		if err == nil || !strings.Contains(err.Error(), tt.want) || exit.CodeOf(err) != exit.Refused || exit.HintOf(err) == "" {
			t.Errorf("%s: %v (hint %q)", what, err, exit.HintOf(err))
		}
	}
	if _, err := push(t, c, name, good); err != nil {
		t.Fatal(err)
	}
	other := slices.Clone(good)
	other[len(other)-1] ^= 1
	var conflict *repo.WALConflictError
	if _, err := push(t, c, name, other); !errors.As(err, &conflict) || conflict.Offset != int64(segSize)-1 || exit.HintOf(err) == "" {
		t.Errorf("other content: %v", err)
	}
	if _, err := push(t, c, name, good); err != nil {
		t.Errorf("after a refused push: %v", err)
	}
}

// TestWALDamaged: a damaged object is a fault and never passes for a file that
// the archive lacks, nor for the right content.
func TestWALDamaged(t *testing.T) {
	c, dir := newCluster(t)
	name := wal.SegmentName(1, 3, segSize)
	seg := segment(rand.New(rand.NewPCG(3, 1)), testSystem, 1, 3, 20*8192)
	if _, err := push(t, c, name, seg); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, fmt.Sprint(uint64(testSystem)), "wal", "00000001", name+".zst")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(path, 0o600)
	for at := 0; at < len(data); at += len(data)/200 + 1 {
		bad := slices.Clone(data)
		bad[at] ^= 4
		os.WriteFile(path, bad, 0o600)
		var ce *repo.CorruptError
		_, err := push(t, c, name, seg)
		if !errors.As(err, &ce) {
			t.Errorf("push over a bit flipped at %d: %v", at, err)
		}
		if at < 100 {
			continue
		}
		if _, err := c.FetchWAL(t.Context(), name, &bytes.Buffer{}); !errors.As(err, &ce) || errors.Is(err, repo.ErrNotArchived) {
			t.Errorf("fetch with a bit flipped at %d: %v", at, err)
		}
	}
	// The object of another segment under this name.
	other := wal.SegmentName(1, 4, segSize)
	if _, err := push(t, c, other, segment(rand.New(rand.NewPCG(4, 1)), testSystem, 1, 4, 8192)); err != nil {
		t.Fatal(err)
	}
	moved, _ := os.ReadFile(filepath.Join(filepath.Dir(path), other+".zst"))
	os.WriteFile(path, moved, 0o600)
	if _, err := c.FetchWAL(t.Context(), name, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "another object") {
		t.Errorf("a misplaced object: %v", err)
	}
	// The repository's disk is not mounted.
	os.RemoveAll(dir)
	if _, err := c.FetchWAL(t.Context(), name, &bytes.Buffer{}); err == nil || errors.Is(err, repo.ErrNotArchived) {
		t.Errorf("fetch from a repository that is gone: %v", err)
	}
}

func TestWALCoverage(t *testing.T) {
	c, _ := newCluster(t)
	r := rand.New(rand.NewPCG(5, 1))
	if cov, err := c.WALCoverage(t.Context(), 0); err != nil || len(cov) != 0 {
		t.Fatalf("empty: %v %v", cov, err)
	}
	per := wal.SegmentNumber((1 << 32) / uint64(segSize))
	for _, n := range []wal.SegmentNumber{3, 5, 4, 9, per - 1, per, per + 1} {
		if _, err := push(t, c, wal.SegmentName(1, n, segSize), segment(r, testSystem, 1, n, 8192)); err != nil {
			t.Fatal(err)
		}
	}
	push(t, c, wal.PartialName(1, per+2, segSize), segment(r, testSystem, 1, per+2, 8192))
	push(t, c, wal.SegmentName(2, per+2, segSize), segment(r, testSystem, 1, per+2, 8192))
	push(t, c, "00000002.history", []byte("x\n"))
	got, err := c.WALCoverage(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range got {
		w.Stored = 0
	}
	want := []*repo.WALCoverage{
		{Timeline: 1, Segments: 7, Runs: []repo.SegmentRun{{3, 5}, {9, 9}, {per - 1, per + 1}}, Partials: []wal.SegmentNumber{per + 2}},
		{Timeline: 2, Segments: 1, Runs: []repo.SegmentRun{{per + 2, per + 2}}, History: true},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for n, has := range map[wal.SegmentNumber]bool{2: false, 3: true, 5: true, 6: false, 9: true, per: true, per + 2: false} {
		if got[0].Has(n) != has {
			t.Errorf("Has(%d) = %v", n, !has)
		}
	}
}
