package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"tidemark/internal/cli"
	"tidemark/internal/cluster"
	"tidemark/internal/exit"
)

type statusCmd struct {
	cli.DSNFlag
	Dir    string `name:"pgdata" short:"D" placeholder:"DIR" type:"path" help:"Show this data directory's node instead of those in tidemark.toml."`
	MaxLag int64  `placeholder:"BYTES" help:"Lag over this is a problem; default 16 MiB, -1 for no limit."`
}

// Examples are printed with --help.
func (statusCmd) Examples() string {
	return `dbctl status                                 # the nodes of ./tidemark.toml or /etc/tidemark.toml
dbctl status --config lab/tidemark.toml --json
dbctl status -D /srv/alpha                   # one node by its data directory, running or not
dbctl status -d 'host=db1 user=postgres'     # one node by its connection`
}

// Run shows the nodes; exit 3 says that something is wrong with one.
func (s *statusCmd) Run(ctx context.Context, e *cli.Env) error {
	o := options(e)
	if s.Dir != "" || s.DSN != "" {
		o.Nodes = []cluster.Node{{Name: "node", Conninfo: s.DSN, DataDir: s.Dir, Bindir: e.Config().Bindir}}
	}
	o.MaxLag = s.MaxLag
	c, err := open(e, "", o)
	if err != nil {
		return err
	}
	report, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if err := e.Render(report, func(t *cli.Text) { renderStatus(t, report) }); err != nil {
		return err
	}
	if n := len(report.Problems); n > 0 {
		return exit.New(exit.Problem, "", "%s found", cli.Plural(n, "problem", "problems"))
	}
	return nil
}

func renderStatus(t *cli.Text, r *cluster.StatusReport) {
	head := headOf(r)
	if r.Cluster != "" {
		head = "Cluster " + r.Cluster + ": " + head
	}
	if r.SystemID != 0 {
		head += fmt.Sprintf(" (system identifier %d)", r.SystemID)
	}
	t.Line("%s", head)
	t.Blank()
	t.Table(nodeTable(r.Nodes))
	if slots := slotTable(r.Nodes); slots != nil {
		t.Blank()
		t.Table(slots)
	}
	if len(r.Problems) > 0 {
		t.Blank()
		for _, p := range r.Problems {
			t.Line("problem: %s", p)
		}
	}
}

func headOf(r *cluster.StatusReport) string {
	if r.Primary != "" {
		return r.Primary + " is the primary"
	}
	running := 0
	for _, f := range r.Nodes {
		if f.Role == cluster.RolePrimary && f.State == cluster.StateRunning {
			running++
		}
	}
	if running > 1 {
		return fmt.Sprintf("%d primaries run", running)
	}
	return "no primary runs"
}

func nodeTable(nodes []*cluster.Facts) *cli.Table {
	tab := cli.NewTable("node", "role", "state", ">timeline", ">position", ">lag", ">lag time", "upstream", "version")
	for _, f := range nodes {
		tab.Row(f.Name, f.Role, stateText(f), number(f.Timeline), lsn(f.LSN), lagBytes(f), lagTime(f), f.Upstream, orMajor(f))
	}
	return tab
}

func stateText(f *cluster.Facts) string {
	switch {
	case f.State != cluster.StateRunning || f.Role != cluster.RoleStandby:
		return string(f.State)
	case f.ReplayPaused:
		return "replay paused"
	case f.Receiver != nil && f.Receiver.Status == "streaming":
		return "streaming"
	}
	return "running"
}

func lagBytes(f *cluster.Facts) string {
	if f.LagBytes == nil {
		return ""
	}
	return cli.Bytes(*f.LagBytes)
}

func lagTime(f *cluster.Facts) string {
	if f.LagBytes == nil || f.LagSeconds == nil {
		return ""
	}
	return cli.Duration(time.Duration(*f.LagSeconds * float64(time.Second)))
}

func orMajor(f *cluster.Facts) string {
	if f.Version != "" {
		return f.Version
	}
	return number(f.Major)
}

func number[T ~int | ~uint32](n T) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func lsn(l interface{ String() string }) string {
	if s := l.String(); s != "0/0" {
		return s
	}
	return ""
}

func slotTable(nodes []*cluster.Facts) *cli.Table {
	tab, any := cli.NewTable("slot", "on", "kind", "active", ">holds", "wal"), false
	for _, f := range nodes {
		for _, s := range f.Slots {
			active := "no"
			if s.Active {
				active = "yes"
			}
			tab.Row(s.Name, f.Name, s.Type, active, cli.Bytes(s.Retained), strings.ToLower(s.WALStatus))
			any = true
		}
	}
	if !any {
		return nil
	}
	return tab
}
