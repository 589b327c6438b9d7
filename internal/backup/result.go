package backup

import (
	"time"

	"tidemark/internal/repo"
)

// Result describes a backup in a repository.
type Result struct {
	Repository   string          `json:"repository"`         // where it is
	ID           string          `json:"id"`                 // identifier of the backup
	Label        string          `json:"label,omitempty"`    // the operator's words
	Type         repo.BackupType `json:"type"`               // full or incremental; either restores alone
	Parent       string          `json:"parent,omitempty"`   // the backup it was compared with
	SystemID     repo.SystemID   `json:"system_identifier"`  // of the cluster
	Server       string          `json:"server_version"`     // of the server it was taken from
	Source       repo.Origin     `json:"source"`             // where and how it was taken
	Start        repo.Point      `json:"start"`              // where replay begins
	Stop         repo.Point      `json:"stop"`               // where it has made the copy consistent
	Began        time.Time       `json:"began"`              // when it began
	Took         float64         `json:"took_seconds"`       // how long it took
	Files        int64           `json:"files"`              // in the cluster
	ClusterBytes int64           `json:"cluster_bytes"`      // of those files
	Blocks       int64           `json:"blocks"`             // in those files
	ZeroBlocks   int64           `json:"zero_blocks"`        // of which all zero
	OldBlocks    int64           `json:"old_blocks"`         // of which in an earlier backup
	NewBlocks    int64           `json:"new_blocks"`         // of which stored by this one
	ReadBytes    int64           `json:"read_bytes"`         // of those files; proof says why the rest need not be
	Proof        string          `json:"proof,omitempty"`    // what proves the rest unchanged: wal, or the server's wal summaries; absent: every block was read
	Hashed       time.Time       `json:"hashed"`             // when every block was read last
	StoredBytes  int64           `json:"stored_bytes"`       // in the repository, by this backup, without WAL
	WAL          []repo.WALRange `json:"wal"`                // segments that a restore needs at least
	Tail         string          `json:"wal_tail,omitempty"` // the last segment, where nobody had completed it: the backup holds it up to the stop position
	FindingCount int64           `json:"finding_count"`      // blocks whose checksum was wrong
	Findings     []repo.Finding  `json:"findings,omitempty"` // at most 1000 of them

	Others []ResultCopy `json:"others,omitempty"` // the same backup in the other repositories, where create was given several
}

// ResultCopy is what a further repository has of the backup.
type ResultCopy struct {
	Repository  string          `json:"repository"`       // where it is
	ID          string          `json:"id"`               // identifier of the backup, the same in all of them
	Type        repo.BackupType `json:"type"`             // full or incremental, as compared with what is there
	Parent      string          `json:"parent,omitempty"` // the backup it was compared with
	OldBlocks   int64           `json:"old_blocks"`       // in an earlier backup there
	NewBlocks   int64           `json:"new_blocks"`       // stored by this one
	StoredBytes int64           `json:"stored_bytes"`     // in the repository, by this backup, without WAL
}

// NewResultIn describes a backup that is in several repositories.
func NewResultIn(taken []Taken) *Result {
	res := NewResult(taken[0].Repository, taken[0].Summary)
	for _, t := range taken[1:] {
		s := t.Summary
		res.Others = append(res.Others, ResultCopy{Repository: t.Repository.Location(), ID: s.ID, Type: s.Type, Parent: s.Parent,
			OldBlocks: s.OldBlocks, NewBlocks: s.NewBlocks, StoredBytes: s.StoredSize + s.ManifestSize})
	}
	return res
}

// NewResult describes a backup.
func NewResult(r *repo.Repository, s *repo.Summary) *Result {
	res := &Result{Repository: r.Location(), ID: s.ID, Label: s.Label, Type: s.Type, Parent: s.Parent, SystemID: s.SystemID,
		Server: s.Source.Server, Source: s.Source, Start: s.Start, Stop: s.Stop, Began: s.Began, Took: s.Took().Seconds(), Files: s.Files,
		ClusterBytes: s.ClusterSize, Blocks: s.Blocks, ZeroBlocks: s.ZeroBlocks, OldBlocks: s.OldBlocks, NewBlocks: s.NewBlocks,
		StoredBytes: s.StoredSize + s.ManifestSize, WAL: s.WAL, Tail: s.Tail, FindingCount: s.FindingCount, Findings: s.Findings, ReadBytes: s.ReadSize, Proof: s.Proof, Hashed: s.Hashed}
	if s.Hashed.IsZero() {
		res.Hashed = s.Began
	}
	return res
}

// InitResult is what init did.
type InitResult struct {
	Repository string `json:"repository"` // where it is
	ID         string `json:"id"`         // the repository's identifier
	Created    bool   `json:"created"`    // false: it was there already
	Encrypted  bool   `json:"encrypted"`  // what is written there is encrypted
}
