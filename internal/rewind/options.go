package rewind

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"tidemark/internal/blockcopy"
	"tidemark/internal/progress"
	"tidemark/pkg/timeline"
	"tidemark/pkg/volume"
	"tidemark/pkg/wal"
)

// Options say what to rewind to what. Target and exactly one of SourceDir,
// SourceConn and SourceRepo are needed.
type Options struct {
	Target     string // data directory, its server stopped
	SourceDir  string // data directory of a stopped server
	SourceConn string // connection string of a live server, primary or standby
	SourceRepo string // repository that holds a backup and the archived WAL of the source

	SourceBackup   string      // with SourceRepo: this backup; the newest that leads to the timeline where empty
	SourceTimeline timeline.ID // with SourceRepo: this timeline; the only one that goes on where 0
	FetchProgram   string      // with SourceRepo: dbrecover, for restore_command: an absolute path

	ConfigFile        string            // the target's postgresql.conf where it lies outside the data directory
	Bindir            string            // the server's programs; found by themselves otherwise
	WriteRecoveryConf bool              // make the target a standby of SourceConn
	Compare           bool              // find differing blocks by hashes on both sides, without the target's WAL
	RestoreTargetWAL  bool              // fetch missing WAL by the restore_command of either side
	Repositories      []string          // where missing WAL is looked for, too
	NoEnsureShutdown  bool              // refuse a crashed target instead of recovering it
	NoSync            bool              // leave fsync out
	TakeConfig        bool              // take the source's configuration files too
	TablespaceMap     map[string]string // the source's tablespace location -> the one to use here
	Start             bool              // afterwards start the server, and wait until it has caught up
	StartTimeout      time.Duration     // for that; DefaultStartTimeout where 0
	Verify            bool              // with Start: compare every block with the source's afterwards
	DryRun            bool              // plan, change nothing
	NoUndo            bool              // keep nothing for an undo
	UndoCommand       string            // the command line that undoes, for the tombstone and for messages
	Jobs              int
	Command           string // the command line to run again, for the tombstone and for messages

	Progress progress.Reporter
	Log      *slog.Logger

	fs   volume.FS                       // of the target, for tests that inject faults
	free func(dir string) (int64, error) // bytes that can be written there; nil asks the system
}

// Side is what is known of the target or of the source.
type Side struct {
	Name     string          `json:"name"`     // "directory /srv/pg", "server host=db2 port=5432 user=postgres"
	Timeline timeline.ID     `json:"timeline"` // the last one it wrote or replayed
	Spans    []timeline.Span `json:"history"`  // the ranges of WAL that lead there, the oldest first
	End      wal.LSN         `json:"end"`      // where its WAL ended when it was looked at
	State    string          `json:"state"`    // of pg_control, in pg_controldata's words
}

// Checkpoint is where replay will begin.
type Checkpoint struct {
	LSN      wal.LSN     `json:"lsn"`      // of the checkpoint record
	Redo     wal.LSN     `json:"redo"`     // its redo point
	Timeline timeline.ID `json:"timeline"` // of the checkpoint

	nextXID uint64 // the first transaction that is not in it, with the epoch in the upper half; 0 where it is not known
}

// Divergence says whether and where target and source parted.
type Divergence struct {
	Diverged   bool           `json:"diverged"` // the target has WAL that the source does not have
	Reason     string         `json:"reason"`   // one sentence for people
	Target     Side           `json:"target"`
	Source     Side           `json:"source"`
	Fork       *timeline.Fork `json:"fork,omitempty"`       // the last shared timeline and the first byte that is not shared
	Checkpoint *Checkpoint    `json:"checkpoint,omitempty"` // the last common one
	Start      *Checkpoint    `json:"start,omitempty"`      // where replay will begin: the same, or the source's own where that is earlier
}

// Report is what Check found.
type Report struct {
	Divergence
	LostBytes     int64             `json:"lost_wal_bytes"`                  // WAL of the target after the fork
	Lost          *LostTransactions `json:"lost_transactions"`               // committed on the target after the fork
	Prepared      []LostTransaction `json:"prepared_transactions,omitempty"` // prepared on the target after the fork, and not committed; a rewind loses them, too
	RelationFiles []string          `json:"changed_relations"`               // main forks that the target changed after the fork: tablespace/database/file number
	WAL           *WALNeeds         `json:"wal,omitempty"`                   // which WAL a rewind needs, and where that lies
	Missing       []string          `json:"missing_wal,omitempty"`           // WAL segments that are needed and found nowhere
	Blocks        int64             `json:"changed_blocks"`                  // blocks that the target's WAL changed since the checkpoint's redo point
	Plan          *blockcopy.Totals `json:"plan,omitempty"`                  // what a rewind would do
	LateBytes     int64             `json:"late_wal_bytes_max"`              // the running WAL segment, copied at the end
	Estimate      *Estimate         `json:"estimate,omitempty"`              // what a rewind would take
	Compared      *Comparison       `json:"compared,omitempty"`              // with --compare
	Pending       string            `json:"unfinished_run_state,omitempty"`  // of an unfinished rewind found in the target
	Warnings      []string          `json:"warnings,omitempty"`
}

// Result is what Run did.
type Result struct {
	Divergence
	DryRun   bool              `json:"dry_run"`
	Resumed  bool              `json:"resumed"`              // an unfinished run was gone on with
	Bytes    int64             `json:"bytes"`                // that travelled, or would travel
	Skipped  int64             `json:"bytes_durable_before"` // durable from an interrupted run, not copied again
	Plan     *blockcopy.Plan   `json:"plan,omitempty"`       // with DryRun: the very plan that would run
	Totals   *blockcopy.Totals `json:"totals,omitempty"`
	Compared *Comparison       `json:"compared,omitempty"` // with --compare: what was found
	Estimate *Estimate         `json:"estimate,omitempty"` // of the plan; not for a run that goes on
	Started  *Started          `json:"started,omitempty"`  // with --start: the proof that it follows
	Verified *Verification     `json:"verified,omitempty"` // with --verify
	Seconds  float64           `json:"elapsed_seconds"`
	Undo     int64             `json:"undo_bytes"` // kept in the target for an undo; 0 where it cannot be undone
	Standby  bool              `json:"standby"`    // the target is set up to start as a standby
	Warnings []string          `json:"warnings,omitempty"`
}

// meta is what a resumed run needs to know; it travels in the plan.
type meta struct {
	SystemID   uint64      `json:"system_identifier,string"`
	SourceDir  bool        `json:"source_is_directory"`
	Divergence Divergence  `json:"divergence"`
	SourceEnd  wal.LSN     `json:"source_end"` // WAL below the segment of this position is part of the plan
	SourceTLI  timeline.ID `json:"source_timeline"`
	Flushed    wal.LSN     `json:"source_flushed"`     // what the source wrote to its WAL before it was in its files when copying began
	Done       []string    `json:"wal_done,omitempty"` // segments to be marked as archived
	Restored   []string    `json:"restored,omitempty"` // segments that come from an archive
	Backup     string      `json:"backup,omitempty"`   // of a repository source
	Recovery   bool        `json:"write_recovery_conf"`
	Compared   bool        `json:"compared,omitempty"`        // the fork may not be known, and the source's WAL from Start on is needed
	Instance   string      `json:"source_instance,omitempty"` // of a live server: names its run, under whatever address
}

func (m meta) encode() json.RawMessage {
	data, err := json.Marshal(m)
	if err != nil {
		panic(err) // plain data
	}
	return data
}

func decodeMeta(p *blockcopy.Plan) (meta, error) {
	var m meta
	if err := json.Unmarshal(p.Meta, &m); err != nil {
		return m, fmt.Errorf("the plan in the journal: %w", err)
	}
	if m.Divergence.Fork == nil && !m.Compared || m.Divergence.Start == nil {
		return m, fmt.Errorf("the plan in the journal does not say where the fork is")
	}
	return m, nil
}
