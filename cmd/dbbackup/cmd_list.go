package main

import (
	"context"
	"time"

	"tidemark/internal/backup"
	"tidemark/internal/cli"
	"tidemark/internal/repo"
)

type listCmd struct {
	cli.ReposFlag
	SystemID uint64 `name:"system-id" placeholder:"ID" help:"Only the cluster with this system identifier."`
}

// Run lists the repository.
func (c *listCmd) Run(ctx context.Context, e *cli.Env) error {
	return inTurn(e, c.Repos, func(location string) (*backup.Listing, error) {
		r, err := repo.Open(ctx, location)
		if err != nil {
			return nil, err
		}
		return backup.List(ctx, r, c.SystemID)
	}, renderListing)
}

func renderListing(t *cli.Text, l *backup.Listing) {
	if len(l.Clusters) == 0 {
		t.Line("The repository %s is empty.", l.Repository)
	}
	for i, c := range l.Clusters {
		if i > 0 {
			t.Blank()
		}
		id, _ := c.SystemID.MarshalText() // never fails
		t.Line("Cluster %s in %s", id, l.Repository)
		renderCluster(t, &c)
	}
}

func renderCluster(t *cli.Text, c *backup.ClusterListing) {
	if len(c.Backups) == 0 {
		t.Line("no complete backup")
	} else {
		tab := cli.NewTable("backup", "type", "began", ">took", ">cluster", ">stored", "start", "stop", ">timeline", "WAL", "notes")
		for _, b := range c.Backups {
			tab.Row(b.ID, b.Type, cli.Time(b.Began), cli.Duration(time.Duration(b.Took*float64(time.Second))), cli.Bytes(b.ClusterBytes),
				cli.Bytes(b.StoredBytes), b.Start.LSN, b.Stop.LSN, b.Start.Timeline, walState(b), notes(b))
		}
		t.Table(tab)
	}
	for _, d := range c.Damaged {
		t.Line("damaged: %s: %s", d.ID, d.Error)
	}
	for _, s := range c.Started {
		state := "running or interrupted"
		if s.Interrupted {
			state = "interrupted; the next create removes what it left"
		}
		t.Line("not complete: %s, begun on %s by process %d: %s", s.ID, s.Host, s.PID, state)
	}
}

func walState(b backup.BackupListing) string {
	if len(b.WALMissing) == 0 {
		return "present"
	}
	return "lacks " + b.WALMissing[0]
}

func notes(b backup.BackupListing) string {
	out := b.Label
	if b.FindingCount > 0 {
		if out != "" {
			out += "; "
		}
		out += cli.Plural(b.FindingCount, "damaged block", "damaged blocks")
	}
	return out
}

// Examples are printed with --help.
func (listCmd) Examples() string {
	return `dbbackup list --repo /srv/backup
dbbackup list --repo /srv/backup --json | jq '.clusters[].backups[-1].id'`
}
