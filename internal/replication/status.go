package replication

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"tidemark/internal/blockcopy"
	"tidemark/internal/exit"
	"tidemark/internal/postgres"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// The roles of a node.
const (
	RolePrimary = "primary"
	RoleStandby = "standby"
)

// Where a standby's WAL comes from.
const (
	FromStream  = "stream"
	FromArchive = "archive"
	FromPgWAL   = "pg_wal"
)

// Status is what is known of a node's replication.
type Status struct {
	Dir      string         `json:"data_directory,omitempty"` // where it was named
	Running  bool           `json:"running"`                  // whether the server accepts sessions
	Role     string         `json:"role"`                     // "primary" or "standby"
	State    string         `json:"state,omitempty"`          // pg_control's state, where the server does not run
	SystemID uint64         `json:"system_identifier,string"` // of the cluster
	Timeline wal.TimelineID `json:"timeline"`                 // of the newest WAL it has

	Receiving    bool    `json:"receiving"`                  // a receiver streams now
	ReceivingOff bool    `json:"receiving_off"`              // turned off by dbrepl stop
	Source       string  `json:"wal_source,omitempty"`       // where a standby's WAL comes from: "stream", "archive" or "pg_wal"
	Upstream     string  `json:"upstream,omitempty"`         // primary_conninfo without secrets
	ReceiveLSN   wal.LSN `json:"receive_lsn,omitempty"`      // received and durable
	ReceiveTLI   uint32  `json:"receive_timeline,omitempty"` // timeline of the received WAL
	ReplayLSN    wal.LSN `json:"replay_lsn,omitempty"`       // replayed
	ReplayPaused bool    `json:"replay_paused"`              // replay was paused by an operator
	WriteLSN     wal.LSN `json:"write_lsn,omitempty"`        // a primary's position

	PrimaryLSN  wal.LSN `json:"primary_lsn,omitempty"`      // the upstream's durable position, where it answers
	PrimaryTLI  uint32  `json:"primary_timeline,omitempty"` // and its timeline
	PrimaryNote string  `json:"primary_error,omitempty"`    // why the upstream does not answer
	LagBytes    *int64  `json:"lag_bytes,omitempty"`        // WAL of the upstream that is not replayed here
	// LagSeconds is the age of the last replayed transaction while there is
	// something to replay, 0 when there is not.
	LagSeconds *float64 `json:"lag_seconds,omitempty"`

	Slot     *SlotStatus       `json:"slot,omitempty"`       // of this standby at its upstream
	Standbys []StandbyStatus   `json:"standbys,omitempty"`   // of a primary
	Seed     *UnfinishedStatus `json:"unfinished,omitempty"` // a copy that was cut off
}

// SlotStatus is a replication slot at the upstream.
type SlotStatus struct {
	Name          string  `json:"name"`                  // its name
	Exists        bool    `json:"exists"`                // false where the standby names a slot that is not there
	Active        bool    `json:"active"`                // in use now
	RestartLSN    wal.LSN `json:"restart_lsn,omitempty"` // WAL from here on is held back
	WALStatus     string  `json:"wal_status,omitempty"`  // reserved, extended, unreserved or lost
	RetainedBytes int64   `json:"retained_bytes"`        // WAL that is held back
	SafeBytes     *int64  `json:"safe_bytes,omitempty"`  // WAL that may still be written before the slot is given up
}

// StandbyStatus is one receiver of a primary.
type StandbyStatus struct {
	Name       string  `json:"name"`                 // application_name
	Address    string  `json:"address,omitempty"`    // where it connects from
	State      string  `json:"state"`                // streaming, catchup, ...
	Sync       string  `json:"sync_state"`           // async, sync, quorum, potential
	ReplayLSN  wal.LSN `json:"replay_lsn,omitempty"` // how far it has replayed
	LagBytes   int64   `json:"lag_bytes"`            // behind the primary
	LagSeconds float64 `json:"lag_seconds"`          // as the primary measured it last
	Slot       string  `json:"slot,omitempty"`       // the slot it uses
}

// UnfinishedStatus is a copy that was cut off and goes on when run again.
type UnfinishedStatus struct {
	Operation string `json:"operation"`   // seed, rewind, restore
	Command   string `json:"command"`     // run it again
	Done      int64  `json:"done_bytes"`  // durable
	Total     int64  `json:"total_bytes"` // of the plan
}

// GetStatus looks at a node: through its server where it runs, else through its
// data directory.
func GetStatus(ctx context.Context, o StandbyOptions) (*Status, error) {
	s, err := newStandby(o)
	if err != nil {
		return nil, err
	}
	if s.Dir != "" {
		if u := s.unfinishedStatus(); u != nil {
			return &Status{Dir: s.Dir, Role: RoleStandby, Seed: u}, nil
		}
		if err := s.needDir(); err != nil {
			return nil, err
		}
		if running, err := postgres.IsRunning(s.Dir); err != nil || !running {
			return s.fromDisk()
		}
	}
	return s.status(ctx)
}

func (s *standby) unfinishedStatus() *UnfinishedStatus {
	p, err := blockcopy.Pending(s.FS, s.Dir)
	if err != nil || p == nil || p.State == blockcopy.Finished {
		return nil
	}
	return &UnfinishedStatus{Operation: p.Plan.Operation, Command: p.Plan.Command, Done: p.DoneBytes, Total: p.Plan.Totals.Bytes}
}

// fromDisk tells what pg_control says.
func (s *standby) fromDisk() (*Status, error) {
	c, err := volume.ReadControl(s.Dir)
	if err != nil {
		return nil, err
	}
	st := &Status{Dir: s.Dir, Role: RolePrimary, State: c.State.String(), SystemID: c.SystemIdentifier, Timeline: c.Timeline(), ReceivingOff: s.isOff()}
	if _, err := s.FS.Lstat(s.Dir + "/standby.signal"); err == nil {
		st.Role, st.ReplayLSN = RoleStandby, max(c.MinRecoveryPoint, c.CheckPointCopy.Redo)
	} else {
		st.WriteLSN = c.CheckPoint
	}
	return st, nil
}

func (s *standby) isOff() bool {
	if s.Dir == "" {
		return false
	}
	_, err := s.FS.Lstat(s.switchFile())
	return err == nil
}

// status asks the running server.
func (s *standby) status(ctx context.Context) (*Status, error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	st := &Status{Dir: s.Dir, Running: true, Role: RolePrimary, ReceivingOff: s.isOff()}
	var inRecovery bool
	var id int64
	if err := postgres.Query(ctx, conn, "SELECT pg_is_in_recovery(), system_identifier FROM pg_control_system()", nil, &inRecovery, &id); err != nil {
		return nil, err
	}
	st.SystemID = uint64(id)
	if !inRecovery {
		return st, primaryStatus(ctx, conn, st)
	}
	st.Role = RoleStandby
	conninfo, err := standbyStatus(ctx, conn, st)
	if err != nil {
		return nil, err
	}
	s.upstreamStatus(ctx, conninfo, st)
	return st, nil
}

// lsnText scans a pg_lsn that may be NULL.
type lsnText struct{ pgtype.Text }

func (t lsnText) lsn() wal.LSN {
	l, err := wal.ParseLSN(t.String)
	if err != nil {
		return 0
	}
	return l
}

func primaryStatus(ctx context.Context, conn *pgx.Conn, st *Status) error {
	var write lsnText
	var tli int64
	err := postgres.Query(ctx, conn, "SELECT pg_current_wal_lsn()::text, ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int8", nil, &write.Text, &tli)
	if err != nil {
		return err
	}
	st.WriteLSN, st.Timeline = write.lsn(), wal.TimelineID(tli)
	rows, err := conn.Query(ctx, `SELECT r.application_name, coalesce(host(r.client_addr), ''), coalesce(r.state, ''), coalesce(r.sync_state, ''), r.replay_lsn::text,
		coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), r.replay_lsn), 0)::int8, coalesce(extract(epoch FROM r.replay_lag), 0)::float8, coalesce(s.slot_name, '')
		FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid ORDER BY 1, 2`)
	if err != nil {
		return postgres.Explain(err)
	}
	var one StandbyStatus
	var replay lsnText
	_, err = pgx.ForEachRow(rows, []any{&one.Name, &one.Address, &one.State, &one.Sync, &replay.Text, &one.LagBytes, &one.LagSeconds, &one.Slot}, func() error {
		one.ReplayLSN = replay.lsn()
		st.Standbys = append(st.Standbys, one)
		return nil
	})
	return postgres.Explain(err)
}

// standbyStatus asks the standby about itself and returns its primary_conninfo.
func standbyStatus(ctx context.Context, conn *pgx.Conn, st *Status) (conninfo string, err error) {
	var receive, replay, flushed lsnText
	var tli, minTLI pgtype.Int8
	var restore bool
	var slot string
	var age pgtype.Float8
	err = postgres.Query(ctx, conn, `SELECT pg_last_wal_receive_lsn()::text, pg_last_wal_replay_lsn()::text, pg_is_wal_replay_paused(),
		extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8,
		(SELECT flushed_lsn::text FROM pg_stat_wal_receiver), (SELECT received_tli::int8 FROM pg_stat_wal_receiver),
		EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'),
		(SELECT min_recovery_end_timeline::int8 FROM pg_control_recovery()),
		coalesce((SELECT setting <> '' FROM pg_settings WHERE name = 'restore_command'), false),
		coalesce((SELECT setting FROM pg_settings WHERE name = 'primary_slot_name'), ''),
		coalesce((SELECT setting FROM pg_settings WHERE name = 'primary_conninfo'), '')`, nil,
		&receive.Text, &replay.Text, &st.ReplayPaused, &age, &flushed.Text, &tli, &st.Receiving, &minTLI, &restore, &slot, &conninfo)
	if err != nil {
		return "", err
	}
	// The receive position falls back to a segment's start after a restart.
	st.ReplayLSN = replay.lsn()
	st.ReceiveLSN = max(receive.lsn(), flushed.lsn(), st.ReplayLSN)
	st.ReceiveTLI = uint32(tli.Int64)
	st.Timeline = wal.TimelineID(max(tli.Int64, minTLI.Int64))
	st.Upstream = sanitized(conninfo)
	switch {
	case st.Receiving:
		st.Source = FromStream
	case restore:
		st.Source = FromArchive
	default:
		st.Source = FromPgWAL
	}
	if slot != "" {
		st.Slot = &SlotStatus{Name: slot}
	}
	seconds := age.Float64
	if st.ReplayLSN >= st.ReceiveLSN || !age.Valid {
		seconds = 0
	}
	st.LagSeconds = &seconds
	return conninfo, nil
}

// upstreamStatus asks the server that the standby receives from. That it does
// not answer is a fact, not an error.
func (s *standby) upstreamStatus(ctx context.Context, conninfo string, st *Status) {
	own := int64(st.ReceiveLSN - st.ReplayLSN)
	st.LagBytes = &own
	if conninfo == "" {
		st.PrimaryNote = "primary_conninfo is empty"
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	repl, err := postgres.ConnectReplication(ctx, conninfo)
	if err != nil {
		st.PrimaryNote = err.Error()
		return
	}
	defer repl.Close()
	system, err := repl.IdentifySystem(ctx)
	if err != nil {
		st.PrimaryNote = err.Error()
		return
	}
	st.PrimaryLSN, st.PrimaryTLI = system.Flush, uint32(system.Timeline)
	lag := max(0, int64(system.Flush)-int64(st.ReplayLSN))
	st.LagBytes = &lag
	if lag > 0 && *st.LagSeconds == 0 && !st.Receiving {
		st.LagSeconds = nil // what is not here has no age that we know
	}
	if st.Slot == nil {
		return
	}
	if c, err := postgres.ParseConnInfo(conninfo); err == nil {
		if err := slotStatus(ctx, c.With("dbname", "postgres").String(), system.Flush, st.Slot); err != nil {
			s.Log.Debug("the upstream tells nothing of the slot", "error", err)
			slotByProtocol(ctx, repl, system.Flush, st.Slot)
		}
	}
}

func slotStatus(ctx context.Context, conninfo string, flush wal.LSN, slot *SlotStatus) error {
	conn, err := postgres.Connect(ctx, conninfo)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	state, err := readSlot(ctx, conn, slot.Name)
	if err != nil {
		return err
	}
	slot.Exists, slot.Active, slot.RestartLSN, slot.WALStatus = state.exists, state.active, state.restart, state.status
	if state.restart != 0 && flush > state.restart {
		slot.RetainedBytes = int64(flush - state.restart)
	}
	if state.safe.Valid {
		slot.SafeBytes = &state.safe.Int64
	}
	return nil
}

// slotByProtocol is for roles that may replicate and nothing else.
func slotByProtocol(ctx context.Context, repl *postgres.ReplConn, flush wal.LSN, slot *SlotStatus) {
	if repl.Major() < 15 {
		return
	}
	info, ok, err := repl.ReadSlot(ctx, slot.Name)
	if err != nil || !ok {
		return
	}
	slot.Exists, slot.RestartLSN = true, info.RestartLSN
	if info.RestartLSN != 0 && flush > info.RestartLSN {
		slot.RetainedBytes = int64(flush - info.RestartLSN)
	}
}

// SyncOptions say what a sync waits for.
type SyncOptions struct {
	StandbyOptions
	// Upstream is how to reach the primary; default: the standby's primary_conninfo.
	Upstream string
}

// SyncResult is how a sync ended.
type SyncResult struct {
	Target    wal.LSN        `json:"target_lsn"`      // the primary's durable position when the command began
	Timeline  wal.TimelineID `json:"timeline"`        // the primary's
	ReplayLSN wal.LSN        `json:"replay_lsn"`      // where the standby is
	Reached   bool           `json:"reached"`         // whether it is there
	Missing   int64          `json:"missing_bytes"`   // what it has not replayed yet
	Elapsed   float64        `json:"elapsed_seconds"` // of the wait
	Paused    bool           `json:"replay_paused"`   // replay was paused by an operator
	Receiving bool           `json:"receiving"`       // WAL streams
}

// Sync waits until the standby has replayed what the primary had written and
// made durable when the command began. Where it does not in time, the error
// has exit.Problem and the result says what is missing.
func Sync(ctx context.Context, o SyncOptions) (SyncResult, error) {
	var r SyncResult
	s, err := newStandby(o.StandbyOptions)
	if err != nil {
		return r, err
	}
	if s.Dir != "" {
		if err := s.needDir(); err != nil {
			return r, err
		}
	}
	began := time.Now()
	conn, err := s.connect(ctx)
	if err != nil {
		return r, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var id int64
	var inRecovery bool
	var conninfo string
	err = postgres.Query(ctx, conn, `SELECT pg_is_in_recovery(), system_identifier, coalesce((SELECT setting FROM pg_settings WHERE name = 'primary_conninfo'), '') FROM pg_control_system()`,
		nil, &inRecovery, &id, &conninfo)
	if err != nil {
		return r, err
	}
	if !inRecovery {
		return r, exit.New(exit.Refused, "name a standby", "this server is a primary: there is nothing for it to catch up with")
	}
	if o.Upstream != "" {
		conninfo = o.Upstream
	}
	if err := s.syncTarget(ctx, conninfo, uint64(id), &r); err != nil {
		return r, err
	}
	err = s.awaitReplay(ctx, conn, &r)
	r.Elapsed = time.Since(began).Seconds()
	return r, err
}

// syncTarget asks the primary where it is now.
func (s *standby) syncTarget(ctx context.Context, conninfo string, id uint64, r *SyncResult) error {
	if conninfo == "" {
		hint := "set primary_conninfo, or name the primary with --upstream"
		if s.isOff() {
			hint = "receiving is turned off: dbrepl start"
		}
		return exit.New(exit.Failed, hint, "the standby has no primary to catch up with: its primary_conninfo is empty")
	}
	repl, err := postgres.ConnectReplication(ctx, conninfo)
	if err != nil {
		return err
	}
	defer repl.Close()
	system, err := repl.IdentifySystem(ctx)
	if err != nil {
		return err
	}
	if system.ID != id {
		return exit.New(exit.Refused, "correct primary_conninfo, or --upstream", "the primary belongs to another cluster: system identifier %d, the standby's is %d", system.ID, id)
	}
	r.Target, r.Timeline = system.Flush, system.Timeline
	return nil
}

func (s *standby) awaitReplay(ctx context.Context, conn *pgx.Conn, r *SyncResult) error {
	deadline := time.Now().Add(s.Timeout)
	began := false
	for {
		var replay lsnText
		var tli pgtype.Int8
		err := postgres.Query(ctx, conn, `SELECT pg_last_wal_replay_lsn()::text, pg_is_wal_replay_paused(),
			EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'),
			greatest((SELECT received_tli FROM pg_stat_wal_receiver), (SELECT min_recovery_end_timeline FROM pg_control_recovery()))::int8`,
			nil, &replay.Text, &r.Paused, &r.Receiving, &tli)
		if err != nil {
			return err
		}
		before := r.ReplayLSN
		r.ReplayLSN = replay.lsn()
		r.Missing = max(0, int64(r.Target)-int64(r.ReplayLSN))
		if r.Missing == 0 && wal.TimelineID(tli.Int64) >= r.Timeline {
			r.Reached = true
			return nil
		}
		if !began {
			s.Progress.Phase("catching up with the primary", r.Missing, 0)
			began = true
		} else if r.ReplayLSN > before {
			s.Progress.Add(int64(r.ReplayLSN - before))
		}
		if time.Now().After(deadline) {
			return s.notReached(r, tli.Int64)
		}
		if !pause(ctx, 20*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// notReached says why the position was not reached, as far as that can be seen.
func (s *standby) notReached(r *SyncResult, tli int64) error {
	hint := "give it more time with --timeout; dbrepl status shows where it is"
	switch {
	case r.Paused:
		hint = "replay is paused: SELECT pg_wal_replay_resume() on the standby"
	case !r.Receiving:
		hint = "it receives nothing: dbrepl start"
	case r.Missing == 0:
		hint = "it has not followed to the primary's timeline yet: look into its log"
	}
	return exit.New(exit.Problem, hint, "not in sync after %s: %d bytes are missing (replayed to %s on timeline %d, the primary was at %s on timeline %d)",
		s.Timeout, r.Missing, r.ReplayLSN, tli, r.Target, r.Timeline)
}
