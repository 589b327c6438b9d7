package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"tidemark/internal/postgres"
	"tidemark/pkg/timeline"
	"tidemark/pkg/wal"
)

// settingsOf are the parameters that checks look at.
var settingsOf = []string{
	"server_version", "port", "data_directory", "config_file", "wal_level", "hot_standby", "archive_mode", "allow_alter_system",
	"max_connections", "max_prepared_transactions", "max_locks_per_transaction", "max_wal_senders", "max_worker_processes",
	"max_replication_slots", "synchronous_standby_names", "recovery_min_apply_delay", "wal_log_hints", "data_checksums",
	"primary_conninfo", "primary_slot_name", "cluster_name", "recovery_target_timeline",
	"recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid",
}

// observeServer asks the server itself.
func (c *Cluster) observeServer(ctx context.Context, f *Facts) error {
	return c.session(ctx, f.Node, func(conn *pgx.Conn) error {
		ctx, cancel := context.WithTimeoutCause(ctx, c.opt.ConnectTimeout, fmt.Errorf("no answer within %s", c.opt.ConnectTimeout))
		defer cancel()
		f.Major = postgres.ServerMajor(conn.PgConn())
		for _, ask := range []func(context.Context, *pgx.Conn) error{f.askIdentity, f.askSettings, f.askPosition, f.askReceiver, f.askSlots, f.askSenders, f.askArchiver} {
			if err := ask(ctx, conn); err != nil {
				return err
			}
		}
		f.DataDirOK = f.sameDirectory()
		c.askTimeline(ctx, f)
		return nil
	})
}

// askTimeline asks a standby for the timeline that it replays. No function
// tells it: pg_control still has the old one until the next restartpoint, and
// without a receiver there is nothing newer in SQL. A walsender knows; where
// the role may not replicate, what SQL says has to do.
func (c *Cluster) askTimeline(ctx context.Context, f *Facts) {
	if f.Role != RoleStandby {
		return
	}
	conn, err := postgres.ConnectReplication(ctx, f.Node.Conninfo)
	if err != nil {
		c.opt.Log.Debug("timeline not asked", "node", f.Name, "error", err)
		return
	}
	defer conn.Close()
	if system, err := conn.IdentifySystem(ctx); err == nil && system.ID == f.SystemID {
		f.Timeline = max(f.Timeline, system.Timeline)
	}
}

func (f *Facts) askIdentity(ctx context.Context, conn *pgx.Conn) error {
	var id int64
	var recovery bool
	err := postgres.Query(ctx, conn, "SELECT system_identifier, pg_is_in_recovery() FROM pg_control_system()", nil, &id, &recovery)
	f.SystemID, f.Role = uint64(id), RolePrimary
	if recovery {
		f.Role = RoleStandby
	}
	return err
}

func (f *Facts) askSettings(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, "SELECT name, setting FROM pg_settings WHERE name = ANY($1) AND setting IS NOT NULL", settingsOf)
	if err != nil {
		return postgres.Explain(err)
	}
	f.Settings = map[string]string{}
	var name, value string
	_, err = pgx.ForEachRow(rows, []any{&name, &value}, func() error {
		f.Settings[name] = value
		return nil
	})
	f.Version, _, _ = strings.Cut(f.Settings["server_version"], " ")
	return postgres.Explain(err)
}

// askPosition reads where the node is. A primary's timeline comes from the
// name of the segment that it writes: after a promotion pg_control shows the
// old one until the next checkpoint.
func (f *Facts) askPosition(ctx context.Context, conn *pgx.Conn) error {
	if f.Role == RolePrimary {
		var lsn, file string
		if err := postgres.Query(ctx, conn, "SELECT lsn::text, pg_walfile_name(lsn) FROM pg_current_wal_lsn() AS lsn", nil, &lsn, &file); err != nil {
			return err
		}
		name, ok := wal.ParseFileName(file)
		if !ok {
			return fmt.Errorf("the server names its WAL segment %q", file)
		}
		f.Timeline = name.Timeline
		return parseLSN(lsn, &f.LSN)
	}
	var receive, replay string
	var tli int64
	var lag *float64
	err := postgres.Query(ctx, conn, `SELECT coalesce(pg_last_wal_receive_lsn(), '0/0')::text, coalesce(pg_last_wal_replay_lsn(), '0/0')::text, pg_is_wal_replay_paused(),
		greatest((SELECT timeline_id FROM pg_control_checkpoint()), (SELECT min_recovery_end_timeline FROM pg_control_recovery()))::bigint,
		extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8`, nil, &receive, &replay, &f.ReplayPaused, &tli, &lag)
	if err != nil {
		return err
	}
	f.Timeline, f.LagSeconds, f.LSN = timeline.ID(tli), lag, 0
	return errors.Join(parseLSN(receive, &f.Receive), parseLSN(replay, &f.Replay))
}

// receiverHidden stands for the state of a receiver that the role may not see.
const receiverHidden = "hidden"

func (f *Facts) askReceiver(ctx context.Context, conn *pgx.Conn) error {
	if f.Role != RoleStandby {
		return nil
	}
	var r Receiver
	var flushed string
	var tli int64
	err := postgres.Query(ctx, conn, `SELECT coalesce(status, ''), coalesce(received_tli, 0)::bigint, coalesce(flushed_lsn, '0/0')::text, coalesce(slot_name, ''), coalesce(sender_host, ''),
		coalesce(sender_port, 0), coalesce(extract(epoch FROM clock_timestamp() - last_msg_receipt_time), 0)::float8 FROM pg_stat_wal_receiver`, nil,
		&r.Status, &tli, &flushed, &r.Slot, &r.Host, &r.Port, &r.SilentSecs)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	if r.Status == "" {
		r.Status = receiverHidden
	}
	r.Timeline = timeline.ID(tli)
	f.Receiver = &r
	// The timeline that WAL arrives on is newer than what pg_control has seen.
	f.Timeline = max(f.Timeline, r.Timeline)
	return parseLSN(flushed, &r.Flushed)
}

func (f *Facts) askSlots(ctx context.Context, conn *pgx.Conn) error {
	now := "pg_current_wal_lsn()"
	if f.Role == RoleStandby {
		now = "greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())"
	}
	synced := "false"
	if f.Major >= 17 {
		synced = "synced"
	}
	rows, err := conn.Query(ctx, `SELECT slot_name::text, slot_type, active, coalesce(active_pid, 0), coalesce(restart_lsn, '0/0')::text, coalesce(wal_status, ''), temporary, `+synced+`,
		coalesce(greatest(pg_wal_lsn_diff(`+now+`, restart_lsn), 0), 0)::bigint FROM pg_replication_slots ORDER BY slot_name`)
	if err != nil {
		return postgres.Explain(err)
	}
	var s Slot
	var lsn string
	_, err = pgx.ForEachRow(rows, []any{&s.Name, &s.Type, &s.Active, &s.PID, &lsn, &s.WALStatus, &s.Temporary, &s.Synced, &s.Retained}, func() error {
		f.Slots = append(f.Slots, s)
		return parseLSN(lsn, &f.Slots[len(f.Slots)-1].Restart)
	})
	return postgres.Explain(err)
}

func (f *Facts) askSenders(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `SELECT pid, coalesce(application_name, ''), coalesce(state, ''), coalesce(sent_lsn, '0/0')::text, coalesce(flush_lsn, '0/0')::text,
		coalesce(replay_lsn, '0/0')::text, coalesce(sync_state, ''), coalesce(extract(epoch FROM replay_lag), 0)::float8 FROM pg_stat_replication ORDER BY pid`)
	if err != nil {
		return postgres.Explain(err)
	}
	var s Sender
	var sent, flush, replay string
	_, err = pgx.ForEachRow(rows, []any{&s.PID, &s.Application, &s.State, &sent, &flush, &replay, &s.Sync, &s.LagSeconds}, func() error {
		err := errors.Join(parseLSN(sent, &s.Sent), parseLSN(flush, &s.Flush), parseLSN(replay, &s.Replay))
		f.Senders = append(f.Senders, s)
		return err
	})
	return postgres.Explain(err)
}

func (f *Facts) askArchiver(ctx context.Context, conn *pgx.Conn) error {
	a := &Archiver{Mode: f.Settings["archive_mode"], Ready: -1}
	if a.Mode == "off" {
		return nil
	}
	err := postgres.Query(ctx, conn, `SELECT coalesce(last_archived_wal, ''), coalesce(last_failed_wal, ''),
		coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false) FROM pg_stat_archiver`, nil, &a.LastWAL, &a.Failed, &a.Failing)
	if err != nil {
		return err
	}
	if f.PID != 0 {
		if ready, err := filepath.Glob(filepath.Join(f.DataDir, "pg_wal", "archive_status", "*.ready")); err == nil {
			a.Ready = len(ready)
		}
	}
	f.Archiver = a
	return nil
}

// sameDirectory makes sure that the server which answers is the one whose data
// directory the configuration names: everything else would act on a stranger.
func (f *Facts) sameDirectory() error {
	shown := f.Settings["data_directory"]
	if f.DataDir == "" || shown == "" || !isThisMachine(f.Node.Host) {
		return nil
	}
	a, errA := os.Stat(f.DataDir)
	b, errB := os.Stat(shown)
	if errA != nil || errB != nil || !os.SameFile(a, b) {
		return fmt.Errorf("the server that answers keeps its data in %s, not in %s", shown, f.DataDir)
	}
	return nil
}

// number reads a setting as a number; 0 where it is not known.
func (f *Facts) number(setting string) int {
	n, err := strconv.Atoi(f.Settings[setting])
	if err != nil {
		return 0
	}
	return n
}

func parseLSN(text string, into *wal.LSN) error {
	lsn, err := wal.ParseLSN(text)
	*into = lsn
	return err
}
