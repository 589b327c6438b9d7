// Package rewind brings a cluster that left the common history back onto it:
// it finds the point where target and source parted, the blocks that the
// target's own WAL changed since, and has package blockcopy replace them by
// the source's. Replay of the source's WAL then makes everything consistent.
//
//	          redo      checkpoint        fork
//	common  ---|------------|--------------|
//	target                                 |------------- end     its blocks from redo on are copied over
//	source                                 |----------------- ... only this WAL travels
//
// In order (run.go): an unfinished run is resumed; the target's pg_control is
// read, and where the server crashed it is recovered first; source and checks;
// divergence (divergence.go); the last common checkpoint; the page map of the
// target's WAL from that checkpoint's redo point to its exact end; the plan
// (plan.go, planwal.go); and the run of the plan, with pg_control and
// backup_label made at its end (finish.go).
package rewind
