package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"filippo.io/age"

	"tidemark/internal/exit"
)

// VaultKey is one epoch of the repository's key.
type VaultKey struct {
	Epoch      string      `json:"epoch"`      // its name
	Created    time.Time   `json:"created"`    // since when it is
	Current    bool        `json:"current"`    // what is written now is encrypted under it
	Recipients []Recipient `json:"recipients"` // who can read what was written under it
}

// Recipient is someone who can read.
type Recipient struct {
	Key         string    `json:"key"`         // the public key
	Fingerprint string    `json:"fingerprint"` // short name of that key
	Added       time.Time `json:"added"`       // since when
}

// Keys lists the epochs of the repository's key, the oldest first.
func (r *Repository) Keys(ctx context.Context) ([]VaultKey, error) {
	if r.ring == nil {
		return nil, r.inTheClear()
	}
	epochs, err := listEpochs(ctx, r.driver)
	if err != nil {
		return nil, err
	}
	var out []VaultKey
	for i, e := range epochs {
		wraps, err := listWraps(ctx, r.driver, e.Epoch)
		if err != nil {
			return nil, err
		}
		k := VaultKey{Epoch: e.Epoch, Created: e.Created, Current: i == len(epochs)-1, Recipients: []Recipient{}}
		for _, w := range wraps {
			k.Recipients = append(k.Recipients, Recipient{w.Recipient, Fingerprint(w.Recipient), w.Added})
		}
		out = append(out, k)
	}
	return out, nil
}

func (r *Repository) inTheClear() error {
	return exit.Wrap(ErrNotEncrypted, exit.Refused,
		"encryption is chosen when a repository is made: dbbackup init --recipient KEY in a new place, then dbbackup copy", "%s", r.Location())
}

// AddRecipient lets someone read everything that is and will be in the
// repository. It needs an identity of someone who can.
func (r *Repository) AddRecipient(ctx context.Context, recipient string) (Recipient, error) {
	if r.ring == nil {
		return Recipient{}, r.inTheClear()
	}
	_, text, err := parseRecipient(recipient)
	if err != nil {
		return Recipient{}, err
	}
	epochs, err := listEpochs(ctx, r.driver)
	if err != nil {
		return Recipient{}, err
	}
	secrets := make([][]byte, len(epochs))
	for i, e := range epochs { // all or nothing: first see whether all can be opened
		vault, err := r.ring.vault(ctx, e.Epoch)
		if err != nil {
			return Recipient{}, err
		}
		secrets[i] = identityText(vault)
	}
	for i, e := range epochs {
		if err := wrapVault(ctx, r.driver, e.Epoch, secrets[i], text); err != nil {
			return Recipient{}, err
		}
	}
	return Recipient{text, Fingerprint(text), now()}, nil
}

func identityText(ids []age.Identity) []byte {
	var b bytes.Buffer
	for _, id := range ids {
		fmt.Fprintln(&b, id)
	}
	return b.Bytes()
}

// ErrNoRecipient is returned when a key is to be removed that the repository
// does not know.
var ErrNoRecipient = errors.New("it is no recipient")

// RemoveRecipient takes the repository's keys from someone, named by public
// key or fingerprint. What that person copied remains readable to them; what
// is to be written must go under a new key: see RotateKey.
func (r *Repository) RemoveRecipient(ctx context.Context, who string) (Recipient, error) {
	if r.ring == nil {
		return Recipient{}, r.inTheClear()
	}
	epochs, err := listEpochs(ctx, r.driver)
	if err != nil {
		return Recipient{}, err
	}
	who = strings.TrimSpace(who)
	if _, text, err := parseRecipient(who); err == nil {
		who = text
	}
	var found []*wrapNote
	for _, e := range epochs {
		wraps, err := listWraps(ctx, r.driver, e.Epoch)
		if err != nil {
			return Recipient{}, err
		}
		i := slices.IndexFunc(wraps, func(w *wrapNote) bool { return w.Recipient == who || Fingerprint(w.Recipient) == who })
		if i < 0 {
			continue
		}
		if len(wraps) == 1 {
			return Recipient{}, exit.New(exit.Refused, "add another one first: dbbackup key add", "%s is the only recipient: without it nobody could read the repository", who)
		}
		found = append(found, wraps[i])
	}
	if len(found) == 0 {
		return Recipient{}, exit.Wrap(ErrNoRecipient, exit.Failed, "dbbackup key list shows them", "%s cannot read %s", who, r.Location())
	}
	for _, w := range found {
		if err := r.driver.Delete(ctx, wrapName(w.Epoch, w.Recipient)); err != nil {
			return Recipient{}, err
		}
	}
	return Recipient{found[0].Recipient, Fingerprint(found[0].Recipient), found[0].Added}, nil
}

// RotateKey makes a new vault key, for those who can read what is written now.
// It needs no secret.
func (r *Repository) RotateKey(ctx context.Context) (*VaultKey, error) {
	keys, err := r.Keys(ctx)
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, errors.New("the repository has no key")
	}
	last := keys[len(keys)-1]
	var texts []string
	for _, p := range last.Recipients {
		texts = append(texts, p.Key)
	}
	v, err := newEpoch(ctx, r.driver, texts)
	if err != nil {
		return nil, err
	}
	r.ring.mu.Lock()
	r.ring.current = v
	r.ring.mu.Unlock()
	return &VaultKey{Epoch: v.Epoch, Created: v.Created, Current: true, Recipients: last.Recipients}, nil
}
