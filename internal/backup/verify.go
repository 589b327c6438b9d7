package backup

import (
	"cmp"
	"context"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/progress"
	"tidemark/internal/repo"
	"tidemark/pkg/volume"
)

// VerifyOptions say what is verified, and how.
type VerifyOptions struct {
	SystemID uint64   // only this cluster, 0 for all
	Backups  []string // only these, nil for all
	Deep     bool     // decode every frame, hash every block, check every page and all WAL
	Sample   float64  // percent of that, 0 for all
	Jobs     int
	Progress progress.Reporter
}

// VerifyResult is what a verification found.
type VerifyResult struct {
	Repository string          `json:"repository"`       // where it is
	Deep       bool            `json:"deep"`             // content was looked at, not only whether it is there
	Sample     float64         `json:"sample,omitempty"` // percent that was looked at; absent: all
	Sound      bool            `json:"sound"`            // nothing is wrong
	Locked     bool            `json:"locked"`           // without a secret key only stored bytes could be checked, not what they hold
	Damages    []repo.Damage   `json:"damages"`          // of objects that belong to no cluster
	Clusters   []VerifyCluster `json:"clusters"`         // by system identifier
}

// VerifyCluster is what a verification found of one cluster.
type VerifyCluster struct {
	SystemID repo.SystemID  `json:"system_identifier"` // of the cluster
	Backups  []VerifyBackup `json:"backups"`           // the oldest first
	Damages  []repo.Damage  `json:"damages"`           // objects that are not as they were written
	Objects  int64          `json:"objects"`           // how many were looked at, without WAL
	WALFiles int64          `json:"wal_files"`         // how many of the archive were read
	Blocks   int64          `json:"blocks"`            // how many were decoded and hashed
	Bytes    int64          `json:"bytes"`             // stored bytes that were read
	Took     float64        `json:"took_seconds"`      // how long it took
}

// VerifyBackup says whether a backup can be restored.
type VerifyBackup struct {
	ID         string   `json:"id"`          // identifier
	Sound      bool     `json:"sound"`       // nothing that it needs is damaged or missing
	WALMissing []string `json:"wal_missing"` // needed WAL files that the archive lacks
}

// Verify compares a repository with what it should hold.
func Verify(ctx context.Context, r *repo.Repository, o VerifyOptions) (*VerifyResult, error) {
	o.Progress = progress.Or(o.Progress)
	o.Jobs = cmp.Or(o.Jobs, runtime.GOMAXPROCS(0))
	ids := []uint64{o.SystemID}
	if o.SystemID == 0 {
		var err error
		if ids, err = r.Clusters(ctx); err != nil {
			return nil, err
		}
	}
	keys, err := r.VerifyKeys(ctx)
	if err != nil {
		return nil, err
	}
	res := &VerifyResult{Repository: r.Location(), Deep: o.Deep, Sample: o.Sample, Sound: len(keys.Damages) == 0, Damages: keys.Damages, Clusters: []VerifyCluster{}}
	for _, id := range ids {
		c, locked, err := verifyCluster(ctx, r.Cluster(id), o)
		if err != nil {
			return nil, err
		}
		res.Locked = res.Locked || locked
		res.Clusters = append(res.Clusters, *c)
		res.Sound = res.Sound && len(c.Damages) == 0 && !slices.ContainsFunc(c.Backups, func(b VerifyBackup) bool { return !b.Sound })
	}
	return res, nil
}

func verifyCluster(ctx context.Context, c *repo.Cluster, o VerifyOptions) (*VerifyCluster, bool, error) {
	begin := time.Now()
	ids, err := fullIDs(ctx, c, o.Backups)
	if err != nil {
		return nil, false, err
	}
	ro := repo.VerifyOptions{Backups: ids, Deep: o.Deep, Sample: o.Sample, Seed: rand.Uint64(), Jobs: o.Jobs, Page: pageJudge(),
		Total: func(n int64) { o.Progress.Phase("reading blocks", n, progress.Bytes) }, Add: o.Progress.Add}
	v, err := c.Verify(ctx, ro)
	if err != nil {
		return nil, false, err
	}
	out := &VerifyCluster{SystemID: repo.SystemID(c.SystemID()), Backups: []VerifyBackup{}, Damages: v.Damages, Objects: v.Objects, Blocks: v.Blocks, Bytes: v.Bytes}
	if o.Deep {
		ro.Total = func(n int64) { o.Progress.Phase("reading WAL", n, progress.Bytes) }
		w, err := c.VerifyWAL(ctx, ro)
		if err != nil {
			return nil, false, err
		}
		out.Damages, out.WALFiles, out.Bytes = append(out.Damages, w.Damages...), w.Objects, out.Bytes+w.Bytes
	}
	err = out.judge(ctx, c, ids)
	out.Took = time.Since(begin).Seconds()
	return out, v.Locked, err
}

// fullIDs resolves "latest" and the beginnings of identifiers.
func fullIDs(ctx context.Context, c *repo.Cluster, ids []string) ([]string, error) {
	out := slices.Clone(ids)
	for i, id := range out {
		s, err := c.Summary(ctx, id)
		switch {
		case err == nil:
			out[i] = s.ID
		case id == "latest" || exit.CodeOf(err) == exit.Usage: // it may be any of several
			return nil, err
		}
	}
	return out, nil
}

// judge says of each backup whether it can be restored.
func (v *VerifyCluster) judge(ctx context.Context, c *repo.Cluster, ids []string) error {
	hit := map[string]bool{}
	damagedWAL := map[string]bool{}
	for _, d := range v.Damages {
		damagedWAL[d.Object] = true
		for _, f := range d.Files {
			hit[f.Backup] = true
		}
	}
	cat, err := c.Catalog(ctx)
	if err != nil {
		return err
	}
	archive, err := listArchive(ctx, c)
	if err != nil {
		return err
	}
	for _, s := range cat.Backups {
		if ids != nil && !slices.Contains(ids, s.ID) {
			continue
		}
		missing, err := archive.missing(s)
		if err != nil {
			return err
		}
		b := VerifyBackup{ID: s.ID, WALMissing: missing, Sound: len(missing) == 0 && !hit[s.ID] && !damagedWAL[c.ManifestName(s.ID)]}
		err = needed(s, func(name string) error {
			b.Sound = b.Sound && !damagedWAL[c.WALName(name)]
			return nil
		})
		if err != nil {
			return err
		}
		v.Backups = append(v.Backups, b)
	}
	for _, d := range cat.Damaged {
		if ids == nil || slices.Contains(ids, d.ID) {
			v.Backups = append(v.Backups, VerifyBackup{ID: d.ID, WALMissing: []string{}})
		}
	}
	return nil
}

// pageJudge checks the checksum of a page in a backup. A page that was written
// after the backup began may be torn: replay makes it anew. One that was
// damaged already when it was backed up is known.
func pageJudge() func(s *repo.Summary, path string, block int64, page []byte) string {
	var sizes sync.Map // of relation segments, by backup
	return func(s *repo.Summary, path string, block int64, page []byte) string {
		seg, ok := volume.ParseRelPath(path)
		if !s.Checksums || !ok || len(page) != int(s.BlockSize) {
			return ""
		}
		size, ok := sizes.Load(s.ID)
		if !ok {
			size = relSegSize(s)
			sizes.Store(s.ID, size)
		}
		number := seg.FirstBlock(size.(uint32)) + uint32(block)
		if volume.CheckPage(page, number).OK() || volume.PageLSN(page) >= s.Start.LSN {
			return ""
		}
		if slices.ContainsFunc(s.Findings, func(f repo.Finding) bool { return f.Path == path && f.Block == number }) || s.FindingCount > repo.MaxFindings {
			return ""
		}
		return "the page's checksum is wrong, and was right when it was backed up"
	}
}

// relSegSize is how many blocks a segment of a relation has, by the backup's
// control file; 1 GiB of them where that cannot be read.
func relSegSize(s *repo.Summary) uint32 {
	c, err := volume.ParseControl(s.Control)
	if err != nil || c.RelSegSize == 0 {
		return 1 << 30 / s.BlockSize
	}
	return c.RelSegSize
}
