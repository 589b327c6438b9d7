package repo

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"tidemark/internal/exit"
)

// The marker object. Part of the format, do not change.
const (
	markerName    = "repository.json"
	markerFormat  = "tidemark repository"
	formatVersion = 1
	maxMarker     = 1 << 16
)

// marker is the content of repository.json.
type marker struct {
	Format  string    `json:"format"`
	Version int       `json:"version"`
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
}

// Repository is an open repository.
type Repository struct {
	driver Driver
	id     string
}

// hintNoRepository is what to do when there is no repository at a place.
func hintNoRepository(location string) string {
	return fmt.Sprintf("check the path, and that the disk it should be on is mounted; to make a new repository there: dbbackup init --repo %s", location)
}

// Open opens the repository at a location, as ParseLocation takes it.
func Open(ctx context.Context, location string) (*Repository, error) {
	l, err := ParseLocation(location)
	if err != nil {
		return nil, err
	}
	d, err := l.Driver(ctx)
	if err != nil {
		return nil, err
	}
	return OpenDriver(ctx, d)
}

// OpenDriver opens the repository in a store.
func OpenDriver(ctx context.Context, d Driver) (*Repository, error) {
	data, _, err := getBytes(ctx, d, markerName, 0, -1, maxMarker, nil)
	if errors.Is(err, ErrNotExist) {
		return nil, exit.Wrap(err, exit.Failed, hintNoRepository(d.Location()), "%s is not a repository", d.Location())
	}
	if err != nil {
		return nil, exit.Wrap(err, exit.Failed, "", "cannot open the repository %s", d.Location())
	}
	var m marker
	if err := json.Unmarshal(data, &m); err != nil || m.Format != markerFormat {
		return nil, &CorruptError{Object: markerName, Offset: -1, Reason: "it does not describe a repository", Err: err}
	}
	if m.Version != formatVersion {
		return nil, exit.New(exit.Refused, "use a newer version of this program",
			"the repository %s has format version %d, this program knows %d", d.Location(), m.Version, formatVersion)
	}
	return &Repository{driver: d, id: m.ID}, nil
}

// Init makes a repository at a location: in a directory that is missing (its
// parent must exist) or empty, or in a bucket. Where there is one already, it
// is opened.
func Init(ctx context.Context, location string) (r *Repository, created bool, err error) {
	l, err := ParseLocation(location)
	if err != nil {
		return nil, false, err
	}
	if err := l.prepare(); err != nil {
		return nil, false, err
	}
	d, err := l.Driver(ctx)
	if err != nil {
		return nil, false, err
	}
	if m, ok := d.(rootMaker); ok {
		if err := m.makeRoot(ctx); err != nil {
			return nil, false, err
		}
	}
	return InitDriver(ctx, d)
}

// InitDriver makes a repository in a store that holds no objects.
func InitDriver(ctx context.Context, d Driver) (r *Repository, created bool, err error) {
	if r, err := OpenDriver(ctx, d); err == nil {
		return r, false, nil
	} else if !errors.Is(err, ErrNotExist) {
		return nil, false, err
	}
	if p, ok := d.(preparer); ok {
		if err := p.prepare(ctx); err != nil {
			return nil, false, err
		}
	}
	if err := mustBeEmpty(ctx, d); err != nil {
		return nil, false, err
	}
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, false, err
	}
	data, err := json.MarshalIndent(marker{
		Format: markerFormat, Version: formatVersion, ID: hex.EncodeToString(id[:]), Created: now(),
	}, "", "  ")
	if err != nil {
		return nil, false, err
	}
	err = putBytes(ctx, d, markerName, append(data, '\n'))
	if err != nil && !errors.Is(err, ErrExist) {
		return nil, false, exit.Wrap(err, exit.Failed, "", "cannot make a repository at %s", d.Location())
	}
	created = err == nil
	r, err = OpenDriver(ctx, d)
	return r, created, err
}

func mustBeEmpty(ctx context.Context, d Driver) error {
	var found string
	stop := errors.New("found")
	err := d.List(ctx, "", func(i ObjectInfo) error {
		found = i.Name
		return stop
	})
	if errors.Is(err, stop) {
		return exit.New(exit.Refused, "give an empty directory, or one that does not exist yet",
			"%s is not a repository and not empty: it holds %s", d.Location(), found)
	}
	return err
}

// Location names the repository for people.
func (r *Repository) Location() string { return r.driver.Location() }

// ID is the repository's own random identifier.
func (r *Repository) ID() string { return r.id }

// Clusters returns the system identifiers that the repository holds anything of.
func (r *Repository) Clusters(ctx context.Context) ([]uint64, error) {
	var ids []uint64
	last := uint64(0)
	add := func(folder string) {
		if id, err := parseSystemID(folder); err == nil && id != last {
			ids, last = append(ids, id), id
		}
	}
	var err error
	if f, ok := r.driver.(folderLister); ok {
		var names []string
		names, err = f.folders(ctx)
		for _, name := range names {
			add(name)
		}
	} else {
		err = r.driver.List(ctx, "", func(i ObjectInfo) error {
			if top, _, ok := strings.Cut(i.Name, "/"); ok {
				add(top)
			}
			return nil
		})
	}
	slices.Sort(ids)
	return slices.Compact(ids), err
}

// Cluster returns the part of the repository that belongs to one cluster. It
// may be empty yet.
func (r *Repository) Cluster(systemID uint64) *Cluster {
	return &Cluster{repo: r, driver: r.driver, systemID: systemID, prefix: strconv.FormatUint(systemID, 10) + "/"}
}

// OnlyCluster returns the one cluster that the repository holds backups or WAL
// of, for commands that were not told which. It fails where there are several.
func (r *Repository) OnlyCluster(ctx context.Context) (*Cluster, error) {
	ids, err := r.Clusters(ctx)
	if err != nil {
		return nil, err
	}
	switch len(ids) {
	case 0:
		return nil, exit.New(exit.Failed, "take a first backup with: dbbackup create --repo "+r.Location(),
			"the repository %s is empty", r.Location())
	case 1:
		return r.Cluster(ids[0]), nil
	}
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = strconv.FormatUint(id, 10)
	}
	return nil, exit.New(exit.Usage, "choose one of them with --system-id",
		"the repository %s holds %d clusters: %s", r.Location(), len(ids), strings.Join(names, ", "))
}

// Sweep removes what dead processes left unfinished in the store.
func (r *Repository) Sweep(ctx context.Context) (removed int, err error) {
	if s, ok := r.driver.(Sweeper); ok {
		return s.Sweep(ctx)
	}
	return 0, nil
}

// Cluster is one cluster's part of a repository. Its methods may be called
// from several goroutines at once.
type Cluster struct {
	repo     *Repository
	driver   Driver
	systemID uint64
	prefix   string // "<system identifier>/"

	indexes indexCache
	segSize struct {
		sync.Mutex
		size uint32
	}
}

// SystemID is the cluster's system identifier.
func (c *Cluster) SystemID() uint64 { return c.systemID }

// Repository is the repository that c is a part of.
func (c *Cluster) Repository() *Repository { return c.repo }

func parseSystemID(s string) (uint64, error) {
	id, err := strconv.ParseUint(s, 10, 64)
	if err == nil && strconv.FormatUint(id, 10) != s {
		err = strconv.ErrSyntax
	}
	return id, err
}

// now is the present in the form in which times are stored.
func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
