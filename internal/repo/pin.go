package repo

import (
	"context"
	"errors"
	"time"
)

// Pin keeps a backup from being expired.
type Pin struct {
	ID     string     `json:"id"`               // of the backup
	Reason string     `json:"reason,omitempty"` // the operator's words
	Until  *time.Time `json:"until,omitempty"`  // after that it counts no more; absent: until it is unpinned
	Pinned time.Time  `json:"pinned"`           // since when
}

// Holds tells whether the pin counts at a time.
func (p Pin) Holds(at time.Time) bool { return p.ID != "" && (p.Until == nil || at.Before(*p.Until)) }

func (c *Cluster) pinName(id string) string { return c.prefix + "backups/" + id + "/pin" }

// nextPinName is where a pin is while it takes the place of another.
func (c *Cluster) nextPinName(id string) string { return c.prefix + "backups/" + id + "/pin-next" }

// readPin reads the pin of a backup. While one takes the place of another,
// there is one of the two at any time, but none may be at either place: hence
// the second look.
func (c *Cluster) readPin(ctx context.Context, id string) (p Pin, err error) {
	for _, name := range []string{c.pinName(id), c.nextPinName(id), c.pinName(id)} {
		p = Pin{}
		if err = getNote(ctx, c.driver, name, &p); errors.Is(err, ErrNotExist) {
			continue
		}
		if err == nil && p.ID != id {
			err = &CorruptError{Object: name, Offset: -1, Reason: "it pins another backup"}
		}
		break
	}
	if err != nil {
		return Pin{}, err
	}
	return p, nil
}

// Pin keeps a backup; a pin that it has already is replaced. It fails where
// somebody removes the backup at the same time, and otherwise holds: see
// removal.go.
func (c *Cluster) Pin(ctx context.Context, id, reason string, until *time.Time) (Pin, error) {
	s, err := c.Summary(ctx, id)
	if err != nil {
		return Pin{}, err
	}
	p := Pin{ID: s.ID, Reason: reason, Until: until, Pinned: now()}
	err = putNote(ctx, c.driver, c.pinName(s.ID), &p)
	if errors.Is(err, ErrExist) {
		err = c.replacePin(ctx, &p)
	}
	if err == nil {
		err = c.mustStay(ctx, s.ID)
	}
	return p, err
}

// replacePin puts a pin in the place of another, or goes on with an interrupted
// replacement: the old one goes only while the new one is there.
func (c *Cluster) replacePin(ctx context.Context, p *Pin) error {
	next, name := c.nextPinName(p.ID), c.pinName(p.ID)
	if err := c.driver.Delete(ctx, next); err != nil { // the other one is there
		return err
	}
	if err := putNote(ctx, c.driver, next, p); err != nil {
		return err
	}
	if err := c.driver.Delete(ctx, name); err != nil {
		return err
	}
	if err := putNote(ctx, c.driver, name, p); err != nil {
		return err
	}
	return c.driver.Delete(ctx, next)
}

// Unpin lets a backup be expired again and says whether it was pinned.
func (c *Cluster) Unpin(ctx context.Context, id string) (was bool, full string, err error) {
	s, err := c.Summary(ctx, id)
	if err != nil {
		return false, "", err
	}
	for _, name := range []string{c.nextPinName(s.ID), c.pinName(s.ID)} {
		has, err := c.has(ctx, name)
		if err == nil && has {
			was, err = true, c.driver.Delete(ctx, name)
		}
		if err != nil {
			return was, s.ID, err
		}
	}
	return was, s.ID, nil
}
