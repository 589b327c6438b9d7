package main

import (
	"context"

	"tidemark/internal/backup"
	"tidemark/internal/cli"
	"tidemark/internal/repo"
)

type keyCmd struct {
	List   keyListCmd   `cmd:"" help:"List who can read the repository."`
	Add    keyAddCmd    `cmd:"" help:"Let one more key read everything, old and new."`
	Remove keyRemoveCmd `cmd:"" help:"Take the repository from a key."`
	Rotate keyRotateCmd `cmd:"" help:"Encrypt what is written from now on under a new key."`
}

type keyListCmd struct{ cli.RepoFlag }

// Run lists the keys.
func (c *keyListCmd) Run(ctx context.Context, e *cli.Env) error {
	r, err := openToRead(ctx, c.Repo, cli.IdentityFlag{})
	if err != nil {
		return err
	}
	return showKeys(ctx, e, r, "")
}

// Examples are printed with --help.
func (keyListCmd) Examples() string { return `dbbackup key list --repo /srv/backup` }

func showKeys(ctx context.Context, e *cli.Env, r *repo.Repository, done string) error {
	keys, err := r.Keys(ctx)
	if err != nil {
		return err
	}
	return e.Render(&backup.KeyResult{Repository: r.Location(), Keys: keys}, func(t *cli.Text) {
		if done != "" {
			t.Line("%s", done)
		}
		tab := cli.NewTable("vault key", "since", "", "fingerprint", "can read it")
		for _, k := range keys {
			state := ""
			if k.Current {
				state = "current"
			}
			for _, p := range k.Recipients {
				tab.Row(k.Epoch, cli.Time(k.Created), state, p.Fingerprint, p.Key)
			}
		}
		t.Table(tab)
	})
}

type keyAddCmd struct {
	cli.RepoFlag
	cli.IdentityFlag
	Recipient string `arg:"" name:"key" help:"The public key: age1..., or an ssh one in quotes."`
}

// Run adds the key.
func (c *keyAddCmd) Run(ctx context.Context, e *cli.Env) error {
	r, err := open(ctx, c.Repo, c.IdentityFlag)
	if err != nil {
		return err
	}
	p, err := r.AddRecipient(ctx, c.Recipient)
	if err != nil {
		return err
	}
	return showKeys(ctx, e, r, p.Fingerprint+" can read everything now.")
}

// Examples are printed with --help.
func (keyAddCmd) Examples() string {
	return `dbbackup key add --repo /srv/backup --identity key.txt age1...
dbbackup key add --repo /srv/backup --identity key.txt "$(cat ~/.ssh/id_ed25519.pub)"`
}

type keyRemoveCmd struct {
	cli.RepoFlag
	Recipient string `arg:"" name:"key" help:"The public key, or its fingerprint."`
}

// Run removes the key.
func (c *keyRemoveCmd) Run(ctx context.Context, e *cli.Env) error {
	r, err := open(ctx, c.Repo, cli.IdentityFlag{})
	if err != nil {
		return err
	}
	if err := e.Confirm("Take %s from %s?", c.Repo, c.Recipient); err != nil {
		return err
	}
	p, err := r.RemoveRecipient(ctx, c.Recipient)
	if err != nil {
		return err
	}
	e.Progress().Note("who held that key may have copied the vault key: dbbackup key rotate keeps what is written from now on from them")
	return showKeys(ctx, e, r, p.Fingerprint+" cannot open the repository's keys any more.")
}

// Examples are printed with --help.
func (keyRemoveCmd) Examples() string {
	return `dbbackup key remove --repo /srv/backup 8c2f6d0a4be1937d && dbbackup key rotate --repo /srv/backup`
}

type keyRotateCmd struct{ cli.RepoFlag }

// Run makes a new vault key.
func (c *keyRotateCmd) Run(ctx context.Context, e *cli.Env) error {
	r, err := open(ctx, c.Repo, cli.IdentityFlag{})
	if err != nil {
		return err
	}
	k, err := r.RotateKey(ctx)
	if err != nil {
		return err
	}
	return showKeys(ctx, e, r, "What is written from now on is encrypted under vault key "+k.Epoch+".")
}

// Examples are printed with --help.
func (keyRotateCmd) Examples() string { return `dbbackup key rotate --repo /srv/backup` }
