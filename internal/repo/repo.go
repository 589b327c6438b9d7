package repo

import (
	"context"
	"crypto/rand"
	"encoding/hex"
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
	sealedVersion = 2 // of an encrypted one: who does not know keys must not write in the clear
)

// marker is the content of repository.json.
type marker struct {
	Format  string    `json:"format"`
	Version int       `json:"version"`
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	// Encrypted says that nothing is written in the clear, whatever has become
	// of the keys.
	Encrypted bool `json:"encrypted,omitempty"`
}

// Repository is an open repository.
type Repository struct {
	driver Driver
	id     string
	ring   *keyring // nil where nothing is encrypted
	state  string   // directory for what a writer remembers, "" for the default
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
	var m marker
	err := getNote(ctx, d, markerName, &m)
	if errors.Is(err, ErrNotExist) {
		return nil, exit.Wrap(err, exit.Failed, hintNoRepository(d.Location()), "%s is not a repository", d.Location())
	}
	if err != nil {
		return nil, exit.Wrap(err, exit.Failed, "", "cannot open the repository %s", d.Location())
	}
	if m.Format != markerFormat {
		return nil, &CorruptError{Object: markerName, Offset: -1, Reason: "it does not describe a repository"}
	}
	if m.Version != formatVersion && m.Version != sealedVersion || m.Encrypted != (m.Version == sealedVersion) {
		return nil, exit.New(exit.Refused, "use a newer version of this program",
			"the repository %s has format version %d, this program knows %d", d.Location(), m.Version, sealedVersion)
	}
	r := &Repository{driver: d, id: m.ID}
	if m.Encrypted {
		r.ring = newKeyring(d)
	}
	return r, nil
}

// Init makes a repository at a location: in a directory that is missing (its
// parent must exist) or empty, or in a bucket. With recipients it is encrypted
// for them. Where there is one already, it is opened; recipients it has to have
// then.
func Init(ctx context.Context, location string, recipients ...string) (r *Repository, created bool, err error) {
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
	return InitDriver(ctx, d, recipients...)
}

// InitDriver makes a repository in a store that holds no objects.
func InitDriver(ctx context.Context, d Driver, recipients ...string) (r *Repository, created bool, err error) {
	if r, err := OpenDriver(ctx, d); err == nil {
		return r, false, r.mustHave(ctx, recipients)
	} else if !errors.Is(err, ErrNotExist) {
		return nil, false, err
	}
	if p, ok := d.(preparer); ok {
		if err := p.prepare(ctx); err != nil {
			return nil, false, err
		}
	}
	if err := mustBeEmpty(ctx, d, len(recipients) > 0); err != nil {
		return nil, false, err
	}
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, false, err
	}
	m := &marker{Format: markerFormat, Version: formatVersion, ID: hex.EncodeToString(id[:]), Created: now()}
	if len(recipients) > 0 { // the keys first: an encrypted repository without keys is of no use
		m.Version, m.Encrypted = sealedVersion, true
		if _, err := newEpoch(ctx, d, recipients); err != nil {
			return nil, false, err
		}
	}
	err = putNote(ctx, d, markerName, m)
	if err != nil && !errors.Is(err, ErrExist) {
		return nil, false, exit.Wrap(err, exit.Failed, "", "cannot make a repository at %s", d.Location())
	}
	created = err == nil
	r, err = OpenDriver(ctx, d)
	return r, created, err
}

// mustHave fails unless the repository is encrypted for recipients.
func (r *Repository) mustHave(ctx context.Context, recipients []string) error {
	if len(recipients) == 0 {
		return nil
	}
	keys, err := r.Keys(ctx)
	if err != nil {
		return err
	}
	for _, want := range recipients {
		_, text, err := parseRecipient(want)
		if err != nil {
			return err
		}
		if len(keys) == 0 || !slices.ContainsFunc(keys[len(keys)-1].Recipients, func(p Recipient) bool { return p.Key == text }) {
			return exit.New(exit.Refused, "add it with: dbbackup key add --identity FILE "+text, "%s is a repository already, and not encrypted for %s", r.Location(), text)
		}
	}
	return nil
}

// mustBeEmpty refuses a store that holds something else; keys may be left of
// an attempt to make an encrypted repository.
func mustBeEmpty(ctx context.Context, d Driver, keys bool) error {
	var found string
	stop := errors.New("found")
	err := d.List(ctx, "", func(i ObjectInfo) error {
		if keys && strings.HasPrefix(i.Name, keysPrefix) {
			return nil
		}
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
	return &Cluster{repo: r, driver: r.driver, systemID: systemID, prefix: strconv.FormatUint(systemID, 10) + "/", clock: now}
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

	clock   func() time.Time // names backups: one time is never given twice
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
