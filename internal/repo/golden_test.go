package repo_test

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"tidemark/internal/blockcopy"
	"tidemark/internal/repo"
	"tidemark/pkg/wal"
)

var (
	update       = flag.Bool("update", false, "write the repository in testdata anew")
	updateSealed = flag.Bool("update-encrypted", false, "write the encrypted repository in testdata anew")
)

const goldenDir = "testdata/v1"

// goldenTrees are the two backups of the kept repository.
func goldenTrees() (tree, tree) {
	page := func(s string) []byte { return []byte(strings.Repeat(s, testBlock/len(s)+1)[:testBlock]) }
	first := tree{
		"PG_VERSION":  []byte("15\n"),
		"base/1/1259": bytes.Join([][]byte{page("first page "), make([]byte, testBlock), page("third page ")}, nil),
		"base/1/2619": page("old "),
		"empty":       {},
	}
	second := tree{
		"PG_VERSION":  []byte("15\n"),
		"base/1/1259": bytes.Join([][]byte{page("first page "), page("second page "), page("third page "), []byte("tail")}, nil),
		"base/1/2619": page("old "),
	}
	return first, second
}

func goldenSegment() (string, []byte) {
	data := segment(rand.New(rand.NewPCG(0, 0)), testSystem, 1, 2, 0)
	copy(data, segment(rand.New(rand.NewPCG(7, 7)), testSystem, 1, 2, wal.DefaultPageSize))
	return wal.SegmentName(1, 2, segSize), data
}

// TestGolden reads a repository that an earlier version wrote.
func TestGolden(t *testing.T) {
	first, second := goldenTrees()
	name, seg := goldenSegment()
	if *update {
		writeGolden(t, goldenDir, first, second, name, seg)
	}
	r, err := repo.Open(t.Context(), goldenDir)
	if err != nil {
		t.Fatal(err)
	}
	c, err := r.OnlyCluster(t.Context())
	if err != nil || c.SystemID() != testSystem {
		t.Fatal(err)
	}
	cat, err := c.Catalog(t.Context())
	if err != nil || len(cat.Backups) != 2 || len(cat.Damaged)+len(cat.Started) != 0 {
		t.Fatalf("%+v, %v", cat, err)
	}
	mustRestore(t, c, cat.Backups[0].ID, first)
	mustRestore(t, c, cat.Backups[1].ID, second)
	if s := cat.Backups[1]; s.OldBlocks != 4 || s.NewBlocks != 2 || s.ZeroBlocks != 0 || s.Parent != cat.Backups[0].ID || s.Stop.LSN != 0x2000100 {
		t.Errorf("%+v", s)
	}
	var got bytes.Buffer
	if _, err := c.FetchWAL(t.Context(), name, &got); err != nil || !bytes.Equal(got.Bytes(), seg) {
		t.Errorf("WAL: %v", err)
	}
}

// The encrypted repository, which has its secret key beside it. Its packs are
// random, so it is kept as it was written and never compared.
const (
	sealedDir = "testdata/v2-encrypted"
	sealedKey = "testdata/v2-encrypted-key.txt"
)

// TestGoldenEncrypted reads an encrypted repository that an earlier version wrote.
func TestGoldenEncrypted(t *testing.T) {
	first, second := goldenTrees()
	name, seg := goldenSegment()
	if *updateSealed {
		writeSealed(t, first, second, name, seg)
	}
	c := opened(t, sealedDir, sealedKey)
	cat, err := c.Catalog(t.Context())
	if err != nil || len(cat.Backups) != 2 || len(cat.Damaged)+len(cat.Started) != 0 {
		t.Fatalf("%+v, %v", cat, err)
	}
	mustRestore(t, c, cat.Backups[0].ID, first)
	mustRestore(t, c, cat.Backups[1].ID, second)
	if s := cat.Backups[1]; s.OldBlocks != 4 || s.NewBlocks != 2 || s.Encryption == nil || cat.Pins[s.ID].Reason != "golden" {
		t.Errorf("%+v", s)
	}
	var got bytes.Buffer
	if _, err := c.FetchWAL(t.Context(), name, &got); err != nil || !bytes.Equal(got.Bytes(), seg) {
		t.Errorf("WAL: %v", err)
	}
	if v, err := c.Verify(t.Context(), repo.VerifyOptions{Deep: true}); err != nil || len(v.Damages) != 0 || v.Blocks != 6 {
		t.Errorf("%+v, %v", v, err)
	}
}

func writeSealed(t *testing.T, first, second tree, name string, seg []byte) {
	t.Helper()
	t.Setenv(repo.StateEnv, t.TempDir())
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	key := "# For the repository beside this file, which holds nothing.\n" + id.String() + "\n"
	if err := os.WriteFile(sealedKey, []byte(key), 0o644); err != nil {
		t.Fatal(err)
	}
	writeGolden(t, sealedDir, first, second, name, seg, id.Recipient().String())
	c := opened(t, sealedDir, sealedKey)
	if _, err := c.Pin(t.Context(), "latest", "golden", nil); err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(filepath.Join(sealedDir, ".tmp"))
}

func writeGolden(t *testing.T, dir string, first, second tree, name string, seg []byte, recipients ...string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	r, _, err := repo.Init(t.Context(), dir, recipients...)
	if err != nil {
		t.Fatal(err)
	}
	c := r.Cluster(testSystem)
	if _, err := push(t, c, name, seg); err != nil {
		t.Fatal(err)
	}
	parent := ""
	for _, tr := range []tree{first, second} {
		w, err := c.NewBackup(t.Context(), repo.WriterOptions{Tool: "dbbackup 0.1", BlockSize: testBlock, Parent: parent})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range tr.paths() { // one by one: the blocks' order is then known
			f, err := w.File(blockcopy.Entry{Path: p, Size: int64(len(tr[p])), Mode: 0o600})
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Write(0, tr[p]); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(int64(len(tr[p])), false); err != nil {
				t.Fatal(err)
			}
		}
		s := summary()
		s.Control = nil
		if err := w.Commit(s); err != nil {
			t.Fatal(err)
		}
		parent = s.ID
	}
	os.RemoveAll(filepath.Join(dir, ".tmp"))
	t.Log(fmt.Sprint("written ", dir))
}
