package replication

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/internal/progress"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// sourceFacts are what a seed must know of its source.
type sourceFacts struct {
	system  postgres.System
	control *volume.Control
	standby bool
	dirMode fs.FileMode
	config  string // postgresql.conf, where the role may know it
	data    string // data_directory, likewise
}

// examine asks the source who it is, over both kinds of session: so it is
// known before anything is made that both work.
func (s *seeder) examine(ctx context.Context) (*sourceFacts, error) {
	repl, err := postgres.ConnectReplication(ctx, s.ConnInfo)
	if err != nil {
		return nil, err
	}
	defer repl.Close()
	f := &sourceFacts{}
	if f.system, err = repl.IdentifySystem(ctx); err != nil {
		return nil, err
	}
	conn, err := postgres.Connect(ctx, s.ConnInfo)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var mode string
	err = postgres.Query(ctx, conn, `SELECT pg_is_in_recovery(), pg_postmaster_start_time(), current_setting('data_directory_mode'),
		coalesce((SELECT setting FROM pg_settings WHERE name = 'config_file'), ''), coalesce((SELECT setting FROM pg_settings WHERE name = 'data_directory'), '')`,
		nil, &f.standby, &s.booted, &mode, &f.config, &f.data)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(mode, 8, 32)
	if err != nil {
		return nil, fmt.Errorf("data_directory_mode %q of the source: %w", mode, err)
	}
	f.dirMode = fs.FileMode(n)
	if err := checkPrivileges(ctx, conn); err != nil {
		return nil, err
	}
	f.control, err = postgres.ReadControl(ctx, s.src)
	if err != nil {
		return nil, err
	}
	if f.control.SystemIdentifier != f.system.ID {
		return nil, exit.New(exit.Refused, "name one server (-d host=... port=...)", "the connection string reaches servers of different clusters")
	}
	return f, nil
}

// fileFunctions are what the role must be allowed to call.
var fileFunctions = []string{"pg_ls_dir(text,boolean,boolean)", "pg_stat_file(text,boolean)", "pg_read_binary_file(text,bigint,bigint,boolean)"}

func checkPrivileges(ctx context.Context, conn *pgx.Conn) error {
	var missing []string
	var user string
	for _, f := range fileFunctions {
		var may bool
		if err := postgres.Query(ctx, conn, "SELECT has_function_privilege('pg_catalog.'||$1, 'EXECUTE'), current_user", []any{f}, &may, &user); err != nil {
			return err
		}
		if !may {
			missing = append(missing, fmt.Sprintf("GRANT EXECUTE ON FUNCTION pg_catalog.%s TO %s;", f, postgres.QuoteIdent(user)))
		}
	}
	if missing == nil {
		return nil
	}
	return exit.Wrap(postgres.ErrPrivilege, exit.Failed, "as a superuser in this database:\n"+strings.Join(missing, "\n"), "role %q may not read the server's files", user)
}

// checkSource refuses sources whose WAL would not make a copy consistent.
func (s *seeder) checkSource(f *sourceFacts) error {
	if f.control.WalLevel == wal.WALLevelMinimal {
		return exit.New(exit.Refused, "set wal_level = replica at the source and restart it", "the source runs with wal_level = minimal: its WAL cannot feed a standby")
	}
	if !f.control.CheckPointCopy.FullPageWrites {
		return exit.New(exit.Refused, "set full_page_writes = on at the primary, reload it, and run CHECKPOINT there",
			"full_page_writes is off (or was at the last checkpoint): blocks copied while they are written could not be repaired")
	}
	if f.config != "" && f.data != "" && !strings.HasPrefix(f.config, f.data+"/") {
		s.Progress.Note("the source's configuration lies outside its data directory (%s) and is not copied: bring postgresql.conf and pg_hba.conf along", f.config)
	}
	return nil
}

// DefaultSlot is the name of the slot of a standby in dir on this machine. It
// differs for directories of the same name on two machines: a slot belongs to
// one standby.
func DefaultSlot(dir string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(filepath.Base(dir)) {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_' {
			b.WriteRune(r)
		} else {
			b.WriteByte('_')
		}
	}
	base := b.String()
	if len(base) > 40 {
		base = base[:40]
	}
	host, _ := os.Hostname()
	h := fnv.New32a()
	h.Write([]byte(host + "\x00" + dir))
	return fmt.Sprintf("tidemark_%s_%08x", base, h.Sum32())
}

// slotState is a row of pg_replication_slots.
type slotState struct {
	exists   bool
	active   bool
	restart  wal.LSN // 0 where it reserves nothing
	status   string  // wal_status: reserved, extended, unreserved, lost
	safe     pgtype.Int8
	physical bool
}

func readSlot(ctx context.Context, conn *pgx.Conn, name string) (slotState, error) {
	var st slotState
	var restart, status pgtype.Text
	err := conn.QueryRow(ctx, `SELECT active, restart_lsn::text, wal_status, safe_wal_size, slot_type = 'physical' FROM pg_replication_slots WHERE slot_name = $1`, name).
		Scan(&st.active, &restart, &status, &st.safe, &st.physical)
	if errors.Is(err, pgx.ErrNoRows) {
		return st, nil
	}
	if err != nil {
		return st, postgres.Explain(err)
	}
	st.exists, st.status = true, status.String
	if restart.Valid {
		st.restart, err = wal.ParseLSN(restart.String)
	}
	return st, err
}

// ensureSlot sees to it that the slot is there and holds WAL back.
func (s *seeder) ensureSlot(ctx context.Context, f *sourceFacts) error {
	conn, err := postgres.Connect(ctx, s.ConnInfo)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	st, err := s.settledSlot(ctx, conn)
	if err != nil {
		return err
	}
	switch {
	case st.exists && !st.physical:
		return exit.New(exit.Refused, "name another slot with --slot", "slot %q is a logical one", s.meta.Slot)
	case st.exists && st.active && s.pending == nil:
		return exit.New(exit.Refused, "name another slot with --slot", "slot %q is in use by another receiver", s.meta.Slot)
	case st.exists && st.status == "lost":
		if err := postgres.Exec(ctx, conn, "SELECT pg_drop_replication_slot($1)", s.meta.Slot); err != nil {
			return err
		}
		if s.pending != nil {
			return &startAgain{fmt.Sprintf("the source gave up slot %q because it held back too much WAL (max_slot_wal_keep_size)", s.meta.Slot)}
		}
	case st.exists && st.restart != 0:
		if s.pending == nil {
			s.Progress.Note("using the slot %q that is there already", s.meta.Slot)
		}
		return nil
	case st.exists:
		// It reserves nothing yet, and cannot be told to without streaming.
		if err := postgres.Exec(ctx, conn, "SELECT pg_drop_replication_slot($1)", s.meta.Slot); err != nil {
			return err
		}
	}
	repl, err := postgres.ConnectReplication(ctx, s.ConnInfo)
	if err != nil {
		return err
	}
	defer repl.Close()
	if err := repl.CreateSlot(ctx, s.meta.Slot, postgres.SlotOptions{Reserve: true}); err != nil {
		return err
	}
	s.slotMade = true
	return nil
}

// settledSlot reads the slot's state. One in use gets a moment: a receiver that
// was ended just now holds it until the source notices.
func (s *seeder) settledSlot(ctx context.Context, conn *pgx.Conn) (slotState, error) {
	for deadline := time.Now().Add(5 * time.Second); ; {
		st, err := readSlot(ctx, conn, s.meta.Slot)
		if err != nil || !st.active || s.pending != nil || time.Now().After(deadline) {
			return st, err
		}
		if !pause(ctx, 50*time.Millisecond) {
			return st, ctx.Err()
		}
	}
}

// dropOwnSlot removes the slot of an attempt that came to nothing.
func (s *seeder) dropOwnSlot() error {
	if !s.slotMade || s.DryRun {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	repl, err := postgres.ConnectReplication(ctx, s.ConnInfo)
	if err != nil {
		return err
	}
	defer repl.Close()
	return repl.DropSlot(ctx, s.meta.Slot, true)
}

// startPoint makes the slot and finds a completed checkpoint whose redo point
// the slot covers.
func (s *seeder) startPoint(ctx context.Context, f *sourceFacts) (*volume.Control, error) {
	if err := s.ensureSlot(ctx, f); err != nil {
		return nil, err
	}
	conn, err := postgres.Connect(ctx, s.ConnInfo)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	st, err := readSlot(ctx, conn, s.meta.Slot)
	if err != nil {
		return nil, err
	}
	if st.restart == 0 {
		return nil, fmt.Errorf("slot %q of the source reserves no WAL", s.meta.Slot)
	}
	s.Progress.Phase("waiting for a checkpoint at the source", 0, progress.Items)
	if _, err := conn.Exec(ctx, "CHECKPOINT"); err != nil {
		if err := postgres.Explain(err); !errors.Is(err, postgres.ErrPrivilege) {
			return nil, err
		}
		s.Progress.Note("the role may not run CHECKPOINT: beginning with the last completed one")
	}
	return s.awaitCheckpoint(ctx, st.restart)
}

// awaitCheckpoint waits until the last completed checkpoint begins at or after lsn.
func (s *seeder) awaitCheckpoint(ctx context.Context, lsn wal.LSN) (*volume.Control, error) {
	noted := time.Now().Add(5 * time.Second)
	for {
		control, err := postgres.ReadControl(ctx, s.src)
		if err != nil {
			return nil, err
		}
		if control.CheckPointCopy.Redo >= lsn {
			return control, nil
		}
		if time.Now().After(noted) {
			s.Progress.Note("waiting for the source's next checkpoint (the last one begins at %s, %s or later is needed)", control.CheckPointCopy.Redo, lsn)
			noted = time.Now().Add(5 * time.Minute)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// bootTime tells when the source's server was started.
func (s *seeder) bootTime(ctx context.Context) (t time.Time, err error) {
	conn, err := postgres.Connect(ctx, s.ConnInfo)
	if err != nil {
		return t, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return t, postgres.Query(ctx, conn, "SELECT pg_postmaster_start_time()", nil, &t)
}
