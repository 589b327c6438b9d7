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

func (c *Cluster) readPin(ctx context.Context, id string) (Pin, error) {
	var p Pin
	if err := getNote(ctx, c.driver, c.pinName(id), &p); err != nil {
		return Pin{}, err
	}
	if p.ID != id {
		return Pin{}, &CorruptError{Object: c.pinName(id), Offset: -1, Reason: "it pins another backup"}
	}
	return p, nil
}

// Pin keeps a backup; a pin that it has already is replaced.
func (c *Cluster) Pin(ctx context.Context, id, reason string, until *time.Time) (Pin, error) {
	s, err := c.Summary(ctx, id)
	if err != nil {
		return Pin{}, err
	}
	p := Pin{ID: s.ID, Reason: reason, Until: until, Pinned: now()}
	err = putNote(ctx, c.driver, c.pinName(s.ID), &p)
	if errors.Is(err, ErrExist) {
		if err := c.driver.Delete(ctx, c.pinName(s.ID)); err != nil {
			return Pin{}, err
		}
		err = putNote(ctx, c.driver, c.pinName(s.ID), &p)
	}
	return p, err
}

// Unpin lets a backup be expired again and says whether it was pinned.
func (c *Cluster) Unpin(ctx context.Context, id string) (was bool, full string, err error) {
	s, err := c.Summary(ctx, id)
	if err != nil {
		return false, "", err
	}
	was, err = c.has(ctx, c.pinName(s.ID))
	if err != nil || !was {
		return was, s.ID, err
	}
	return true, s.ID, c.driver.Delete(ctx, c.pinName(s.ID))
}
