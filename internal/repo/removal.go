package repo

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"tidemark/internal/exit"
)

// Removing a backup while somebody pins it. Nothing is locked; the order decides:
//
//	a remover  1. puts its note "removing-<random>"
//	           2. only then looks for a pin. If one holds, it takes its note
//	              back and leaves the backup
//	           3. removes the other notes, then the manifest, then its own note
//	a pinner   A. puts the pin
//	           B. only then looks for notes of removers, and waits until there
//	              is none
//	           C. looks for the manifest. The pin holds if it is there
//
// Is a backup removed whose pin was confirmed? If 2 came before A, then 1 came
// before B, and the pinner waits for 3: at C the manifest is gone, and the pin
// is not confirmed. If A came before 2, the remover sees the pin. A pin that
// takes the place of another is put beside it first ("pin-next"), so that there
// is no moment without one.
//
// A remover may die. Its note counts no more once its process is known to be
// gone, or after removalLease, within which a remover must have come to an end:
// it looks at the time once more before the manifest goes.

const (
	removalLease = 10 * time.Minute
	removalWork  = 5 * time.Minute // of the lease, for clocks that differ
	pinPatience  = 30 * time.Second
	pinInterval  = 50 * time.Millisecond
)

// ErrPinned is returned for a backup that is not removed because of its pin.
var ErrPinned = errors.New("the backup is pinned")

// removal is the note of somebody who is about to remove a backup.
type removal struct {
	ID   string    `json:"id"` // of the backup
	Host string    `json:"host"`
	PID  int       `json:"pid"`
	Boot string    `json:"boot,omitempty"`
	Tick string    `json:"tick,omitempty"`
	At   time.Time `json:"at"`
}

func (r *removal) over() bool {
	s := Started{Host: r.Host, PID: r.PID, Boot: r.Boot, Tick: r.Tick}
	return s.Dead() || time.Since(r.At) > removalLease
}

const removingPrefix = "removing-"

// announceRemoval puts the note.
func (c *Cluster) announceRemoval(ctx context.Context, id string) (name string, at time.Time, err error) {
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return "", time.Time{}, err
	}
	s := newStarted("", now())
	r := &removal{ID: id, Host: s.Host, PID: s.PID, Boot: s.Boot, Tick: s.Tick, At: s.Began}
	name = c.prefix + "backups/" + id + "/" + removingPrefix + hex.EncodeToString(random[:])
	return name, r.At, putNote(ctx, c.driver, name, r)
}

// DeleteBackup removes a backup, unless it is pinned (ErrPinned). Its packs are
// left for Sweep. The manifest goes last: until then the backup is whole.
func (c *Cluster) DeleteBackup(ctx context.Context, id string) (err error) {
	// A store's lock shows here, before anything else is written.
	if err := c.driver.Delete(ctx, c.startedName(id)); err != nil {
		return err
	}
	note, at, err := c.announceRemoval(ctx, id)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), suspendTime)
		defer cancel()
		err = errors.Join(err, unlessLocked(c.driver.Delete(ctx, note)))
	}()
	p, err := c.readPin(ctx, id)
	switch {
	case err == nil && p.Holds(time.Now()):
		return ErrPinned
	case err != nil && !errors.Is(err, ErrNotExist):
		return err
	}
	if err := c.removeNotes(ctx, id); err != nil {
		return err
	}
	if time.Since(at) > removalWork {
		return exit.New(exit.Failed, "run the command again", "the store is too slow to remove backup %s safely", id)
	}
	return c.driver.Delete(ctx, c.manifestHeader(id).Name)
}

// mustStay waits until nobody is about to remove a backup, and fails if it is gone.
func (c *Cluster) mustStay(ctx context.Context, id string) error {
	for begin := time.Now(); ; {
		by, err := c.remover(ctx, id)
		if err != nil {
			return err
		}
		if by == nil {
			break
		}
		if time.Since(begin) > pinPatience {
			return exit.New(exit.Failed, "see with dbbackup list whether the backup is there still, and pin it again",
				"process %d on %s may be removing backup %s", by.PID, by.Host, id)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pinInterval):
		}
	}
	has, err := c.has(ctx, c.manifestHeader(id).Name)
	if err != nil || has {
		return err
	}
	err = errors.Join(c.driver.Delete(ctx, c.pinName(id)), c.driver.Delete(ctx, c.nextPinName(id)))
	return errors.Join(noBackup(c, id, fmt.Errorf("it was removed in this moment: %w", ErrNotExist)), unlessLocked(err))
}

// remover returns one who may be removing a backup, nil where there is none.
func (c *Cluster) remover(ctx context.Context, id string) (*removal, error) {
	var names []string
	prefix := c.prefix + "backups/" + id + "/"
	err := c.driver.List(ctx, prefix, func(i ObjectInfo) error {
		if strings.HasPrefix(strings.TrimPrefix(i.Name, prefix), removingPrefix) {
			names = append(names, i.Name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		r := new(removal)
		err := getNote(ctx, c.driver, name, r)
		if err != nil && !errors.Is(err, ErrNotExist) && !isCorrupt(err) {
			return nil, err
		}
		if err == nil && !r.over() {
			return r, nil
		}
	}
	return nil, nil
}
