package main

import (
	"context"
	"fmt"

	"tidemark/internal/backup"
	"tidemark/internal/cli"
	"tidemark/internal/exit"
	"tidemark/internal/repo"
)

type verifyCmd struct {
	cli.ReposFlag
	cli.IdentityFlag
	cli.JobsFlag
	systemFlag
	Deep   bool     `help:"Decode every frame, hash every block, check every page's checksum, and read all WAL."`
	Sample float64  `placeholder:"PERCENT" help:"Look at a random part only; implies --deep."`
	IDs    []string `arg:"" optional:"" name:"backup" help:"Only these backups, by identifier; all by default."`
}

// Run verifies the repository.
func (c *verifyCmd) Run(ctx context.Context, e *cli.Env) error {
	if c.Sample < 0 || c.Sample > 100 {
		return exit.New(exit.Usage, "say --sample 5", "--sample is a percentage, not %g", c.Sample)
	}
	return inTurn(e, c.Repos, func(location string) (*backup.VerifyResult, error) { return c.verify(ctx, e, location) }, renderVerify)
}

// verify verifies one repository.
func (c *verifyCmd) verify(ctx context.Context, e *cli.Env, location string) (*backup.VerifyResult, error) {
	r, err := openToRead(ctx, location, c.IdentityFlag)
	if err != nil {
		return nil, err
	}
	system := c.SystemID
	if system == 0 && len(c.IDs) > 0 {
		cluster, err := r.OnlyCluster(ctx)
		if err != nil {
			return nil, err
		}
		system = cluster.SystemID()
	}
	v, err := backup.Verify(ctx, r, backup.VerifyOptions{SystemID: system, Backups: c.IDs, Deep: c.Deep || c.Sample > 0, Sample: c.Sample,
		Jobs: c.Jobs, Progress: e.Progress()})
	if err != nil || v.Sound {
		return v, err
	}
	return v, exit.New(exit.Problem, "a damaged object can be brought back from a copy of the repository under the same name; what a new backup stores again does not need it: dbbackup create --full",
		"the repository is damaged")
}

func renderVerify(t *cli.Text, v *backup.VerifyResult) {
	for _, d := range v.Damages {
		renderDamage(t, d)
	}
	for _, c := range v.Clusters {
		id, _ := c.SystemID.MarshalText() // never fails
		read := ""
		if v.Deep {
			read = cli.Plural(c.Blocks, "block", "blocks") + ", " + cli.Plural(c.WALFiles, "WAL file", "WAL files") + " in " + cli.Bytes(c.Bytes)
		}
		t.Line("Cluster %s in %s", id, v.Repository)
		t.KV("backups", len(c.Backups), "objects", cli.Count(c.Objects), "read", read)
		for _, b := range c.Backups {
			for _, w := range b.WALMissing {
				t.Line("backup %s cannot be restored: the archive lacks %s", b.ID, w)
			}
		}
		for _, d := range c.Damages {
			renderDamage(t, d)
		}
		for _, b := range c.Backups {
			if !b.Sound {
				t.Line("backup %s is damaged", b.ID)
			}
		}
	}
	if v.Locked {
		t.Line("Without --identity only the stored bytes were checked, not what they hold.")
	}
	if v.Sound {
		t.Line("Nothing is wrong.")
	}
}

func renderDamage(t *cli.Text, d repo.Damage) {
	part := ""
	if d.Part != "" {
		part = ", " + d.Part
	}
	t.Line("damaged: %s%s: %s", d.Object, part, d.Reason)
	for _, f := range d.Files {
		blocks := fmt.Sprintf("block %d", f.Block)
		if f.Count > 1 {
			blocks = fmt.Sprintf("blocks %d to %d", f.Block, f.Block+f.Count-1)
		}
		t.Line("    %s, %s, in backup %s", f.Path, blocks, f.Backup)
	}
}

// Examples are printed with --help.
func (verifyCmd) Examples() string {
	return `dbbackup verify --repo /srv/backup                      # is everything there?
dbbackup verify --repo /srv/backup --sample 5            # every night, a part of it
dbbackup verify --repo /srv/backup --deep latest         # all of one backup
dbbackup verify --repo /srv/backup --deep --identity key.txt`
}
