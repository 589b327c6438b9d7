package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"tidemark/internal/backup"
	"tidemark/internal/repo"
)

// another makes a new repository, for recipients if there are any.
func another(t *testing.T, recipients ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "r")
	args := []string{"init", "--repo", dir}
	for _, r := range recipients {
		args = append(args, "--recipient", r)
	}
	ok[backup.InitResult](t, args...)
	return dir
}

// from are the flags that name repositories.
func from(repos ...string) []string {
	var out []string
	for _, r := range repos {
		out = append(out, "--repo", r)
	}
	return out
}

// TestCopyFromSeveral: each backup comes from the first repository that has it
// and can give it.
func TestCopyFromSeveral(t *testing.T) {
	first := golden(t)
	all := ids(t, first)
	second, empty := another(t), another(t)
	ok[backup.CopyResult](t, "copy", "--repo", first, "--to", second)
	copied := func(to string, args ...string) (gave []int, res backup.CopyResult) {
		res = ok[backup.CopyResult](t, append([]string{"copy", "--to", to}, args...)...)
		for _, s := range res.Sources {
			gave = append(gave, len(s.Copied))
		}
		return gave, res
	}
	if gave, res := copied(another(t), from(empty, first, second)...); !slices.Equal(gave, []int{2, 0}) || res.WALFiles != 1 {
		t.Errorf("the first has all: %+v", res)
	}
	if gave, res := copied(second, from(first, second)...); !slices.Equal(gave, []int{0}) || len(res.There) != 2 {
		t.Errorf("to one of them: %+v", res)
	}
	ok[backup.DeleteResult](t, "delete", "--yes", "--repo", first, all[1])
	if gave, res := copied(another(t), append(from(first, second), "latest")...); !slices.Equal(gave, []int{0, 1}) || res.Copied[0] != all[1] {
		t.Errorf("the newest of all: %+v", res)
	}
	if gave, res := copied(another(t), from(first, second)...); !slices.Equal(gave, []int{1, 1}) {
		t.Errorf("each has one: %+v", res)
	}
	if wal, _ := filepath.Glob(filepath.Join(first, "*", "wal", "*", "*")); len(wal) != 1 || os.Remove(wal[0]) != nil {
		t.Fatal(wal)
	}
	if _, res := copied(another(t), append(from(first, second), all[0])...); res.WALFiles != 1 {
		t.Errorf("one has the backup and another the WAL: %+v", res)
	}
	packs, _ := filepath.Glob(filepath.Join(first, "*", "packs", "*", "*"))
	for _, p := range packs {
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
	}
	last := another(t)
	out, errs, code := verb(t, append([]string{"copy", "--to", last, all[0]}, from(first, second, "/nowhere")...)...)
	if code != 0 || !strings.Contains(errs, "is taken from "+second) || !strings.Contains(errs, "/nowhere") || !regexp.MustCompile(second+" +"+all[0]).MatchString(out) {
		t.Errorf("one is damaged and one away: %d\n%s%s", code, out, errs)
	}
	if v := ok[backup.VerifyResult](t, "verify", "--repo", last, "--deep"); !v.Sound {
		t.Errorf("%+v", v)
	}
	if out, errs, code := verb(t, append([]string{"copy", "--to", last}, from("/nowhere", second)...)...); code != 4 || !strings.Contains(errs, "not everything is copied") || !strings.Contains(out, all[1]) {
		t.Errorf("all of them, one is away: %d\n%s%s", code, out, errs)
	}
	if _, errs, code := verb(t, append([]string{"copy", "--to", last, "2020"}, from(first, second)...)...); code != 1 || !strings.Contains(errs, first+", "+second) {
		t.Errorf("a backup that nobody has: %d\n%s", code, errs)
	}
	if _, errs, code := verb(t, append([]string{"copy", "--to", last}, from(empty, last)...)...); code != 1 || !strings.Contains(errs, "nothing") {
		t.Errorf("nothing to copy: %d\n%s", code, errs)
	}
}

// TestKeysOfSeveral: key works on every repository that is encrypted, and says
// for each what became of it.
func TestKeysOfSeveral(t *testing.T) {
	t.Setenv(repo.StateEnv, t.TempDir())
	var keys []*age.X25519Identity
	for range 3 {
		k, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	identity := filepath.Join(t.TempDir(), "key.txt")
	if err := os.WriteFile(identity, []byte(keys[0].String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	name := func(i int) string { return keys[i].Recipient().String() }
	a, b, plain := another(t, name(0)), another(t, name(0), name(1)), another(t)
	run := func(repos []string, args ...string) (out, errs string, code int) {
		return verb(t, append(append([]string{"key"}, args...), from(repos...)...)...)
	}
	who := func(dir string) string {
		out, _, _ := run([]string{dir}, "list")
		return out
	}

	out, errs, code := run([]string{a, plain, b}, "add", "--identity", identity, name(2))
	if code != 0 || strings.Count(out, "can read everything now") != 2 || !strings.Contains(errs, plain+": the repository is not encrypted") {
		t.Errorf("add: %d\n%s%s", code, out, errs)
	}
	out, errs, code = run([]string{"/nowhere", a, b}, "rotate")
	if code != 4 || strings.Count(out, "What is written from now on") != 2 || !strings.Contains(errs, "/nowhere") || !strings.Contains(errs, "2 repositories of 3") {
		t.Errorf("rotate, one is away: %d\n%s%s", code, out, errs)
	}
	out, errs, code = run([]string{a, b}, "remove", "--yes", name(1))
	if code != 0 || strings.Count(out, "cannot open") != 1 || !strings.Contains(errs, "cannot read "+a) || strings.Contains(who(b), name(1)) {
		t.Errorf("remove of whom only one knows: %d\n%s%s", code, out, errs)
	}
	if _, errs, code = run([]string{a, b}, "remove", "--yes", name(1)); code != 1 || !strings.Contains(errs, "key list") {
		t.Errorf("remove of whom none knows: %d\n%s", code, errs)
	}
	if _, errs, code = run([]string{a, b}, "remove", name(2)); code != 6 || !strings.Contains(errs, "--yes") || !strings.Contains(who(a), name(2)) {
		t.Errorf("remove without a confirmation: %d\n%s", code, errs)
	}
	if _, errs, code = run([]string{a}, "add", "--identity", identity, "age1nonsense"); code == 0 {
		t.Errorf("%d\n%s", code, errs)
	}
	all := ok[inSeveral[backup.KeyResult]](t, append([]string{"key", "list"}, from(a, b, plain)...)...)
	if len(all.Repositories) != 2 || len(all.Repositories[0].Keys) != 2 || len(all.Repositories[1].Keys[1].Recipients) != 2 {
		t.Errorf("%+v", all)
	}
	if _, _, code = run([]string{plain}, "rotate"); code != 6 {
		t.Errorf("in the clear: %d", code)
	}
}
