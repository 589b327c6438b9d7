package repo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"sync"
	"time"

	"filippo.io/age"

	"tidemark/internal/exit"
)

// Keys form two levels. The repository has a vault key, a key pair of age's.
// Its public half is in the clear, and whoever writes wraps each content key
// for it. Its secret half is in one small object per recipient, encrypted for
// that recipient. So a key is given to one more person, or taken from one, or
// replaced, by writing or deleting objects of a few hundred bytes, and no pack
// is ever written again.
//
//	keys/<epoch>/vault          the public half; the newest epoch is used
//	keys/<epoch>/<fingerprint>  the secret half, for one recipient
//
// epoch and fingerprint are sixteen hexadecimal digits.

// ErrNoKey is returned for what cannot be read without a secret key.
var ErrNoKey = errors.New("the repository is encrypted")

func locked(reason string) error {
	return exit.Wrap(ErrNoKey, exit.Failed, "say --identity FILE, or set TIDEMARK_IDENTITY, with the secret key of one of its recipients (dbbackup key list)", "%s", reason)
}

// reloadTimeout bounds the look at keys that came after the repository was opened.
const reloadTimeout = time.Minute

// keyring opens envelopes. A nil keyring opens none.
type keyring struct {
	driver Driver

	mu         sync.Mutex
	identities []age.Identity            // the operator's
	vaults     map[string][]age.Identity // opened, by epoch
	refused    map[string]bool           // epochs that the identities do not open
	contents   map[[sha256.Size]byte]*contentKey
	current    *vaultNote
}

func newKeyring(d Driver) *keyring {
	return &keyring{driver: d, vaults: map[string][]age.Identity{}, refused: map[string]bool{}, contents: map[[sha256.Size]byte]*contentKey{}}
}

// unlock adds identities and opens every vault key that they open.
func (k *keyring) unlock(ctx context.Context, ids []age.Identity) error {
	k.mu.Lock()
	k.identities = append(k.identities, ids...)
	clear(k.refused)
	k.mu.Unlock()
	epochs, err := listEpochs(ctx, k.driver)
	if err != nil {
		return err
	}
	opened := 0
	for _, e := range epochs {
		if _, err := k.vault(ctx, e.Epoch); err == nil {
			opened++
		} else if !errors.Is(err, ErrNoKey) {
			return err
		}
	}
	if opened == 0 && len(epochs) > 0 {
		return locked("the identity is that of no recipient")
	}
	return nil
}

// vault returns the secret half of an epoch's vault key.
func (k *keyring) vault(ctx context.Context, epoch string) ([]age.Identity, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if v, ok := k.vaults[epoch]; ok {
		return v, nil
	}
	if len(k.identities) == 0 {
		return nil, locked("no secret key was given")
	}
	if k.refused[epoch] {
		return nil, locked("the identity does not open what was encrypted under vault key " + epoch)
	}
	v, err := openVault(ctx, k.driver, epoch, k.identities)
	if errors.Is(err, ErrNoKey) {
		k.refused[epoch] = true
	}
	if err != nil {
		return nil, err
	}
	k.vaults[epoch] = v
	return v, nil
}

// content opens an envelope.
func (k *keyring) content(envelope []byte) (*contentKey, error) {
	if k == nil {
		return nil, ErrNoKey
	}
	id := sha256.Sum256(envelope[envelopeFixed:])
	k.mu.Lock()
	key, ok := k.contents[id]
	k.mu.Unlock()
	if ok {
		return key, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), reloadTimeout)
	defer cancel()
	vault, err := k.vault(ctx, hex.EncodeToString(envelope[:epochSize]))
	if err != nil {
		return nil, err
	}
	if key, err = unwrapContentKey(envelope, vault); err != nil {
		return nil, exit.Wrap(err, exit.Problem, "the object was damaged or made by somebody else", "the key of an object cannot be opened")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.contents) >= maxContentKeys {
		clear(k.contents)
	}
	k.contents[id] = key
	return key, nil
}

// newest returns the epoch that is written under.
func (k *keyring) newest(ctx context.Context) (*vaultNote, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.current != nil {
		return k.current, nil
	}
	epochs, err := listEpochs(ctx, k.driver)
	if err != nil {
		return nil, err
	}
	if len(epochs) == 0 {
		return nil, exit.New(exit.Refused, "nothing is written in the clear; bring the objects below keys/ back from a copy of the repository",
			"the repository %s is encrypted, and its keys are missing", k.driver.Location())
	}
	k.current = epochs[len(epochs)-1]
	return k.current, nil
}

// newKey makes a content key. compare is the key of block hashes, or nil.
func (k *keyring) newKey(ctx context.Context, compare *[keySize]byte) (*contentKey, error) {
	v, err := k.newest(ctx)
	if err != nil {
		return nil, err
	}
	r, _, err := parseRecipient(v.Recipient)
	if err != nil {
		return nil, err
	}
	epoch, err := hex.DecodeString(v.Epoch)
	if err != nil {
		return nil, err
	}
	return newContentKey([epochSize]byte(epoch), r, compare)
}

// Encrypted tells whether the repository is encrypted.
func (r *Repository) Encrypted() bool { return r.ring != nil }

// Unlock reads the secret keys in files, so that what is encrypted can be
// read. It does nothing for a repository in the clear.
func (r *Repository) Unlock(ctx context.Context, files ...string) error {
	ids, err := LoadIdentities(files...)
	if err != nil {
		return err
	}
	return r.UnlockWith(ctx, ids)
}

// UnlockWith is Unlock with keys that were read before.
func (r *Repository) UnlockWith(ctx context.Context, ids *Identities) error {
	if r.ring == nil || len(ids.keys) == 0 {
		return nil
	}
	return r.ring.unlock(ctx, ids.keys)
}

// Unlocked tells whether what is encrypted can be read.
func (r *Repository) Unlocked() bool {
	if r.ring == nil {
		return true
	}
	r.ring.mu.Lock()
	defer r.ring.mu.Unlock()
	return len(r.ring.vaults) > 0
}
