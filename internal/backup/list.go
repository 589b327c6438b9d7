package backup

import (
	"context"
	"strconv"
	"time"

	"tidemark/internal/repo"
	"tidemark/pkg/wal"
)

// Listing is what a repository holds.
type Listing struct {
	Repository string           `json:"repository"` // where it is
	Clusters   []ClusterListing `json:"clusters"`   // by system identifier
}

// ClusterListing is what a repository holds of one cluster.
type ClusterListing struct {
	SystemID repo.SystemID   `json:"system_identifier"` // of the cluster
	Backups  []BackupListing `json:"backups"`           // the oldest first
	Damaged  []DamagedBackup `json:"damaged"`           // whose manifest cannot be read
	Started  []StartedBackup `json:"unfinished"`        // running, or interrupted
}

// BackupListing is one complete backup.
type BackupListing struct {
	ID           string          `json:"id"`                // identifier
	Label        string          `json:"label,omitempty"`   // the operator's words
	Type         repo.BackupType `json:"type"`              // full or incremental; either restores alone
	Parent       string          `json:"parent,omitempty"`  // the backup it was compared with
	Major        int             `json:"major"`             // version of the server
	Began        time.Time       `json:"began"`             // when it began
	Took         float64         `json:"took_seconds"`      // how long it took
	ClusterBytes int64           `json:"cluster_bytes"`     // of all files of the cluster
	StoredBytes  int64           `json:"stored_bytes"`      // that this backup added, without WAL
	Start        repo.Point      `json:"start"`             // where replay begins
	Stop         repo.Point      `json:"stop"`              // where it has made the copy consistent
	WALMissing   []string        `json:"wal_missing"`       // needed WAL files that the archive lacks
	FindingCount int64           `json:"finding_count"`     // blocks whose checksum was wrong
	Pinned       bool            `json:"pinned"`            // it is not expired
	Encrypted    bool            `json:"encrypted"`         // it is read with a secret key only
	Expires      *time.Time      `json:"expires,omitempty"` // when it goes, whatever the policy says
	Role         string          `json:"role"`              // of the server it was taken from
	Host         string          `json:"host,omitempty"`    // where it was taken
}

// DamagedBackup is a backup whose manifest cannot be read.
type DamagedBackup struct {
	ID    string `json:"id"`    // identifier
	Error string `json:"error"` // what is wrong
}

// StartedBackup is one that is not complete.
type StartedBackup struct {
	ID          string    `json:"id"`          // identifier
	Began       time.Time `json:"began"`       // when it began
	Host        string    `json:"host"`        // where it runs, or ran
	PID         int       `json:"pid"`         // its process
	Interrupted bool      `json:"interrupted"` // that process is known to be gone
}

// List describes the repository, or the one cluster of it with systemID.
func List(ctx context.Context, r *repo.Repository, systemID uint64) (*Listing, error) {
	ids := []uint64{systemID}
	if systemID == 0 {
		var err error
		if ids, err = r.Clusters(ctx); err != nil {
			return nil, err
		}
	}
	l := &Listing{Repository: r.Location(), Clusters: []ClusterListing{}}
	for _, id := range ids {
		c, err := listCluster(ctx, r.Cluster(id))
		if err != nil {
			return nil, err
		}
		l.Clusters = append(l.Clusters, *c)
	}
	return l, nil
}

func listCluster(ctx context.Context, c *repo.Cluster) (*ClusterListing, error) {
	cat, err := c.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	out := &ClusterListing{SystemID: repo.SystemID(c.SystemID()), Backups: []BackupListing{}, Damaged: []DamagedBackup{}, Started: []StartedBackup{}}
	archive, err := listArchive(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, s := range cat.Backups {
		missing, err := archive.missing(s)
		if err != nil {
			return nil, err
		}
		out.Backups = append(out.Backups, BackupListing{ID: s.ID, Label: s.Label, Type: s.Type, Parent: s.Parent, Major: s.Major,
			Began: s.Began, Took: s.Took().Seconds(), ClusterBytes: s.ClusterSize, StoredBytes: s.StoredSize + s.ManifestSize,
			Start: s.Start, Stop: s.Stop, WALMissing: missing, FindingCount: s.FindingCount, Role: s.Source.Role, Host: s.Source.Host,
			Pinned: cat.Pins[s.ID].Holds(time.Now()), Encrypted: s.Encryption != nil, Expires: s.Expires})
	}
	for _, d := range cat.Damaged {
		out.Damaged = append(out.Damaged, DamagedBackup{d.ID, d.Err.Error()})
	}
	for _, s := range cat.Started {
		out.Started = append(out.Started, StartedBackup{ID: s.ID, Began: s.Began, Host: s.Host, PID: s.PID, Interrupted: s.Dead()})
	}
	return out, nil
}

// Missing returns the names of the WAL files that a backup needs to become
// consistent and the archive lacks.
func Missing(ctx context.Context, c *repo.Cluster, s *repo.Summary) ([]string, error) {
	missing := []string{}
	err := needed(s, func(name string) error {
		has, err := c.HasWAL(ctx, name)
		if err == nil && !has {
			missing = append(missing, name)
		}
		return err
	})
	return missing, err
}

// needed calls each for the WAL files that a backup needs.
func needed(s *repo.Summary, each func(name string) error) error {
	size := wal.SegmentSize(s.WALSegmentSize)
	for _, r := range s.WAL {
		first, ok1 := wal.ParseFileName(r.First)
		last, ok2 := wal.ParseFileName(r.Last)
		from, ok3 := first.Number(size)
		to, ok4 := last.Number(size)
		if !ok1 || !ok2 || !ok3 || !ok4 {
			return &repo.CorruptError{Object: s.ID, Offset: -1, Reason: "WAL range " + strconv.Quote(r.First+" - "+r.Last)}
		}
		for n := from; n <= to; n++ {
			if err := each(wal.SegmentName(r.Timeline, n, size)); err != nil {
				return err
			}
		}
	}
	for _, name := range s.History {
		if err := each(name); err != nil {
			return err
		}
	}
	return nil
}
