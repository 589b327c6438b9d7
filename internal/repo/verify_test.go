package repo_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/internal/repo"
)

// verifyAll is what dbbackup verify --deep looks at.
func verifyAll(ctx context.Context, dir, key string) ([]repo.Damage, *repo.Verification, error) {
	r, err := repo.Open(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	if key != "" {
		if err := r.Unlock(ctx, key); err != nil {
			return nil, nil, err
		}
	}
	keys, err := r.VerifyKeys(ctx)
	if err != nil {
		return nil, nil, err
	}
	c := r.Cluster(testSystem)
	blocks, err := c.Verify(ctx, repo.VerifyOptions{Deep: true, Jobs: 2})
	if err != nil {
		return nil, nil, err
	}
	files, err := c.VerifyWAL(ctx, repo.VerifyOptions{Jobs: 2})
	if err != nil {
		return nil, nil, err
	}
	return append(append(keys.Damages, blocks.Damages...), files.Damages...), blocks, nil
}

// TestVerifyFindsEveryBit flips bits in every kind of object, at random
// offsets: verification names the object, with a key and without one.
func TestVerifyFindsEveryBit(t *testing.T) {
	seed := repo.Seeds(t, 1)[0]
	t.Logf("TIDEMARK_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for _, encrypted := range []bool{false, true} {
		c, dir := newCluster(t)
		key := ""
		if encrypted {
			var recipient string
			key, recipient = identity(t)
			c, dir = sealed(t, recipient)
		}
		tr := tree{"PG_VERSION": []byte("15\n"), "base/1/1": text(rnd, 40*testBlock), "base/1/2": noise(rnd, 19*testBlock+5), "base/1/3": text(rnd, 3)}
		first := backup(t, c, tr, "")
		second := backup(t, c, change(rnd, tr), first.ID)
		if err := c.DeleteBackup(t.Context(), first.ID); err != nil { // leaves blocks that nobody names
			t.Fatal(err)
		}
		if _, err := c.Pin(t.Context(), second.ID, "for the tax office", nil); err != nil {
			t.Fatal(err)
		}
		name, seg := goldenSegment()
		if _, err := push(t, c, name, seg); err != nil {
			t.Fatal(err)
		}
		w, err := c.NewBackup(t.Context(), small(second.ID))
		if err != nil {
			t.Fatal(err)
		}
		writeSome(t, w, bigTree(rnd), 0.3)
		if err := w.Suspend(); err != nil {
			t.Fatal(err)
		}
		damages, v, err := verifyAll(t.Context(), dir, key)
		if err != nil || len(damages) != 0 || v.Blocks == 0 {
			t.Fatalf("a sound repository: %v, %+v, %v", damages, v, err)
		}
		m, err := c.OpenManifest(t.Context(), second.ID)
		if err != nil {
			t.Fatal(err)
		}
		named := map[string]bool{}
		for _, p := range m.Packs {
			named[fmt.Sprintf("7412345678901234567/packs/%s.zst", p.Name)] = true
		}
		kinds := map[string]int{}
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			rel, _ := filepath.Rel(dir, path)
			rel = filepath.ToSlash(rel)
			if strings.Contains(rel, "/packs/") && !named[rel] {
				return nil // of an interrupted or deleted backup: nobody names it
			}
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			os.Chmod(path, 0o600)
			kinds[filepath.Base(rel)]++
			for i := range 4 {
				at, bit := rnd.IntN(len(data)), rnd.IntN(8)
				if i == 3 {
					at = min(4+rnd.IntN(4), len(data)-1) // the length of the frame in front
				}
				bad := bytes.Clone(data)
				bad[at] ^= 1 << bit
				os.WriteFile(path, bad, 0o600)
				{
					k := []string{key, ""}[i%2]
					got, _, err := verifyAll(t.Context(), dir, k)
					told := err != nil && strings.Contains(err.Error(), rel)
					for _, d := range got {
						told = told || d.Object == rel
					}
					if rel == "repository.json" && err != nil {
						told = true
					}
					if !told {
						t.Errorf("encrypted %v: bit %d of byte %d of %s (%d bytes, key %v): %v, %v", encrypted, bit, at, rel, len(data), k != "", got, err)
					}
				}
			}
			os.WriteFile(path, data, 0o600)
			return nil
		})
		t.Log(kinds)
	}
}

// TestVerifyNames: damage is traced to the files of the backups that it hits;
// so is a missing pack; and what Page says is reported.
func TestVerifyNames(t *testing.T) {
	c, dir := newCluster(t)
	rnd := rand.New(rand.NewPCG(51, 1))
	tr := tree{"base/1/1": noise(rnd, 40*testBlock), "base/1/2": noise(rnd, 5*testBlock)}
	first := backup(t, c, tr, "")
	second := backup(t, c, tr, first.ID)
	pack := filepath.Join(dir, fmt.Sprint(uint64(testSystem)), "packs", first.ID, "000001.zst")
	data, err := os.ReadFile(pack)
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(pack, 0o600)
	bad := bytes.Clone(data)
	bad[1000] ^= 1
	os.WriteFile(pack, bad, 0o600)
	quick, err := c.Verify(t.Context(), repo.VerifyOptions{})
	if err != nil || len(quick.Damages) != 0 {
		t.Errorf("quick: %+v, %v", quick, err)
	}
	deep, err := c.Verify(t.Context(), repo.VerifyOptions{Deep: true})
	if err != nil || len(deep.Damages) != 1 || deep.Damages[0].Part != "frame 0" || len(deep.Damages[0].Files) < 2 {
		t.Fatalf("deep: %+v, %v", deep, err)
	}
	backups := map[string]bool{}
	for _, f := range deep.Damages[0].Files {
		backups[f.Backup] = true
	}
	if !backups[first.ID] || !backups[second.ID] {
		t.Errorf("%+v", deep.Damages[0])
	}
	os.Remove(pack)
	if quick, err = c.Verify(t.Context(), repo.VerifyOptions{Backups: []string{second.ID}}); err != nil || len(quick.Damages) != 1 ||
		quick.Damages[0].Reason != "it is missing" || len(quick.Damages[0].Files) == 0 {
		t.Errorf("quick, a pack is missing: %+v, %v", quick, err)
	}
	os.WriteFile(pack, data, 0o600)
	judged, err := c.Verify(t.Context(), repo.VerifyOptions{Deep: true, Jobs: 3, Page: func(_ *repo.Summary, path string, block int64, page []byte) string {
		if len(page) == testBlock && path == "base/1/1" && block == 7 {
			return "odd"
		}
		return ""
	}})
	if err != nil || len(judged.Damages) != 1 || judged.Damages[0].Files[0] != (repo.DamagedFile{Backup: first.ID, Path: "base/1/1", Block: 7, Count: 1}) {
		t.Errorf("%+v, %v", judged, err)
	}
	proveSample(t, c, judged.Blocks)
}

// proveSample: a sample is drawn anew for every seed, and its size is right in
// the mean; a single one of a few frames may hold none of them, or all.
func proveSample(t *testing.T, c *repo.Cluster, all int64) {
	t.Helper()
	const draws = 100
	var sum int64
	sizes := map[int64]bool{}
	for seed := range uint64(draws) {
		some, err := c.Verify(t.Context(), repo.VerifyOptions{Deep: true, Sample: 40, Seed: seed})
		if err != nil || len(some.Damages) != 0 {
			t.Fatalf("seed %d: %+v, %v", seed, some, err)
		}
		sum += some.Blocks
		sizes[some.Blocks] = true
	}
	if share := float64(sum) / float64(draws*all); share < 0.2 || share > 0.6 || len(sizes) < 2 {
		t.Errorf("a sample of 40%% is %.2f of the blocks in the mean, of %v", share, sizes)
	}
}
