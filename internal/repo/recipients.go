package repo

import (
	"bytes"
	"errors"
	"os"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"golang.org/x/crypto/ssh"

	"tidemark/internal/exit"
)

// parseRecipient reads a public key: age1..., ssh-ed25519 ... or ssh-rsa ....
// It returns the key's text as it is kept, without a comment.
func parseRecipient(s string) (age.Recipient, string, error) {
	s = strings.TrimSpace(s)
	hint := "give a public key: age1... as age-keygen prints it, or a line ssh-ed25519 ... or ssh-rsa ..."
	switch {
	case strings.HasPrefix(strings.ToUpper(s), "AGE-SECRET-KEY-") || strings.Contains(s, "PRIVATE KEY"):
		return nil, "", exit.New(exit.Usage, "give the public key, which begins with age1; this secret key should not be used any more, for the command line was seen by others",
			"a secret key was given as a recipient")
	case strings.HasPrefix(s, "ssh-"):
		fields := strings.Fields(s)
		if len(fields) < 2 {
			return nil, "", exit.New(exit.Usage, hint, "%q is not a public key", s)
		}
		text := fields[0] + " " + fields[1]
		r, err := agessh.ParseRecipient(text)
		return r, text, exit.Wrap(err, exit.Usage, hint, "a recipient")
	case strings.HasPrefix(s, "age1pq1"):
		r, err := age.ParseHybridRecipient(s)
		return r, s, exit.Wrap(err, exit.Usage, hint, "a recipient")
	}
	r, err := age.ParseX25519Recipient(s)
	return r, s, exit.Wrap(err, exit.Usage, hint, "a recipient")
}

// readIdentities reads the secret keys of a file: of age, or of ssh.
func readIdentities(path string) ([]age.Identity, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, exit.Wrap(err, exit.Failed, "name the file with the secret key: --identity FILE or TIDEMARK_IDENTITY", "cannot read the identity")
	}
	if bytes.Contains(data, []byte("-----BEGIN")) {
		id, err := agessh.ParseIdentity(data)
		var locked *ssh.PassphraseMissingError
		if errors.As(err, &locked) {
			return nil, exit.New(exit.Usage, "use a key without a passphrase that is kept offline, or an age identity", "the ssh key %s is protected by a passphrase", path)
		}
		if err != nil {
			return nil, exit.Wrap(err, exit.Usage, "", "%s is not an ssh key", path)
		}
		return []age.Identity{id}, nil
	}
	ids, err := age.ParseIdentities(bytes.NewReader(data))
	return ids, exit.Wrap(err, exit.Usage, "age-keygen -o FILE makes one; an ssh key serves as well", "%s is not an identity file", path)
}

// Identities are secret keys.
type Identities struct{ keys []age.Identity }

// LoadIdentities reads the secret keys in files.
func LoadIdentities(files ...string) (*Identities, error) {
	ids := &Identities{}
	for _, f := range files {
		more, err := readIdentities(f)
		if err != nil {
			return nil, err
		}
		ids.keys = append(ids.keys, more...)
	}
	return ids, nil
}
