package repo

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strings"

	"tidemark/internal/exit"
)

// What a writer remembers of an encrypted repository is one secret: the
// compare key, with which blocks are hashed. The hashes are in the clear, so
// that a host which cannot read the repository can still see which blocks are
// there already; and as they are keyed, somebody who only has the repository
// cannot try guesses against them. The key opens nothing.
//
// It is made by the first backup from this account and lies in
//
//	$TIDEMARK_STATE or ~/.local/state/tidemark, <repository id>.compare
//
// Where it is missing (another host, a new account) nothing fails: a new one is
// made, and the next backup stores every block once more.

// StateEnv is the environment variable that names the directory.
const StateEnv = "TIDEMARK_STATE"

// KeepState sets the directory where a writer's compare keys are kept; "" is
// the default.
func (r *Repository) KeepState(dir string) { r.state = dir }

// StateDir is where this account keeps what it remembers of repositories. It
// may not exist.
func (r *Repository) StateDir() (string, error) {
	if dir := cmp.Or(r.state, os.Getenv(StateEnv)); dir != "" {
		return dir, nil
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) && os.Geteuid() == os.Getuid() && ownHome() {
		return filepath.Join(dir, "tidemark"), nil
	}
	u, err := user.Current() // not $HOME: as root a command becomes another user
	if err != nil {
		return "", err
	}
	if u.HomeDir == "" {
		return "", fmt.Errorf("user %s has no home directory", u.Username)
	}
	return filepath.Join(u.HomeDir, ".local", "state", "tidemark"), nil
}

// ownHome tells whether the environment is that of the process's user.
func ownHome() bool {
	u, err := user.Current()
	return err == nil && os.Getenv("HOME") == u.HomeDir
}

func (r *Repository) comparePath() (string, error) {
	dir, err := r.StateDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, r.id+".compare"), nil
}

// compareKey returns this account's key for the block hashes, fs.ErrNotExist
// where it has none yet.
func (r *Repository) compareKey() (*[keySize]byte, error) {
	path, err := r.comparePath()
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(data)))
	if err != nil || len(key) != keySize {
		return nil, fmt.Errorf("%s does not hold a key", path)
	}
	return (*[keySize]byte)(key), nil
}

// ensureCompareKey makes the key where there is none. A key that could not be
// kept is returned with the error: it serves for one backup.
func (r *Repository) ensureCompareKey() (*[keySize]byte, error) {
	key, err := r.compareKey()
	if err == nil {
		return key, nil
	}
	fresh := new([keySize]byte)
	if _, e := rand.Read(fresh[:]); e != nil {
		return nil, e
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = r.keepCompareKey(fresh)
		if errors.Is(err, fs.ErrExist) { // somebody else was faster
			return r.compareKey()
		}
	}
	return fresh, exit.Hint(err, "name a directory that this account may write in "+StateEnv+"; until then every backup stores every block")
}

func (r *Repository) keepCompareKey(key *[keySize]byte) error {
	path, err := r.comparePath()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = fmt.Fprintln(tmp, hex.EncodeToString(key[:]))
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Link(tmp.Name(), path)
}

// Comparable tells whether a new backup from this account can reference the
// blocks of an existing one.
func (c *Cluster) Comparable(s *Summary) bool {
	if c.repo.ring == nil || s.Encryption == nil {
		return c.repo.ring == nil && s.Encryption == nil
	}
	key, err := c.repo.compareKey()
	return err == nil && compareKeyID(*key) == s.Encryption.CompareKey
}
