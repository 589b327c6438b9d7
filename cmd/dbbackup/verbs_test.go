package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"tidemark/internal/backup"
	"tidemark/internal/cli"
	"tidemark/internal/repo"
)

// verb runs the command and returns what it printed and how it ended.
func verb(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, err bytes.Buffer
	code = cli.Run(t.Context(), "dbbackup", "", &commands{}, cli.Streams{In: strings.NewReader(""), Out: &out, Err: &err}, args)
	return out.String(), err.String(), code
}

// ok runs the command with --json and fails the test unless it succeeds.
func ok[T any](t *testing.T, args ...string) T {
	t.Helper()
	out, err, code := verb(t, append(args, "--json")...)
	if code != 0 {
		t.Fatalf("%v: exit code %d\n%s%s", args, code, out, err)
	}
	var v T
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("%v: %v in %s", args, err, out)
	}
	return v
}

// golden copies the kept repository, which holds two backups and one segment.
func golden(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "repo")
	if err := os.CopyFS(dir, os.DirFS("../../internal/repo/testdata/v1")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func ids(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	for _, b := range ok[backup.Listing](t, "list", "--repo", dir).Clusters[0].Backups {
		out = append(out, b.ID)
	}
	return out
}

// TestVerbs goes through the verbs that keep house, on a repository without a
// server.
func TestVerbs(t *testing.T) {
	dir := golden(t)
	all := ids(t, dir)
	if len(all) != 2 {
		t.Fatal(all)
	}
	first, second := all[0], all[1]
	s := ok[backup.ShowResult](t, "show", "--repo", dir)
	if s.ID != second || len(s.Chain) != 2 || s.WALNeeded != 1 || len(s.WALMissing) != 0 || s.PackBytes == 0 {
		t.Errorf("show: %+v", s)
	}
	v := ok[backup.VerifyResult](t, "verify", "--repo", dir, "--deep")
	if !v.Sound || v.Clusters[0].Blocks == 0 || v.Clusters[0].WALFiles != 1 || len(v.Clusters[0].Backups) != 2 {
		t.Errorf("verify: %+v", v)
	}
	if _, err, code := verb(t, "expire", "--repo", dir); code != 64 || !strings.Contains(err, "--keep-last") {
		t.Errorf("expire without a rule: %d, %s", code, err)
	}
	ok[backup.PinResult](t, "pin", "--repo", dir, first, "--reason", "for the tax office")
	if _, err, code := verb(t, "delete", "--repo", dir, "--yes", first); code != 6 || !strings.Contains(err, "unpin") {
		t.Errorf("delete of a pinned backup: %d, %s", code, err)
	}
	if e := ok[backup.ExpireResult](t, "expire", "--repo", dir, "--keep-last", "1").Clusters[0]; len(e.Kept) != 2 || e.Kept[0].Reasons[0] != "pinned" {
		t.Errorf("expire, one pinned: %+v", e)
	}
	ok[backup.PinResult](t, "unpin", "--repo", dir, first)
	plan := ok[backup.ExpireResult](t, "expire", "--repo", dir, "--keep-last", "1", "--dry-run")
	if len(ids(t, dir)) != 2 || !plan.DryRun {
		t.Errorf("--dry-run changed something: %+v", plan)
	}
	config := filepath.Join(t.TempDir(), "tidemark.toml")
	if err := os.WriteFile(config, []byte("[repository]\npath = '"+dir+"'\n[retention]\nkeep_last = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	done := ok[backup.ExpireResult](t, "expire", "--config", config)
	if a, b := plan.Clusters[0], done.Clusters[0]; len(b.Removed) != 1 || len(a.Removed) != 1 || a.Packs != b.Packs || a.PackBytes != b.PackBytes {
		t.Errorf("planned %+v, did %+v", a, b)
	}
	if v := ok[backup.VerifyResult](t, "verify", "--repo", dir, "--deep", second); !v.Sound {
		t.Errorf("after expire: %+v", v)
	}
	if _, err, code := verb(t, "delete", "--repo", dir, second); code != 6 || !strings.Contains(err, "--yes") {
		t.Errorf("delete without a confirmation: %d, %s", code, err)
	}
	ok[backup.DeleteResult](t, "delete", "--repo", dir, "--yes", second)
	if packs, _ := filepath.Glob(filepath.Join(dir, "*", "packs", "*", "*")); len(packs) != 0 {
		t.Errorf("left: %v", packs)
	}
}

// TestVerifyExit: damage ends verify with exit code 3 and is named.
func TestVerifyExit(t *testing.T) {
	dir := golden(t)
	packs, _ := filepath.Glob(filepath.Join(dir, "*", "packs", "*", "*"))
	data, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(packs[0], 0o600)
	data[100] ^= 4
	os.WriteFile(packs[0], data, 0o600)
	if _, _, code := verb(t, "verify", "--repo", dir); code != 0 {
		t.Errorf("quick: exit code %d", code)
	}
	out, _, code := verb(t, "verify", "--repo", dir, "--deep")
	if code != 3 || !strings.Contains(out, filepath.Base(packs[0])+", frame 0: ") || !strings.Contains(out, "base/1/1259, block") {
		t.Errorf("deep: exit code %d\n%s", code, out)
	}
	os.Remove(packs[0])
	if out, _, code := verb(t, "verify", "--repo", dir); code != 3 || !strings.Contains(out, "missing") {
		t.Errorf("quick, a pack is missing: exit code %d\n%s", code, out)
	}
}

// TestCopyAndKeys: a repository is copied as it is and into an encrypted one,
// twice without effect, and from there in the clear again.
func TestCopyAndKeys(t *testing.T) {
	t.Setenv(repo.StateEnv, t.TempDir())
	dir := golden(t)
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "key.txt")
	if err := os.WriteFile(key, []byte(id.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	plain, sealed, back := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b"), filepath.Join(t.TempDir(), "c")
	ok[backup.InitResult](t, "init", "--repo", plain)
	ok[backup.InitResult](t, "init", "--repo", back)
	if r := ok[backup.InitResult](t, "init", "--repo", sealed, "--recipient", id.Recipient().String()); !r.Encrypted {
		t.Errorf("%+v", r)
	}
	for _, step := range [][2]string{{dir, plain}, {plain, sealed}, {sealed, back}} {
		if c := ok[backup.CopyResult](t, "copy", "--repo", step[0], "--to", step[1], "--identity", key); len(c.Copied) != 2 || c.WALFiles != 1 {
			t.Errorf("%v: %+v", step, c)
		}
		before := objects(t, step[1])
		if c := ok[backup.CopyResult](t, "copy", "--repo", step[0], "--to", step[1], "--identity", key); len(c.There) != 2 || c.WALFiles != 0 {
			t.Errorf("%v again: %+v", step, c)
		}
		if got := objects(t, step[1]); got != before {
			t.Errorf("copied again:\n%s\n%s", before, got)
		}
		if v := ok[backup.VerifyResult](t, "verify", "--repo", step[1], "--deep", "--identity", key); !v.Sound {
			t.Errorf("%v: %+v", step, v)
		}
	}
	if _, err, code := verb(t, "copy", "--repo", sealed, "--to", back); code != 1 || !strings.Contains(err, "--identity") {
		t.Errorf("copied without a key: %d, %s", code, err)
	}
	if k := ok[backup.KeyResult](t, "key", "rotate", "--repo", sealed); len(k.Keys) != 2 || !k.Keys[1].Current {
		t.Errorf("%+v", k)
	}
	if _, err, code := verb(t, "key", "list", "--repo", plain); code != 6 || !strings.Contains(err, "not encrypted") {
		t.Errorf("%d, %s", code, err)
	}
	got := ok[backup.ShowResult](t, "show", "--repo", back)
	want := ok[backup.ShowResult](t, "show", "--repo", dir)
	if got.ID != want.ID || got.ClusterBytes != want.ClusterBytes || got.Stop != want.Stop || got.OldBlocks != want.OldBlocks {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// objects lists the objects of a repository.
func objects(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, strings.TrimPrefix(p, dir))
		}
		return err
	})
	return strings.Join(all, "\n")
}

// TestStreamRefusals: what does not go with --stream is said before anybody connects.
func TestStreamRefusals(t *testing.T) {
	for _, other := range []string{"-D", "--plain"} {
		if _, err, code := verb(t, "create", "--repo", golden(t), "--stream", other, t.TempDir()); code != 64 || !strings.Contains(err, "--stream") {
			t.Errorf("%s: %d, %s", other, code, err)
		}
	}
}
