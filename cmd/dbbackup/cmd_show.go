package main

import (
	"context"

	"tidemark/internal/backup"
	"tidemark/internal/cli"
)

type showCmd struct {
	cli.ReposFlag
	systemFlag
	ID string `arg:"" name:"backup" default:"latest" help:"Identifier of the backup; the newest by default."`
}

// Run describes the backup.
func (c *showCmd) Run(ctx context.Context, e *cli.Env) error {
	return inTurn(e, c.Repos, func(location string) (*backup.ShowResult, error) {
		r, err := openToRead(ctx, location, cli.IdentityFlag{})
		if err != nil {
			return nil, err
		}
		cluster, err := clusterOf(ctx, r, c.SystemID)
		if err != nil {
			return nil, err
		}
		return backup.Show(ctx, cluster, c.ID)
	}, func(t *cli.Text, s *backup.ShowResult) {
		if len(c.Repos) > 1 {
			t.Line("In %s:", s.Repository)
		}
		renderShow(t, s)
	})
}

func renderShow(t *cli.Text, s *backup.ShowResult) {
	t.Line("Backup %s (%s)", s.ID, s.Type)
	wal := cli.Plural(s.WALNeeded, "file", "files") + ", all there"
	if n := len(s.WALMissing); n > 0 {
		wal = cli.Plural(s.WALNeeded, "file", "files") + ", of which " + cli.Count(n) + " missing: " + s.WALMissing[0]
	}
	encrypted := ""
	if s.Encryption != nil {
		encrypted = s.Encryption.Scheme + " under vault key " + s.Encryption.Epoch
	}
	pin, expires := "", ""
	if s.Pin != nil {
		pin = "since " + cli.Time(s.Pin.Pinned)
		if s.Pin.Until != nil {
			pin += ", until " + cli.Time(*s.Pin.Until)
		}
		if s.Pin.Reason != "" {
			pin += ": " + s.Pin.Reason
		}
	}
	if s.Expires != nil {
		expires = cli.Time(*s.Expires)
	}
	findings := ""
	if s.FindingCount > 0 {
		findings = cli.Plural(s.FindingCount, "damaged block", "damaged blocks") + " of the cluster"
	}
	t.KV("label", s.Label, "server", s.Server+", "+s.Source.Role+" on "+s.Source.Host, "began", cli.Time(s.Began), "ended", cli.Time(s.Finished),
		"cluster", cli.Bytes(s.ClusterBytes)+" in "+cli.Plural(s.Files, "file", "files"),
		"stored", cli.Bytes(s.StoredBytes)+" for "+cli.Bytes(s.NewBytes),
		"needs", cli.Plural(s.Packs, "pack", "packs")+" of "+cli.Bytes(s.PackBytes),
		"consistent", s.Start.LSN.String()+" to "+s.Stop.String(), "WAL", wal,
		"encrypted", encrypted, "pinned", pin, "expires", expires, "findings", findings)
	if len(s.Chain) > 1 {
		t.Blank()
		tab := cli.NewTable("packs stored by", ">packs", ">size", "note")
		for _, l := range s.Chain {
			note := ""
			if l.Deleted {
				note = "deleted; its packs stay"
			}
			tab.Row(l.Backup, l.Packs, cli.Bytes(l.Bytes), note)
		}
		t.Table(tab)
	}
	t.Blank()
	tab := cli.NewTable(">database", "name", ">files", ">size")
	for _, d := range s.Databases {
		tab.Row(d.OID, d.Name, cli.Count(d.Files), cli.Bytes(d.Bytes))
	}
	t.Table(tab)
	for _, sp := range s.Tablespaces {
		t.Line("tablespace %d %s at %s", sp.OID, sp.Name, sp.Path)
	}
}

// Examples are printed with --help.
func (showCmd) Examples() string {
	return `dbbackup show --repo /srv/backup
dbbackup show --repo /srv/backup 20261121T235940Z-3411 --json | jq .wal_missing`
}
