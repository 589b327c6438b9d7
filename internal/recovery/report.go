package recovery

import "tidemark/internal/blockcopy"

// RestoreResult is what a restore prints as JSON.
type RestoreResult struct {
	DataDir    string            `json:"data_directory"` // where the cluster was restored to
	DryRun     bool              `json:"dry_run"`        // nothing was changed
	Resolution *Resolution       `json:"resolution"`     // what the request came to
	Plan       *blockcopy.Plan   `json:"plan,omitempty"` // with --dry-run: what would be done
	Copy       *blockcopy.Result `json:"copy,omitempty"` // what was copied
	Took       float64           `json:"took_seconds"`   // from the start to the end
}

// RunResult is what a restore and recovery prints as JSON.
type RunResult struct {
	Restore  *RestoreResult `json:"restore,omitempty"` // absent where the directory was restored before
	Recovery *Outcome       `json:"recovery"`          // where the replay ended
}
