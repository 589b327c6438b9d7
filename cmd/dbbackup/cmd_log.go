package main

import (
	"context"
	"strings"

	"tidemark/internal/backup"
	"tidemark/internal/cli"
	"tidemark/internal/exit"
	"tidemark/internal/repo"
)

type logCmd struct {
	cli.ReposFlag
	SystemID uint64 `name:"system-id" placeholder:"ID" help:"The cluster with this system identifier, where the repository holds several."`
}

// Run shows the archive's WAL.
func (c *logCmd) Run(ctx context.Context, e *cli.Env) error {
	return inTurn(e, c.Repos, func(location string) (*backup.WALLog, error) { return c.log(ctx, location) }, renderLog)
}

// log looks at the archive of one repository.
func (c *logCmd) log(ctx context.Context, location string) (*backup.WALLog, error) {
	r, err := repo.Open(ctx, location)
	if err != nil {
		return nil, err
	}
	var cluster *repo.Cluster
	if c.SystemID != 0 {
		cluster = r.Cluster(c.SystemID)
	} else if cluster, err = r.OnlyCluster(ctx); err != nil {
		return nil, err
	}
	l, err := backup.Log(ctx, cluster)
	if err != nil || l.Costly == 0 {
		return l, err
	}
	return l, exit.New(exit.Problem, "take a backup now, so that recovery is possible from here on: dbbackup create --repo "+location,
		"%s of the WAL archive %s recovery", cli.Plural(l.Costly, "gap", "gaps"), map[bool]string{true: "costs", false: "cost"}[l.Costly == 1])
}

func renderLog(t *cli.Text, l *backup.WALLog) {
	id, _ := l.SystemID.MarshalText() // never fails
	t.Line("WAL of cluster %s in %s, segments of %s", id, l.Repository, cli.Bytes(l.SegmentSize))
	if len(l.Timelines) == 0 {
		t.Line("there is none")
		return
	}
	tab := cli.NewTable(">timeline", "from", "to", "first segment", "last segment", ">segments", "")
	for _, tl := range l.Timelines {
		for i, r := range tl.Runs {
			note := ""
			if i == 0 && tl.Parent != 0 {
				note = "left timeline " + tl.Parent.String() + " at " + tl.Switch.String()
			}
			tab.Row(tl.Timeline, r.Begin, r.End, r.First, r.Last, r.Segments, note)
		}
	}
	t.Table(tab)
	gaps := 0
	for _, tl := range l.Timelines {
		for _, g := range tl.Gaps {
			gaps++
			renderGap(t, tl.Timeline.String(), &g)
		}
	}
	if len(l.Unlinked) > 0 {
		t.Blank()
		t.Line("The history files of timelines %s are missing: a recovery cannot go over to them.", strings.Join(l.Unlinked, ", "))
	}
	if gaps == 0 {
		t.Blank()
		t.Line("There is no gap.")
	}
}

func renderGap(t *cli.Text, timeline string, g *backup.WALGap) {
	t.Blank()
	t.Line("Gap on timeline %s: %s, %s to %s", timeline, cli.Plural(g.Segments, "segment", "segments"), g.First, g.Last)
	lost := "nothing: no backup leads there"
	if w := g.Lost; w != nil {
		lost = "recovery to a point from " + w.From.String() + " to " + w.To.String()
		if w.After != nil {
			lost += ", after " + cli.Time(*w.After)
		}
		if w.Recovered != nil {
			lost += " until " + cli.Time(*w.Recovered) + " (backup " + w.Next + ")"
		}
	}
	t.KV("cause", g.Cause, "costs", lost, "cannot be restored", strings.Join(g.Broken, ", "))
}

// Examples are printed with --help.
func (logCmd) Examples() string {
	return `dbbackup log --repo /srv/backup              # exit 3: a gap costs recovery
dbbackup log --repo /srv/backup --json | jq '.timelines[].gaps[]'`
}
