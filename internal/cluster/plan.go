package cluster

import (
	"fmt"
	"strings"
	"time"

	"tidemark/pkg/timeline"
	"tidemark/pkg/wal"
)

// Action is what a step of a plan does to its node.
type Action string

// The actions, in the order in which a switchover takes them.
const (
	ActionCheckpoint Action = "checkpoint"  // make the node's next shutdown or restart short
	ActionSlot       Action = "create-slot" // a physical slot for Peer
	ActionStop       Action = "stop"        // stop the primary fast, until pg_control says "shut down"
	ActionProve      Action = "prove"       // the node has the end of the shutdown-checkpoint record
	ActionFence      Action = "fence"       // whoever starts the node starts a standby
	ActionBefore     Action = "before-hook" // the operator's before_promote
	ActionPromote    Action = "promote"     // the point of no return
	ActionAfter      Action = "after-hook"  // the operator's after_promote
	ActionSettle     Action = "settle"      // a checkpoint that brings the new timeline into pg_control
	ActionRewind     Action = "rewind"      // take back what the node alone has
	ActionReseed     Action = "reseed"      // copy the node anew
	ActionJoin       Action = "join"        // configure a stopped node as a standby of Peer and start it
	ActionRepoint    Action = "follow"      // make a running standby stream from Peer
	ActionVerify     Action = "verify"      // it streams from Peer, and has what Peer had
	ActionDropSlots  Action = "drop-slots"  // slots that hold WAL for standbys that left
	ActionStart      Action = "start"       // start a stopped node in its role
)

// Step is one step of a plan, and after the run what became of it.
type Step struct {
	Action Action  `json:"action"`
	Node   string  `json:"node"`
	Peer   string  `json:"peer,omitempty"`   // the node on whose behalf, or from which
	Detail string  `json:"detail,omitempty"` // slot name, hook command
	Done   bool    `json:"done"`
	Took   float64 `json:"took_seconds,omitempty"`
	Error  string  `json:"error,omitempty"`
}

// String says in words what the step does.
func (s Step) String() string {
	switch s.Action {
	case ActionCheckpoint:
		return "checkpoint " + s.Node
	case ActionSlot:
		return fmt.Sprintf("create slot %s on %s for %s", s.Detail, s.Node, s.Peer)
	case ActionStop:
		return "stop " + s.Node + " (fast)"
	case ActionProve:
		return fmt.Sprintf("prove that %s has the last record of %s", s.Node, s.Peer)
	case ActionFence:
		return "fence " + s.Node + ": it can only start as a standby"
	case ActionBefore:
		return "run before_promote: " + s.Detail
	case ActionPromote:
		return "promote " + s.Node
	case ActionAfter:
		return "run after_promote: " + s.Detail
	case ActionSettle:
		return "checkpoint " + s.Node + " on its new timeline"
	case ActionRewind:
		return fmt.Sprintf("rewind %s to %s", s.Node, s.Peer)
	case ActionReseed:
		return fmt.Sprintf("copy %s anew from %s", s.Node, s.Peer)
	case ActionJoin:
		return fmt.Sprintf("start %s as a standby of %s", s.Node, s.Peer)
	case ActionRepoint:
		return fmt.Sprintf("point %s to %s", s.Node, s.Peer)
	case ActionVerify:
		return fmt.Sprintf("prove that %s streams from %s", s.Node, s.Peer)
	case ActionDropSlots:
		return fmt.Sprintf("drop slot %s on %s", s.Detail, s.Node)
	case ActionStart:
		return "start " + s.Node
	}
	return string(s.Action) + " " + s.Node
}

// Outcome is how an operation ended.
type Outcome string

// The outcomes.
const (
	OutcomePlanned    Outcome = "planned"     // --dry-run: nothing was done
	OutcomeNothing    Outcome = "nothing"     // it is as wanted already
	OutcomeDone       Outcome = "done"        //
	OutcomeRefused    Outcome = "refused"     // a check failed, nothing was done
	OutcomeRolledBack Outcome = "rolled-back" // it failed, the old primary is primary again
	OutcomeIncomplete Outcome = "incomplete"  // the role changed, steps remain
	OutcomeFailed     Outcome = "failed"      // it failed before anything changed, or the way back failed
)

// Report is what a role change did, or with --dry-run would do.
type Report struct {
	Operation string   `json:"operation"` // switchover, promote, rejoin
	Cluster   string   `json:"cluster,omitempty"`
	Node      string   `json:"node"`          // whose role changes: the new primary, or the node that rejoins
	Old       string   `json:"old,omitempty"` // the old primary
	Outcome   Outcome  `json:"outcome"`
	Checks    []Check  `json:"checks,omitempty"`
	Steps     []Step   `json:"steps,omitempty"`
	Notes     []string `json:"notes,omitempty"`
	Remaining []string `json:"remaining,omitempty"` // what is left to do, in words

	Timeline   timeline.ID `json:"timeline,omitempty"`          // the new primary's
	WriteGap   *float64    `json:"write_gap_seconds,omitempty"` // from the stop of the old primary to the first write on the new one
	Proof      *Proof      `json:"proof,omitempty"`
	Candidates []Candidate `json:"candidates,omitempty"` // promote: where each standby is
	Loss       *Loss       `json:"loss,omitempty"`       // promote, rejoin: what is or will be lost
	Took       float64     `json:"took_seconds"`
}

// Proof is what shows that nothing acknowledged is missing on the candidate.
type Proof struct {
	Timeline timeline.ID `json:"timeline"`
	Record   wal.LSN     `json:"record_lsn"` // of the shutdown checkpoint
	End      wal.LSN     `json:"end_lsn"`    // of that record: nothing was written behind it
	CRC      string      `json:"crc"`        // of the record, equal on both nodes
	Received wal.LSN     `json:"received_lsn"`
	Replayed wal.LSN     `json:"replayed_lsn"`
}

// Candidate is a standby that could be promoted.
type Candidate struct {
	Node string `json:"node"`
	Position
	Behind int64 `json:"behind_bytes"` // the most advanced standby
}

// Loss is WAL that the cluster's new history does not contain.
type Loss struct {
	Known   bool         `json:"known"` // the old primary's WAL could be read
	Why     string       `json:"why,omitempty"`
	From    wal.LSN      `json:"from_lsn,omitempty"`
	To      wal.LSN      `json:"to_lsn,omitempty"`
	Bytes   int64        `json:"bytes"`
	Commits int          `json:"commits"`
	Lost    []LostCommit `json:"transactions,omitempty"` // the first MaxLostShown of them
}

// MaxLostShown bounds the list of lost transactions in a report.
const MaxLostShown = 1000

// LostCommit is a transaction that committed on the old primary alone.
type LostCommit struct {
	XID  uint32    `json:"xid"`
	LSN  wal.LSN   `json:"lsn"`
	Time time.Time `json:"time"`
}

// remaining lists the steps that were not done, in words.
func remaining(steps []Step) []string {
	var out []string
	for _, s := range steps {
		if s.Done {
			continue
		}
		text := s.String()
		if s.Error != "" {
			text += " (" + firstLine(s.Error) + ")"
		}
		out = append(out, text)
	}
	return out
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
