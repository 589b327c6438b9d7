package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"tidemark/internal/exit"
)

// Catalog is what backups there are of a cluster.
type Catalog struct {
	Backups []*Summary     // complete ones, the oldest first
	Damaged []Damaged      // manifests that cannot be read
	Started []Started      // begun and not complete: running, or interrupted
	Pins    map[string]Pin // by backup
}

// Damaged is a backup whose manifest cannot be read.
type Damaged struct {
	ID  string
	Err error
}

// Started is the object that announces a backup before its first pack.
type Started struct {
	ID    string    `json:"id"`
	Tool  string    `json:"tool"`
	Host  string    `json:"host"`
	PID   int       `json:"pid"`
	Boot  string    `json:"boot,omitempty"` // the host's boot id
	Tick  string    `json:"tick,omitempty"` // when the process began, in the kernel's ticks
	Began time.Time `json:"began"`
	Copy  *CopyNote `json:"copy,omitempty"` // it copies a backup from another repository

	stopped bool // it says itself that it is over
}

// CopyNote says what a copy brings: packs of other backups than its own.
type CopyNote struct {
	Backup string   `json:"backup"`           // the backup that is copied
	Owners []string `json:"owners,omitempty"` // the backups that its packs are named after
}

func (s *Started) owners() []string {
	if s == nil || s.Copy == nil {
		return nil
	}
	return s.Copy.Owners
}

func (s *Started) copyOf() string {
	if s.Copy == nil {
		return ""
	}
	return s.Copy.Backup
}

// Catalog lists the backups of the cluster.
func (c *Cluster) Catalog(ctx context.Context) (*Catalog, error) {
	list, err := c.listBackups(ctx)
	if err != nil {
		return nil, err
	}
	cat := &Catalog{Pins: map[string]Pin{}}
	for id, l := range list {
		if !l.manifest {
			continue
		}
		s, _, err := c.readSummary(ctx, id)
		switch {
		case err == nil:
			cat.Backups = append(cat.Backups, s)
		case errors.Is(err, ErrNotExist): // deleted just now
			continue
		case ctx.Err() != nil:
			return nil, ctx.Err()
		default:
			cat.Damaged = append(cat.Damaged, Damaged{ID: id, Err: err})
		}
		if l.pinned {
			if cat.Pins[id], err = c.readPin(ctx, id); err != nil && !errors.Is(err, ErrNotExist) {
				return nil, err
			}
		}
	}
	for _, id := range list.unfinished() {
		s, err := c.readStarted(ctx, id, list)
		if errors.Is(err, ErrNotExist) {
			continue
		}
		if isCorrupt(err) { // not known whose it is: it counts as running
			cat.Damaged = append(cat.Damaged, Damaged{ID: id, Err: err})
			continue
		}
		if err != nil {
			return nil, err
		}
		cat.Started = append(cat.Started, *s)
	}
	slices.SortFunc(cat.Backups, func(a, b *Summary) int { return strings.Compare(a.ID, b.ID) })
	slices.SortFunc(cat.Damaged, func(a, b Damaged) int { return strings.Compare(a.ID, b.ID) })
	slices.SortFunc(cat.Started, func(a, b Started) int { return strings.Compare(a.ID, b.ID) })
	return cat, nil
}

// listed is what the store holds below the name of one backup.
type listed struct {
	manifest, started, stopped, pinned bool
	parts                              int
}

type listing map[string]*listed

// complete tells whether a backup has its manifest.
func (l listing) complete(id string) bool { return l[id] != nil && l[id].manifest }

// unfinished returns the backups without a manifest, in order.
func (l listing) unfinished() []string {
	var ids []string
	for id, b := range l {
		if !b.manifest {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (c *Cluster) listBackups(ctx context.Context) (listing, error) {
	list := listing{}
	prefix := c.prefix + "backups/"
	err := c.driver.List(ctx, prefix, func(i ObjectInfo) error {
		id, what, _ := strings.Cut(strings.TrimPrefix(i.Name, prefix), "/")
		l := list[id]
		if l == nil {
			l = &listed{}
			list[id] = l
		}
		switch {
		case what == "manifest.zst":
			l.manifest = true
		case what == "started":
			l.started = true
		case what == "stopped":
			l.stopped = true
		case what == "pin", what == "pin-next":
			l.pinned = true
		case strings.HasPrefix(what, "part-"):
			l.parts++
		}
		return nil
	})
	return list, err
}

func (c *Cluster) startedName(id string) string { return c.prefix + "backups/" + id + "/started" }

func (c *Cluster) readStarted(ctx context.Context, id string, list listing) (*Started, error) {
	s := new(Started)
	if err := getNote(ctx, c.driver, c.startedName(id), s); err != nil {
		return nil, err
	}
	if s.ID != id {
		return nil, &CorruptError{Object: c.startedName(id), Offset: -1, Reason: "it announces another backup"}
	}
	s.stopped = list[id] != nil && list[id].stopped
	return s, nil
}

// Summary returns the summary of a backup, "latest" being the newest one. The
// beginning of an identifier is enough, where only one begins so.
func (c *Cluster) Summary(ctx context.Context, id string) (*Summary, error) {
	if id == "latest" || id == "" {
		cat, err := c.Catalog(ctx)
		if err != nil {
			return nil, err
		}
		if len(cat.Backups) == 0 {
			return nil, exit.New(exit.Failed, "take one with: dbbackup create --repo "+c.repo.Location(),
				"the repository %s holds no complete backup of cluster %d", c.repo.Location(), c.systemID)
		}
		return cat.Backups[len(cat.Backups)-1], nil
	}
	if !ValidName(id) || strings.Contains(id, "/") {
		return nil, noBackup(c, id, ErrBadName)
	}
	s, _, err := c.readSummary(ctx, id)
	if errors.Is(err, ErrNotExist) {
		return c.beginning(ctx, id, err)
	}
	return s, err
}

// beginning returns the summary of the one backup whose identifier begins so.
func (c *Cluster) beginning(ctx context.Context, prefix string, none error) (*Summary, error) {
	list, err := c.listBackups(ctx)
	if err != nil {
		return nil, err
	}
	var ids []string
	for id, l := range list {
		if l.manifest && strings.HasPrefix(id, prefix) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	switch len(ids) {
	case 0:
		return nil, noBackup(c, prefix, none)
	case 1:
		s, _, err := c.readSummary(ctx, ids[0])
		return s, err
	}
	return nil, exit.New(exit.Usage, "name one of them: "+strings.Join(ids[:min(len(ids), 5)], ", "),
		"%d backups in %s begin with %s", len(ids), c.repo.Location(), prefix)
}

// ErrNoBackup is returned when a repository lacks the backup that was named.
var ErrNoBackup = errors.New("no such backup")

type lackingError struct{ error }

func (lackingError) Is(target error) bool { return target == ErrNoBackup }
func (e lackingError) Unwrap() error      { return e.error }

func noBackup(c *Cluster, id string, err error) error {
	return exit.Wrap(lackingError{err}, exit.Failed, "dbbackup list --repo "+c.repo.Location()+" shows what there is",
		"no backup %s of cluster %d in %s", id, c.systemID, c.repo.Location())
}

func (c *Cluster) packHeader(name string, blockSize uint32) header {
	return header{Kind: kindPack, SystemID: c.systemID, MaxBlock: blockSize, Name: c.prefix + "packs/" + name + ".zst"}
}

// isPack reports whether an object of that name is a pack.
func isPack(name string) bool { return strings.Contains(name, "/packs/") }

func packName(id string, n int) string { return fmt.Sprintf("%s/%06d", id, n) }
