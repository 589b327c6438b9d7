package main

import (
	"context"
	"strings"

	"tidemark/internal/backup"
	"tidemark/internal/cli"
	"tidemark/internal/exit"
	"tidemark/internal/repo"
)

type keyCmd struct {
	List   keyListCmd   `cmd:"" help:"List who can read the repository."`
	Add    keyAddCmd    `cmd:"" help:"Let one more key read everything, old and new."`
	Remove keyRemoveCmd `cmd:"" help:"Take the repository from a key."`
	Rotate keyRotateCmd `cmd:"" help:"Encrypt what is written from now on under a new key."`
}

// keyring is what is printed of the keys of one repository.
type keyring struct {
	backup.KeyResult
	done string // what was done, for people
}

func keysOf(ctx context.Context, r *repo.Repository, done string) (*keyring, error) {
	keys, err := r.Keys(ctx)
	if err != nil {
		return nil, err
	}
	return &keyring{backup.KeyResult{Repository: r.Location(), Keys: keys}, done}, nil
}

func renderKeys(t *cli.Text, k *keyring, several bool) {
	if several {
		t.Line("%s", k.Repository)
	}
	if k.done != "" {
		t.Line("%s", k.done)
	}
	tab := cli.NewTable("vault key", "since", "", "fingerprint", "can read it")
	for _, v := range k.Keys {
		state := ""
		if v.Current {
			state = "current"
		}
		for _, p := range v.Recipients {
			tab.Row(v.Epoch, cli.Time(v.Created), state, p.Fingerprint, p.Key)
		}
	}
	t.Table(tab)
}

// inKeyrings runs do for each repository, one after another, and prints the
// keys that each has then. One that is in the clear has none, which is an error
// only where it is the only one. What is done in some of them stays done.
func inKeyrings(ctx context.Context, e *cli.Env, locations []string, identity cli.IdentityFlag, do func(*repo.Repository) (string, error)) error {
	ids, err := repo.LoadIdentities(identity.Identities()...) // before root becomes another user
	if err != nil {
		return err
	}
	done := 0
	err = inTurn(e, locations, func(location string) (*keyring, error) {
		r, err := openWith(ctx, location, ids)
		if err != nil {
			return nil, err
		}
		said, err := do(r)
		if err != nil {
			return nil, err
		}
		done++
		return keysOf(ctx, r, said)
	}, func(t *cli.Text, k *keyring) { renderKeys(t, k, len(locations) > 1) })
	if err != nil && done > 0 {
		return exit.Wrap(err, exit.Partial, strings.TrimPrefix(exit.HintOf(err)+"\nrun it again for those, with --repo", "\n"), "it is done in %s of %d only", cli.Plural(done, "repository", "repositories"), len(locations))
	}
	return err
}

type keyListCmd struct{ cli.ReposFlag }

// Run lists the keys.
func (c *keyListCmd) Run(ctx context.Context, e *cli.Env) error {
	return inTurn(e, c.Repos, func(location string) (*keyring, error) {
		r, err := repo.Open(ctx, location)
		if err != nil {
			return nil, err
		}
		return keysOf(ctx, r, "")
	}, func(t *cli.Text, k *keyring) { renderKeys(t, k, len(c.Repos) > 1) })
}

// Examples are printed with --help.
func (keyListCmd) Examples() string { return `dbbackup key list --repo /srv/backup` }

type keyAddCmd struct {
	cli.ReposFlag
	cli.IdentityFlag
	Recipient string `arg:"" name:"key" help:"The public key: age1..., or an ssh one in quotes."`
}

// Run adds the key.
func (c *keyAddCmd) Run(ctx context.Context, e *cli.Env) error {
	return inKeyrings(ctx, e, c.Repos, c.IdentityFlag, func(r *repo.Repository) (string, error) {
		p, err := r.AddRecipient(ctx, c.Recipient)
		return p.Fingerprint + " can read everything now.", err
	})
}

// Examples are printed with --help.
func (keyAddCmd) Examples() string {
	return `dbbackup key add --repo /srv/backup --identity key.txt age1...
dbbackup key add --repo /srv/backup --identity key.txt "$(cat ~/.ssh/id_ed25519.pub)"`
}

type keyRemoveCmd struct {
	cli.ReposFlag
	Recipient string `arg:"" name:"key" help:"The public key, or its fingerprint."`
}

// Run removes the key.
func (c *keyRemoveCmd) Run(ctx context.Context, e *cli.Env) error {
	if err := needRepos(c.Repos); err != nil {
		return err
	}
	if err := e.Confirm("Take %s from %s?", strings.Join(c.Repos, ", "), c.Recipient); err != nil {
		return err
	}
	removed := false
	err := inKeyrings(ctx, e, c.Repos, cli.IdentityFlag{}, func(r *repo.Repository) (string, error) {
		p, err := r.RemoveRecipient(ctx, c.Recipient)
		removed = removed || err == nil
		return p.Fingerprint + " cannot open the repository's keys any more.", err
	})
	if removed {
		e.Note("who held that key may have copied the vault key: dbbackup key rotate keeps what is written from now on from them")
	}
	return err
}

// Examples are printed with --help.
func (keyRemoveCmd) Examples() string {
	return `dbbackup key remove --repo /srv/backup 8c2f6d0a4be1937d && dbbackup key rotate --repo /srv/backup`
}

type keyRotateCmd struct{ cli.ReposFlag }

// Run makes a new vault key.
func (c *keyRotateCmd) Run(ctx context.Context, e *cli.Env) error {
	return inKeyrings(ctx, e, c.Repos, cli.IdentityFlag{}, func(r *repo.Repository) (string, error) {
		k, err := r.RotateKey(ctx)
		if err != nil {
			return "", err
		}
		return "What is written from now on is encrypted under vault key " + k.Epoch + ".", nil
	})
}

// Examples are printed with --help.
func (keyRotateCmd) Examples() string {
	return `dbbackup key rotate --repo /srv/backup
dbbackup key rotate    # in every configured repository that is encrypted`
}
