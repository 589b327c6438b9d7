package main

import (
	"context"
	"fmt"

	"tidemark/internal/cli"
	"tidemark/internal/replication"
)

type statusCmd struct{ localFlags }

func (statusCmd) Examples() string {
	return `dbrepl status -D /srv/standby
dbrepl status -d 'host=db2 user=postgres' --json     # another host, without its data directory`
}

func (c *statusCmd) Run(ctx context.Context, e *cli.Env) error {
	if c.PGData != "" && c.DSN == "" {
		if err := c.dataDir(); err != nil {
			return err
		}
	}
	o := c.options(e)
	if c.DSN != "" {
		o.Dir = ""
	}
	st, err := replication.GetStatus(ctx, o)
	if err != nil {
		return err
	}
	return e.Render(st, func(t *cli.Text) { renderStatus(t, st) })
}

func renderStatus(t *cli.Text, st *replication.Status) {
	if u := st.Seed; u != nil {
		t.Line("%s holds an unfinished %s: %s of %s are durable. Run it again, it goes on:", st.Dir, u.Operation, cli.Bytes(u.Done), cli.Bytes(u.Total))
		t.Line("    %s", u.Command)
		return
	}
	running := "running"
	if !st.Running {
		running = "not running, " + st.State
	}
	head := []any{"role", st.Role + ", " + running, "timeline", st.Timeline.String()}
	if st.Role == replication.RolePrimary {
		renderPrimary(t, st, head)
		return
	}
	if !st.Running {
		t.KV(append(head, "consistent from", st.ReplayLSN.String(), "receiving", receivingText(st))...)
		return
	}
	primary := st.PrimaryLSN.String() + " on timeline " + fmt.Sprint(st.PrimaryTLI)
	if st.PrimaryNote != "" {
		primary = st.PrimaryNote
	}
	replay := st.ReplayLSN.String()
	if st.ReplayPaused {
		replay += ", paused"
	}
	t.KV(append(head, "receiving", receivingText(st), "upstream", st.Upstream, "WAL comes from", st.Source, "received", st.ReceiveLSN.String(), "replayed", replay,
		"primary is at", primary, "lag", lagText(st), "slot", slotText(st.Slot))...)
}

func receivingText(st *replication.Status) string {
	switch {
	case st.Receiving:
		return "streaming"
	case st.ReceivingOff:
		return "off (dbrepl start turns it on)"
	}
	return "no"
}

func lagText(st *replication.Status) string {
	if st.LagBytes == nil {
		return ""
	}
	text := cli.Bytes(*st.LagBytes)
	if st.LagSeconds != nil {
		text += fmt.Sprintf(", %.1f s", *st.LagSeconds)
	}
	return text
}

func slotText(s *replication.SlotStatus) string {
	switch {
	case s == nil:
		return "none"
	case !s.Exists:
		return s.Name + ": not seen at the upstream"
	}
	text := fmt.Sprintf("%s, holds back %s from %s on", s.Name, cli.Bytes(s.RetainedBytes), s.RestartLSN)
	if s.WALStatus != "" && s.WALStatus != "reserved" {
		text += ", " + s.WALStatus
	}
	return text
}

func renderPrimary(t *cli.Text, st *replication.Status, head []any) {
	t.KV(append(head, "position", st.WriteLSN.String())...)
	if !st.Running {
		return
	}
	if len(st.Standbys) == 0 {
		t.Line("No standby receives from it.")
		return
	}
	tab := cli.NewTable("standby", "from", "state", "sync", ">replayed", ">lag", "slot")
	for _, s := range st.Standbys {
		tab.Row(s.Name, s.Address, s.State, s.Sync, s.ReplayLSN.String(), fmt.Sprintf("%s, %.1f s", cli.Bytes(s.LagBytes), s.LagSeconds), s.Slot)
	}
	t.Table(tab)
}
