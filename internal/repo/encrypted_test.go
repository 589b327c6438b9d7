package repo_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io/fs"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"golang.org/x/crypto/ssh"

	"tidemark/internal/repo"
)

// identity makes a secret key in a file and returns the file and the public key.
func identity(t *testing.T) (file, recipient string) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "key.txt")
	if err := os.WriteFile(file, []byte("# made for a test\n"+id.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, id.Recipient().String()
}

func sshIdentity(t *testing.T) (file, recipient string) {
	t.Helper()
	public, secret, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(secret, "")
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "id_ed25519")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) + " someone@example.org"
}

// sealed makes an encrypted repository. host is as the database host sees it.
func sealed(t *testing.T, recipients ...string) (host *repo.Cluster, dir string) {
	t.Helper()
	t.Setenv(repo.StateEnv, t.TempDir())
	dir = filepath.Join(t.TempDir(), "r")
	r, created, err := repo.Init(t.Context(), dir, recipients...)
	if err != nil || !created || !r.Encrypted() {
		t.Fatalf("init: %v, %v", created, err)
	}
	return r.Cluster(testSystem), dir
}

// opened opens the repository as the holder of a secret key does.
func opened(t *testing.T, dir, identity string) *repo.Cluster {
	t.Helper()
	r, err := repo.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Unlock(t.Context(), identity); err != nil {
		t.Fatal(err)
	}
	return r.Cluster(testSystem)
}

// TestEncrypted: a host that cannot read takes backups, incremental ones too,
// and archives WAL; who has a secret key restores.
func TestEncrypted(t *testing.T) {
	key, recipient := identity(t)
	sshKey, sshRecipient := sshIdentity(t)
	host, dir := sealed(t, recipient, sshRecipient)
	rnd := mrand.New(mrand.NewPCG(21, 1))
	tr := randomTree(rnd)
	secret := []byte("the plumage of the secretary bird")
	tr["base/1/99"] = append(bytes.Clone(secret), text(rnd, 3*testBlock)...)
	first := backup(t, host, tr, "")
	next := change(rnd, tr)
	second := backup(t, host, next, first.ID)
	if second.Type != repo.Incremental || second.OldBlocks == 0 || second.Encryption == nil {
		t.Errorf("the host does not recognise its blocks: %+v", second)
	}
	name, seg := goldenSegment()
	if p, err := push(t, host, name, seg); err != nil || p.Existed {
		t.Fatal(p, err)
	}
	if p, err := push(t, host, name, seg); err != nil || !p.Existed {
		t.Errorf("the same segment again: %+v, %v", p, err)
	}
	other := bytes.Clone(seg)
	other[5000] ^= 1
	var conflict *repo.WALConflictError
	if _, err := push(t, host, name, other); !errors.As(err, &conflict) {
		t.Errorf("another segment under the same name: %v", err)
	}
	if _, err := restore(t.Context(), host, first.ID); !errors.Is(err, repo.ErrNoKey) {
		t.Errorf("the host could read: %v", err)
	}
	if _, err := host.FetchWAL(t.Context(), name, &bytes.Buffer{}); !errors.Is(err, repo.ErrNoKey) || errors.Is(err, repo.ErrNotArchived) {
		t.Errorf("the host could read WAL: %v", err)
	}
	for _, k := range []string{key, sshKey} {
		c := opened(t, dir, k)
		mustRestore(t, c, first.ID, tr)
		mustRestore(t, c, second.ID, next)
		var got bytes.Buffer
		if _, err := c.FetchWAL(t.Context(), name, &got); err != nil || !bytes.Equal(got.Bytes(), seg) {
			t.Errorf("WAL: %v", err)
		}
	}
	stranger, _ := identity(t)
	r, _ := repo.Open(t.Context(), dir)
	if err := r.Unlock(t.Context(), stranger); !errors.Is(err, repo.ErrNoKey) {
		t.Errorf("a stranger's key: %v", err)
	}
	filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if d.IsDir() {
			return err
		}
		data, err := os.ReadFile(p)
		if bytes.Contains(data, secret) || bytes.Contains(data, []byte("AGE-SECRET-KEY")) {
			t.Errorf("%s holds a secret in the clear", p)
		}
		return err
	})
}

// TestAnotherWriter: without the compare key a backup stores every block again
// and says why; with a copy of it, it does not.
func TestAnotherWriter(t *testing.T) {
	key, recipient := identity(t)
	host, dir := sealed(t, recipient)
	tr := randomTree(mrand.New(mrand.NewPCG(22, 1)))
	first := backup(t, host, tr, "")
	host.Repository().KeepState(t.TempDir())
	if host.Comparable(first) {
		t.Error("comparable without the key")
	}
	w, err := host.NewBackup(t.Context(), repo.WriterOptions{Tool: "test", BlockSize: testBlock, Parent: first.ID})
	if err != nil {
		t.Fatal(err)
	}
	if err := writeTree(w, tr); err != nil {
		t.Fatal(err)
	}
	if w.ParentFault() == nil {
		t.Error("it does not say why all is stored again")
	}
	s := summary()
	if err := w.Commit(s); err != nil || s.OldBlocks != 0 || s.Type != repo.Full {
		t.Errorf("%+v, %v", s, err)
	}
	host.Repository().KeepState(filepath.Join(dir, "repository.json", "no"))
	if w, err = host.NewBackup(t.Context(), repo.WriterOptions{Tool: "test", BlockSize: testBlock}); err != nil || w.ParentFault() == nil {
		t.Fatalf("a key that cannot be kept: %v", err)
	}
	w.Abort()
	host.Repository().KeepState("")
	if third := backup(t, host, tr, first.ID); third.NewBlocks != 0 {
		t.Errorf("%+v", third)
	}
	mustRestore(t, opened(t, dir, key), s.ID, tr)
}

// TestKeys: keys are given, taken and replaced without touching a pack.
func TestKeys(t *testing.T) {
	alice, aliceKey := identity(t)
	bob, bobKey := identity(t)
	carol, carolKey := identity(t)
	host, dir := sealed(t, aliceKey)
	tr := tree{"PG_VERSION": []byte("15\n"), "base/1/1": text(mrand.New(mrand.NewPCG(1, 1)), 9*testBlock)}
	first := backup(t, host, tr, "")
	before, err := os.ReadFile(filepath.Join(dir, "7412345678901234567", "packs", first.ID, "000001.zst"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := host.Repository().AddRecipient(t.Context(), bobKey); !errors.Is(err, repo.ErrNoKey) {
		t.Errorf("who cannot read lets others read: %v", err)
	}
	if _, err := opened(t, dir, alice).Repository().AddRecipient(t.Context(), bobKey); err != nil {
		t.Fatal(err)
	}
	mustRestore(t, opened(t, dir, bob), first.ID, tr)
	if _, err := host.Repository().RotateKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := backup(t, host, tr, "")
	if second.Encryption.Epoch == first.Encryption.Epoch {
		t.Error("the key was not replaced")
	}
	mustRestore(t, opened(t, dir, bob), second.ID, tr)
	if _, err := host.Repository().RemoveRecipient(t.Context(), repo.Fingerprint(aliceKey)); err != nil {
		t.Fatal(err)
	}
	r, _ := repo.Open(t.Context(), dir)
	if err := r.Unlock(t.Context(), alice); !errors.Is(err, repo.ErrNoKey) {
		t.Errorf("alice still reads: %v", err)
	}
	if _, err := host.Repository().RemoveRecipient(t.Context(), bobKey); err == nil {
		t.Error("the last recipient could be removed")
	}
	if _, err := opened(t, dir, bob).Repository().AddRecipient(t.Context(), carolKey); err != nil {
		t.Fatal(err)
	}
	mustRestore(t, opened(t, dir, carol), first.ID, tr)
	keys, err := host.Repository().Keys(t.Context())
	if err != nil || len(keys) != 2 || len(keys[0].Recipients) != 2 || !keys[1].Current || keys[0].Current {
		t.Errorf("%+v, %v", keys, err)
	}
	after, _ := os.ReadFile(filepath.Join(dir, "7412345678901234567", "packs", first.ID, "000001.zst"))
	if !bytes.Equal(before, after) {
		t.Error("a pack was written again")
	}
}

// TestNeverInTheClear: an encrypted repository whose keys are gone is not
// written to in the clear, nor is a key accepted where one is not meant to be.
func TestNeverInTheClear(t *testing.T) {
	key, recipient := identity(t)
	_, dir := sealed(t, recipient)
	if err := os.RemoveAll(filepath.Join(dir, "keys")); err != nil {
		t.Fatal(err)
	}
	r, err := repo.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	c := r.Cluster(testSystem)
	if _, err := c.NewBackup(t.Context(), repo.WriterOptions{Tool: "test", BlockSize: testBlock}); err == nil {
		t.Error("a backup was begun")
	}
	name, seg := goldenSegment()
	if _, err := push(t, c, name, seg); err == nil {
		t.Error("WAL was stored")
	}
	data, _ := os.ReadFile(key)
	secret := strings.Split(string(data), "\n")[1]
	if _, _, err := repo.Init(t.Context(), filepath.Join(t.TempDir(), "x"), secret); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("a secret key as a recipient: %v", err)
	}
}

// TestForged: what was changed by somebody who repairs every checksum is found
// with the key.
func TestForged(t *testing.T) {
	key, recipient := identity(t)
	host, dir := sealed(t, recipient)
	tr := tree{"base/1/1": noise(mrand.New(mrand.NewPCG(2, 1)), 9*testBlock), "base/1/2": text(mrand.New(mrand.NewPCG(3, 1)), 9*testBlock)}
	s := backup(t, host, tr, "")
	path := filepath.Join(dir, "7412345678901234567", "packs", s.ID, "000001.zst")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(path, 0o600)
	for _, forge := range []func([]byte){repo.ForgeFrame, repo.ForgeIndex} {
		bad := bytes.Clone(data)
		forge(bad)
		os.WriteFile(path, bad, 0o600)
		var ce *repo.CorruptError
		if _, err := restore(t.Context(), opened(t, dir, key), s.ID); !errors.As(err, &ce) || !strings.Contains(err.Error(), "changed") {
			t.Errorf("%v", err)
		}
	}
}
