package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/postgres"
	"tidemark/pkg/volume"
)

// autoConf is the file that ALTER SYSTEM writes. It is read last, so that what
// stands there wins over postgresql.conf.
const autoConf = "postgresql.auto.conf"

// Setting is a parameter and its value; Reset removes it from the file.
type Setting struct {
	Name  string
	Value string
	Reset bool
}

// recoverySettings would stop a standby's recovery somewhere. A data directory
// that was once restored to a point in time may still hold them.
var recoverySettings = []string{"recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid",
	"recovery_target_timeline", "recovery_target_inclusive", "recovery_target_action"}

// standbySettings are the parameters that make a node a standby of a primary.
func standbySettings(conninfo, slot string) []Setting {
	out := []Setting{{Name: "primary_conninfo", Value: conninfo}, {Name: "primary_slot_name", Value: slot}}
	for _, name := range recoverySettings {
		out = append(out, Setting{Name: name, Reset: true})
	}
	return out
}

// alterSystem writes settings on a running node and makes the server read
// them. It needs no restart: primary_conninfo and primary_slot_name are
// reloaded from 13 on.
func alterSystem(ctx context.Context, conn *pgx.Conn, settings []Setting) error {
	for _, s := range settings {
		sql := fmt.Sprintf("ALTER SYSTEM SET %s = %s", s.Name, postgres.QuoteLiteral(s.Value))
		if s.Reset {
			sql = "ALTER SYSTEM RESET " + s.Name
		}
		if err := postgres.Exec(ctx, conn, sql); err != nil {
			return err
		}
	}
	return postgres.Exec(ctx, conn, "SELECT pg_reload_conf()")
}

// editAutoConf does the same to a stopped node. The file is replaced in one
// rename and keeps its mode and every line that is not about the settings.
func editAutoConf(fsys volume.FS, dir string, settings []Setting) error {
	path := filepath.Join(dir, autoConf)
	old, err := volume.ReadFile(fsys, path, 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	perm := fs.FileMode(0o600)
	if st, err := fsys.Stat(path); err == nil {
		perm = st.Mode().Perm()
	}
	return volume.WriteFile(fsys, path, rewriteConf(old, settings), perm)
}

// rewriteConf drops every line that sets one of the parameters and appends
// those that have a value.
func rewriteConf(old []byte, settings []Setting) []byte {
	ours := map[string]bool{}
	for _, s := range settings {
		ours[strings.ToLower(s.Name)] = true
	}
	var out strings.Builder
	for line := range strings.Lines(string(old)) {
		if ours[parameterOf(line)] {
			continue
		}
		out.WriteString(strings.TrimRight(line, "\r\n"))
		out.WriteByte('\n')
	}
	for _, s := range settings {
		if !s.Reset {
			fmt.Fprintf(&out, "%s = %s\n", s.Name, postgres.QuoteGUC(s.Value))
		}
	}
	return []byte(out.String())
}

// parameterOf returns the lower-cased parameter that a line sets, empty for a
// comment. The "=" is optional in the server's grammar.
func parameterOf(line string) string {
	line = strings.TrimSpace(line)
	end := strings.IndexFunc(line, func(r rune) bool {
		return r != '_' && r != '.' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
	if end < 0 {
		end = len(line)
	}
	return strings.ToLower(line[:end])
}

// writeStandbySignal makes a data directory start as a standby, whoever starts it.
func writeStandbySignal(fsys volume.FS, dir string) error {
	path := filepath.Join(dir, "standby.signal")
	if _, err := fsys.Lstat(path); err == nil {
		return nil
	}
	return volume.WriteFile(fsys, path, nil, 0o600)
}

func removeStandbySignal(fsys volume.FS, dir string) error {
	return volume.RemoveDurable(fsys, filepath.Join(dir, "standby.signal"))
}

// upstreamConnInfo returns the primary_conninfo by which a node reaches a
// primary: the way to the primary from its configured connection string, and
// who to be (user, password, certificates, application name) from a
// primary_conninfo that has worked, where there is one.
func upstreamConnInfo(primary Node, worked, application string) (string, error) {
	target, err := postgres.ForStandby(primary.Conninfo)
	if err != nil {
		return "", err
	}
	info := target.With("dbname", "", "application_name", "", "connect_timeout", "")
	if known, err := postgres.ParseConnInfo(worked); err == nil && known["user"] != "" {
		info = known.With("host", target["host"], "hostaddr", target["hostaddr"], "port", target["port"], "dbname", known["dbname"])
	}
	if info["application_name"] == "" || info["application_name"] == "walreceiver" {
		info = info.With("application_name", application)
	}
	return info.String(), nil
}

// SlotName returns the name of the slot that a node uses: letters, digits and
// underscores, at most 63 of them.
func SlotName(node string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(node) {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_' {
			b.WriteRune(r)
		} else {
			b.WriteByte('_')
		}
	}
	name := b.String()
	if len(name) > 63 {
		name = name[:63]
	}
	return name
}
