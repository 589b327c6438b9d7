package repo

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/sync/errgroup"
)

// VerifyWAL reads every WAL file of the archive, or a sample of them, and checks
// every byte: of an encrypted one, without a key, the stored bytes.
func (c *Cluster) VerifyWAL(ctx context.Context, o VerifyOptions) (*Verification, error) {
	v := &verifier{c: c, o: o, v: &Verification{Damages: []Damage{}, Locked: !c.repo.Unlocked()}, told: map[string]bool{}}
	var all []WALObject
	var total int64
	err := c.ListWAL(ctx, func(w WALObject) error {
		if v.chosen(w.String(), 0) {
			all = append(all, w)
			total += w.Stored
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if o.Total != nil {
		o.Total(total)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(o.Jobs, 1))
	var mu sync.Mutex
	for _, w := range all {
		g.Go(func() error {
			err := c.checkWALObject(ctx, w)
			mu.Lock()
			v.v.Objects++
			v.v.Bytes += w.Stored
			mu.Unlock()
			if o.Add != nil {
				o.Add(w.Stored)
			}
			if err == nil || errors.Is(err, ErrNotExist) { // expired just now
				return nil
			}
			return v.damaged(err, nil)
		})
	}
	return v.v, g.Wait()
}

func (c *Cluster) checkWALObject(ctx context.Context, w WALObject) error {
	idx, err := c.readIndex(ctx, c.walObject(w.FileName))
	if err != nil {
		return err
	}
	if !idx.encrypted() || c.repo.Unlocked() {
		return idx.checkAll(ctx, c.driver, nil)
	}
	if err := idx.checkHeader(ctx, c.driver); err != nil {
		return err
	}
	for i := range idx.frames {
		if err := idx.checkFrame(ctx, c.driver, i); err != nil {
			return err
		}
	}
	return nil
}

// VerifyKeys reads the small objects that belong to the repository as a whole.
func (r *Repository) VerifyKeys(ctx context.Context) (*Verification, error) {
	v := &verifier{c: &Cluster{repo: r, driver: r.driver}, v: &Verification{Damages: []Damage{}, Objects: 1}, told: map[string]bool{}}
	if err := getNote(ctx, r.driver, markerName, new(marker)); err != nil {
		if err := v.damaged(err, nil); err != nil {
			return nil, err
		}
	}
	var names []string
	err := r.driver.List(ctx, keysPrefix, func(i ObjectInfo) error { names = append(names, i.Name); return nil })
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		var note any = new(wrapNote)
		if lastElement(n) == vaultObject {
			note = new(vaultNote)
		}
		v.v.Objects++
		if err := getNote(ctx, r.driver, n, note); err != nil && !errors.Is(err, ErrNotExist) {
			if err := v.damaged(err, nil); err != nil {
				return nil, err
			}
		}
	}
	return v.v, nil
}
