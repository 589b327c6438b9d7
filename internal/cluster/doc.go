// Package cluster changes the roles of the nodes of one cluster, and shows
// them: status, planned switchover, unplanned promotion, the return of an old
// primary, and a scratch cluster to rehearse on.
//
// Everything is decided from facts that are observed anew by every run: what
// each server says, what its pg_control and its WAL say, and the process that
// holds its data directory. There is no state file. A command that was killed
// is run again; it sees how far things have come and does what is left.
//
//	observe -> facts -> checks, plan (pure functions) -> execute, step by step
//
// The plan is data: --dry-run shows the very steps that would be executed.
//
// Positions are compared by timeline and LSN, after the system identifiers
// were found equal. A standby's position is the greater of what it received
// and what it replayed: after a restart the receive position falls back to the
// beginning of a segment.
package cluster
