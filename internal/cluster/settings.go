package cluster

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/postgres"
	"tidemark/pkg/volume"
)

// recoverySettings would stop a standby's recovery somewhere. A data directory
// that was once restored to a point in time may still hold them.
var recoverySettings = []string{"recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid", "recovery_target_timeline"}

// alterSystem writes settings on a running node and makes the server read
// them. It needs no restart: primary_conninfo and primary_slot_name are
// reloaded from 13 on.
func alterSystem(ctx context.Context, conn *pgx.Conn, settings []postgres.Setting) error {
	for _, s := range settings {
		sql := fmt.Sprintf("ALTER SYSTEM SET %s = %s", s.Name, postgres.QuoteLiteral(s.Value))
		if s.Reset {
			sql = "ALTER SYSTEM RESET " + s.Name
		}
		err := postgres.Exec(ctx, conn, sql)
		if s.Reset && postgres.SQLState(err) == "42704" {
			continue // a parameter of another major version
		}
		if err != nil {
			return err
		}
	}
	return postgres.Exec(ctx, conn, "SELECT pg_reload_conf()")
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
