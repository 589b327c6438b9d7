package backup

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"tidemark/internal/exit"
	"tidemark/internal/repo"
)

// PinResult is what pin and unpin did.
type PinResult struct {
	Backup string     `json:"backup"`           // identifier
	Pinned bool       `json:"pinned"`           // it is now
	Was    bool       `json:"was"`              // it was before
	Reason string     `json:"reason,omitempty"` // the operator's words
	Until  *time.Time `json:"until,omitempty"`  // after that the pin counts no more

	Repository string `json:"repository"` // where it is
}

// DeleteResult is what a deletion removed.
type DeleteResult struct {
	Backups   []string `json:"backups"`    // identifiers
	WaitsFor  []string `json:"waits_for"`  // backups that run: packs stay until the next expire
	Packs     int      `json:"packs"`      // how many packs were removed
	PackBytes int64    `json:"pack_bytes"` // their size
}

// KeyResult is what key list, add, remove and rotate print.
type KeyResult struct {
	Repository string          `json:"repository"` // where it is
	Keys       []repo.VaultKey `json:"keys"`       // the oldest first
}

// Delete removes backups, complete or damaged or left by a process that is
// gone, and the packs that no other one needs. WAL stays: that is for Expire.
func Delete(ctx context.Context, c *repo.Cluster, ids []string) (*DeleteResult, error) {
	cat, err := c.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if err := deletable(c, cat, id); err != nil {
			return nil, err
		}
	}
	res := &DeleteResult{Backups: []string{}, WaitsFor: []string{}}
	for _, id := range ids {
		if err := c.DeleteBackup(ctx, id); errors.Is(err, repo.ErrPinned) {
			return res, exit.New(exit.Refused, "dbbackup unpin "+id, "backup %s was pinned in this moment", id)
		} else if err != nil {
			return res, err
		}
		res.Backups = append(res.Backups, id)
	}
	plan, err := c.Sweep(ctx, nil, false)
	res.WaitsFor = append(res.WaitsFor, plan.Waits...)
	res.Packs, res.PackBytes = len(plan.Packs), plan.Bytes
	return res, err
}

func deletable(c *repo.Cluster, cat *repo.Catalog, id string) error {
	if cat.Pins[id].Holds(time.Now()) {
		return exit.New(exit.Refused, "dbbackup unpin "+id, "backup %s is pinned", id)
	}
	for _, s := range cat.Started {
		if s.ID == id && !s.Dead() {
			return exit.New(exit.Refused, "stop that process; if its host is lost, dbbackup expire removes the rest after a week",
				"backup %s may be running, on %s as process %d", id, s.Host, s.PID)
		}
		if s.ID == id {
			return nil
		}
	}
	known := slices.ContainsFunc(cat.Backups, func(s *repo.Summary) bool { return s.ID == id }) ||
		slices.ContainsFunc(cat.Damaged, func(d repo.Damaged) bool { return d.ID == id })
	if !known {
		return exit.New(exit.Failed, "dbbackup list shows what there is; a backup is deleted by its full identifier", "there is no backup %s in %s", id, c.Repository().Location())
	}
	return nil
}

func sortBy[T any, K cmp.Ordered](list []T, key func(T) K) {
	slices.SortFunc(list, func(a, b T) int { return cmp.Compare(key(a), key(b)) })
}
