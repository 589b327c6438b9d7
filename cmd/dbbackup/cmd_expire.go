package main

import (
	"context"
	"strings"

	"tidemark/internal/backup"
	"tidemark/internal/cli"
)

type expireCmd struct {
	cli.ReposFlag
	cli.DryRunFlag
	systemFlag
	KeepLast    int    `name:"keep-last" placeholder:"N" config:"retention.keep_last" help:"Keep the newest N backups."`
	KeepWithin  string `name:"keep-within" placeholder:"SPAN" config:"retention.keep_within" help:"Keep those younger than SPAN: 36h, 14d, 8w, 6m, 7y."`
	KeepDaily   int    `name:"keep-daily" placeholder:"N" config:"retention.keep_daily" help:"Keep the last one of each of N days that have one."`
	KeepWeekly  int    `name:"keep-weekly" placeholder:"N" config:"retention.keep_weekly" help:"The same by weeks."`
	KeepMonthly int    `name:"keep-monthly" placeholder:"N" config:"retention.keep_monthly" help:"The same by months."`
	KeepYearly  int    `name:"keep-yearly" placeholder:"N" config:"retention.keep_yearly" help:"The same by years."`
	KeepWAL     string `name:"keep-wal" placeholder:"SPAN" config:"retention.keep_wal" help:"How far back any moment stays recoverable; by default to the oldest kept backup."`
}

// Run expires backups.
func (c *expireCmd) Run(ctx context.Context, e *cli.Env) error {
	keep := backup.Retention{Last: c.KeepLast, Daily: c.KeepDaily, Weekly: c.KeepWeekly, Monthly: c.KeepMonthly, Yearly: c.KeepYearly}
	var err error
	if keep.Within, err = backup.ParseAge(c.KeepWithin); err != nil {
		return err
	}
	if keep.WAL, err = backup.ParseAge(c.KeepWAL); err != nil {
		return err
	}
	return inTurn(e, c.Repos, func(location string) (*backup.ExpireResult, error) {
		r, err := open(ctx, location, cli.IdentityFlag{})
		if err != nil {
			return nil, err
		}
		return backup.Expire(ctx, r, backup.ExpireOptions{Keep: keep, SystemID: c.SystemID, DryRun: c.DryRun, Progress: e.Progress()})
	}, renderExpire)
}

func renderExpire(t *cli.Text, r *backup.ExpireResult) {
	verb := "removed"
	if r.DryRun {
		t.Line("Nothing is changed. The expiry would do this:")
		verb = "would go"
	}
	for _, c := range r.Clusters {
		id, _ := c.SystemID.MarshalText() // never fails
		t.Line("Cluster %s in %s", id, r.Repository)
		tab := cli.NewTable("backup", "began", "", "label")
		for _, b := range c.Removed {
			tab.Row(b.ID, cli.Time(b.Began), verb, b.Label)
		}
		for _, b := range c.Kept {
			tab.Row(b.ID, cli.Time(b.Began), "kept: "+strings.Join(b.Reasons, ", "), b.Label)
		}
		t.Table(tab)
		t.KV("packs", cli.Count(c.Packs)+" "+verb+", "+cli.Bytes(c.PackBytes), "WAL", cli.Plural(c.WALFiles, "file", "files")+" "+verb+", "+cli.Bytes(c.WALBytes),
			"WAL from", c.WALFrom)
		if len(c.Unfinished) > 0 {
			t.Line("what interrupted backups had left, %s: %s", verb, strings.Join(c.Unfinished, ", "))
		}
		if len(c.WaitsFor) > 0 {
			t.Line("packs stay while backup %s runs; the next expire removes them", strings.Join(c.WaitsFor, ", "))
		}
		for _, n := range c.Notes {
			t.Line("%s", n)
		}
	}
}

// Examples are printed with --help.
func (expireCmd) Examples() string {
	return `dbbackup expire --repo /srv/backup --keep-within 14d --keep-weekly 8 --dry-run
dbbackup expire --repo /srv/backup --keep-last 7 --keep-monthly 12 --keep-wal 14d
dbbackup expire                                          # by [retention] of tidemark.toml`
}
