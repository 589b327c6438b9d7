package cluster

import (
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// Role is what a node is in its cluster.
type Role string

// The roles. A stopped node's role is the one it would start in.
const (
	RolePrimary Role = "primary"
	RoleStandby Role = "standby"
	RoleUnknown Role = "unknown"
)

// State is how a node is found.
type State string

// The states.
const (
	StateRunning     State = "running"     // it answers
	StateStarting    State = "starting"    // its process is there and accepts no sessions yet
	StateStopping    State = "stopping"    // its process is there and accepts no sessions any more
	StateStopped     State = "stopped"     // shut down cleanly
	StateCrashed     State = "crashed"     // no process, and no clean shutdown
	StateUnreachable State = "unreachable" // it does not answer, and what is known does not say why
	StateMissing     State = "missing"     // there is no data directory
)

// Facts are what was observed of one node. Fields that could not be observed
// have their zero value.
type Facts struct {
	Name     string `json:"name"`
	Conninfo string `json:"conninfo"` // without secrets
	DataDir  string `json:"data_directory,omitempty"`
	Role     Role   `json:"role"`
	State    State  `json:"state"`
	Reason   string `json:"reason,omitempty"` // why it is not running, or does not answer
	PID      int    `json:"pid,omitempty"`    // of its postmaster
	Major    int    `json:"major,omitempty"`
	Version  string `json:"version,omitempty"`

	SystemID uint64      `json:"system_identifier,string,omitempty"`
	Timeline timeline.ID `json:"timeline,omitempty"`
	// LSN is the node's position: where a primary writes, how far a standby
	// has come (the greater of received and replayed), where a stopped node's
	// pg_control says it ended.
	LSN     wal.LSN `json:"lsn,omitempty"`
	Receive wal.LSN `json:"receive_lsn,omitempty"`
	Replay  wal.LSN `json:"replay_lsn,omitempty"`

	LagBytes   *int64   `json:"lag_bytes,omitempty"`   // behind the primary, in replay
	LagSeconds *float64 `json:"lag_seconds,omitempty"` // age of the last replayed commit while behind

	Upstream     string    `json:"upstream,omitempty"` // the node it streams from, or its host and port
	Receiver     *Receiver `json:"receiver,omitempty"`
	ReplayPaused bool      `json:"replay_paused,omitempty"`
	Slots        []Slot    `json:"slots,omitempty"`
	Senders      []Sender  `json:"senders,omitempty"`

	Archiver *Archiver         `json:"archiver,omitempty"`
	Settings map[string]string `json:"-"`

	SQL         bool            `json:"-"` // a session could be opened
	SQLError    error           `json:"-"` // why not
	HasSignal   bool            `json:"-"` // standby.signal or recovery.signal is there
	Tombstone   string          `json:"-"` // why the directory is not whole, empty for one that is
	TombstoneOf string          `json:"-"` // "rewind", "seed", "restore"
	Control     *volume.Control `json:"-"` // pg_control as it is on disk
	Node        Node            `json:"-"`
	DataDirOK   error           `json:"-"` // the server that answers has another data directory
	Problems    []string        `json:"problems,omitempty"`
}

// Receiver is a standby's WAL receiver (pg_stat_wal_receiver).
type Receiver struct {
	Status     string      `json:"status"`
	Timeline   timeline.ID `json:"timeline"`
	Flushed    wal.LSN     `json:"flushed_lsn"`
	Slot       string      `json:"slot,omitempty"`
	Host       string      `json:"host,omitempty"`
	Port       int         `json:"port,omitempty"`
	SilentSecs float64     `json:"silent_seconds"` // since the last message from the sender
}

// Slot is a replication slot.
type Slot struct {
	Name      string  `json:"name"`
	Type      string  `json:"type"` // physical or logical
	Active    bool    `json:"active"`
	PID       int     `json:"pid,omitempty"`
	Restart   wal.LSN `json:"restart_lsn,omitempty"`
	Retained  int64   `json:"retained_bytes"`
	WALStatus string  `json:"wal_status,omitempty"`
	Temporary bool    `json:"temporary,omitempty"`
	Synced    bool    `json:"synced,omitempty"` // 17+: kept in step with the primary's by the server
}

// Sender is a walsender (pg_stat_replication).
type Sender struct {
	PID         int     `json:"pid"`
	Application string  `json:"application_name"`
	State       string  `json:"state"`
	Sent        wal.LSN `json:"sent_lsn,omitempty"`
	Flush       wal.LSN `json:"flush_lsn,omitempty"`
	Replay      wal.LSN `json:"replay_lsn,omitempty"`
	Sync        string  `json:"sync_state"`
	LagSeconds  float64 `json:"replay_lag_seconds"`
}

// Archiver says how the WAL archive keeps up.
type Archiver struct {
	Mode    string `json:"mode"`             // archive_mode
	Ready   int    `json:"ready"`            // segments that wait; -1 where that is not known
	Failing bool   `json:"failing"`          // the last attempt failed
	LastWAL string `json:"last,omitempty"`   // archived last
	Failed  string `json:"failed,omitempty"` // failed last
}

// running reports whether the node answers SQL.
func (f *Facts) running() bool { return f.SQL }

// processAlive reports whether a server process holds the data directory.
func (f *Facts) processAlive() bool { return f.PID != 0 }

// position is the node's place in the WAL.
func (f *Facts) position() Position { return Position{f.Timeline, f.LSN} }

// streaming reports whether a standby receives WAL now.
func (f *Facts) streaming() bool {
	return f.Receiver != nil && f.Receiver.Status == "streaming"
}

// stoppedAsPrimary reports whether the node was shut down cleanly as a primary
// and has not been started since.
func (f *Facts) stoppedAsPrimary() bool {
	return f.State == StateStopped && f.Control != nil && f.Control.State == volume.StateShutdowned
}

// slot finds a slot by its name.
func (f *Facts) slot(name string) *Slot {
	for i := range f.Slots {
		if f.Slots[i].Name == name {
			return &f.Slots[i]
		}
	}
	return nil
}

// find returns the facts of a node, or nil.
func find(all []*Facts, name string) *Facts {
	for _, f := range all {
		if f.Name == name {
			return f
		}
	}
	return nil
}

// primaries returns the nodes that run as primaries.
func primaries(all []*Facts) []*Facts {
	var out []*Facts
	for _, f := range all {
		if f.running() && f.Role == RolePrimary {
			out = append(out, f)
		}
	}
	return out
}

func names(all []*Facts) []string {
	var out []string
	for _, f := range all {
		out = append(out, f.Name)
	}
	return out
}
