package repo

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"filippo.io/age"

	"tidemark/internal/exit"
)

// The objects of the vault key. Part of the format, do not change.
const (
	keysPrefix  = "keys/"
	vaultObject = "vault"
	vaultFormat = "tidemark vault"
)

// vaultNote is the object that makes an epoch exist.
type vaultNote struct {
	Format    string    `json:"format"`
	Epoch     string    `json:"epoch"`
	Recipient string    `json:"recipient"` // the public half
	Created   time.Time `json:"created"`
}

// wrapNote is the secret half for one recipient.
type wrapNote struct {
	Epoch     string    `json:"epoch"`
	Recipient string    `json:"recipient"` // whom it is encrypted for
	Added     time.Time `json:"added"`
	Wrapped   []byte    `json:"wrapped"` // an age file; its content is the identity as age-keygen prints it
}

func vaultName(epoch string) string { return keysPrefix + epoch + "/" + vaultObject }
func wrapName(epoch, recipient string) string {
	return keysPrefix + epoch + "/" + Fingerprint(recipient)
}
func isEpoch(s string) bool                      { b, err := hex.DecodeString(s); return err == nil && len(b) == epochSize }
func (v *vaultNote) before(other *vaultNote) int { return v.Created.Compare(other.Created) }

// Fingerprint names a recipient in the repository: the first 8 bytes of the
// SHA-256 of its text.
func Fingerprint(recipient string) string { return HashBlock([]byte(recipient)).String()[:16] }

// listEpochs reads the vault keys' public halves, the oldest first.
func listEpochs(ctx context.Context, d Driver) ([]*vaultNote, error) {
	var names []string
	err := d.List(ctx, keysPrefix, func(i ObjectInfo) error {
		if lastElement(i.Name) == vaultObject {
			names = append(names, i.Name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var out []*vaultNote
	for _, name := range names {
		v := new(vaultNote)
		if err := getNote(ctx, d, name, v); err != nil {
			return nil, err
		}
		if v.Format != vaultFormat || vaultName(v.Epoch) != name || !isEpoch(v.Epoch) {
			return nil, &CorruptError{Object: name, Offset: -1, Reason: "it is not the vault key that its name says"}
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b *vaultNote) int {
		if c := a.before(b); c != 0 {
			return c
		}
		return strings.Compare(a.Epoch, b.Epoch)
	})
	return out, nil
}

// listWraps reads for whom the secret half of an epoch is there.
func listWraps(ctx context.Context, d Driver, epoch string) ([]*wrapNote, error) {
	var out []*wrapNote
	var names []string
	err := d.List(ctx, keysPrefix+epoch+"/", func(i ObjectInfo) error {
		if lastElement(i.Name) != vaultObject {
			names = append(names, i.Name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	for _, name := range names {
		w := new(wrapNote)
		if err := getNote(ctx, d, name, w); err != nil {
			if errors.Is(err, ErrNotExist) {
				continue
			}
			return nil, err
		}
		if w.Epoch != epoch || wrapName(epoch, w.Recipient) != name {
			return nil, &CorruptError{Object: name, Offset: -1, Reason: "it is not the key that its name says"}
		}
		out = append(out, w)
	}
	return out, nil
}

// openVault finds the secret half that one of the identities opens.
func openVault(ctx context.Context, d Driver, epoch string, ids []age.Identity) ([]age.Identity, error) {
	wraps, err := listWraps(ctx, d, epoch)
	if err != nil {
		return nil, err
	}
	for _, w := range wraps {
		r, err := age.Decrypt(bytes.NewReader(w.Wrapped), ids...)
		var no *age.NoIdentityMatchError
		if errors.As(err, &no) {
			continue
		}
		name := wrapName(epoch, w.Recipient)
		if err != nil {
			return nil, &CorruptError{Object: name, Offset: -1, Err: err}
		}
		text, err := io.ReadAll(io.LimitReader(r, maxNote))
		if err != nil {
			return nil, &CorruptError{Object: name, Offset: -1, Err: err}
		}
		vault, err := age.ParseIdentities(bytes.NewReader(text))
		if err != nil {
			return nil, &CorruptError{Object: name, Offset: -1, Err: err}
		}
		return vault, nil
	}
	return nil, locked("the identity does not open vault key " + epoch)
}

// newEpoch makes a vault key for recipients. It exists when its public half
// does, which is written last.
func newEpoch(ctx context.Context, d Driver, recipients []string) (*vaultNote, error) {
	if len(recipients) == 0 {
		return nil, exit.New(exit.Usage, "say --recipient age1...", "nobody could read what is encrypted for nobody")
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, err
	}
	var epoch [epochSize]byte
	if _, err := rand.Read(epoch[:]); err != nil {
		return nil, err
	}
	v := &vaultNote{Format: vaultFormat, Epoch: hex.EncodeToString(epoch[:]), Recipient: id.Recipient().String(), Created: now()}
	for _, r := range recipients {
		if err := wrapVault(ctx, d, v.Epoch, []byte(id.String()+"\n"), r); err != nil {
			return nil, err
		}
	}
	return v, putNote(ctx, d, vaultName(v.Epoch), v)
}

// wrapVault writes the secret half for one more recipient.
func wrapVault(ctx context.Context, d Driver, epoch string, secret []byte, recipient string) error {
	r, text, err := parseRecipient(recipient)
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	w, err := age.Encrypt(&buf, r)
	if err != nil {
		return err
	}
	if _, err := w.Write(secret); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	note := &wrapNote{Epoch: epoch, Recipient: text, Added: now(), Wrapped: buf.Bytes()}
	err = putNote(ctx, d, wrapName(epoch, text), note)
	if errors.Is(err, ErrExist) {
		return nil
	}
	return err
}
