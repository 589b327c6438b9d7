package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// An interrupted backup leaves packs, and parts: pieces of its manifest that
// were written on the way. Parts have the manifest's format; their file lists
// hold the files of which blocks were stored, in path order from part to part
// unless they came in another, and name only packs that were durable when the
// part was written. A backup that ends in order lists the files that it had not
// read to their end as well (see appendUnfinished). The next
// backup compares its blocks with them as it does with its parent's, and what is
// there is neither compressed nor stored again. Nothing else is ever taken from
// a part: it says where a block may be, the block's hash says whether it is.
const (
	partFormat  = "tidemark part"
	partPacks   = 1       // how many new packs are worth a part
	partText    = 4 << 20 // how much text is
	partsPerRun = 32      // bounds what parts cost: their pack tables repeat
)

// partSummary is the last line of a part. Part of the format, do not change.
type partSummary struct {
	Format     string      `json:"format"`
	Version    int         `json:"version"`
	ID         string      `json:"id"` // of the backup that was begun
	Number     int         `json:"number"`
	SystemID   SystemID    `json:"system_identifier"`
	BlockSize  uint32      `json:"block_size"`
	Packs      int         `json:"packs"`
	PackTable  uint32      `json:"pack_table"`
	Unordered  bool        `json:"unordered,omitempty"` // the files came, and are listed, in any order
	Encryption *Encryption `json:"encryption,omitempty"`
}

// partKeeper is what a writer has of its next part.
type partKeeper struct {
	text    []byte // lines since the last snapshot
	pending []byte // lines that wait for their packs to be durable
	need    int    // how many packs have to be durable for pending
	at      int    // packs begun when the last snapshot was taken
	begun   int    // own packs begun
	durable int    // own packs durable without a gap
	ahead   map[int]bool
	count   int  // parts written
	busy    bool // a part is being written
}

func (c *Cluster) partHeader(id string, n int) header {
	return header{Kind: kindManifest, SystemID: c.systemID, MaxBlock: manifestBlock,
		Name: fmt.Sprintf("%sbackups/%s/part-%06d.zst", c.prefix, id, n)}
}

// snapshot sets the lines aside that the next part will hold; mu is held.
func (w *BackupWriter) snapshot() {
	p := &w.parts
	if p.pending != nil || p.busy || len(p.text) == 0 {
		return
	}
	if p.begun-p.at < max(partPacks, len(w.table)/partsPerRun) && len(p.text) < partText {
		return
	}
	p.pending, p.text, p.need, p.at = p.text, nil, p.begun, p.begun
	w.partWhenDurable()
}

// packDurable counts a pack that is in the store.
func (w *BackupWriter) packDurable(count int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := &w.parts
	if p.ahead == nil {
		p.ahead = map[int]bool{}
	}
	p.ahead[count] = true
	for p.ahead[p.durable+1] {
		p.durable++
		delete(p.ahead, p.durable)
	}
	w.partWhenDurable()
}

// partWhenDurable writes the pending part once its packs are durable; mu is held.
func (w *BackupWriter) partWhenDurable() {
	p := &w.parts
	if p.pending == nil || p.busy || p.durable < p.need || w.done {
		return
	}
	text, table := p.pending, slices.Clone(w.table)
	p.pending, p.busy = nil, true
	p.count++
	n := p.count
	w.packs.closing.Go(func() {
		if err := w.putPart(n, text, table); err != nil {
			w.packs.fail(fmt.Errorf("storing what a resumed backup needs: %w", err))
		}
		w.mu.Lock()
		p.busy = false
		w.mu.Unlock()
	})
}

// putPart stores one part.
func (w *BackupWriter) putPart(n int, text []byte, table []Pack) error {
	h := w.cluster.partHeader(w.started.ID, n)
	up := startUpload(w.ctx, w.cluster.driver, h.Name)
	err := func() error {
		m, err := newManifestWriter(up, h)
		if err != nil {
			return err
		}
		if err := m.line(text); err != nil {
			return err
		}
		return m.end(table, func(at uint32) any {
			return &partSummary{Format: partFormat, Version: manifestVersion, ID: w.started.ID, Number: n, SystemID: SystemID(w.cluster.systemID),
				BlockSize: w.o.BlockSize, Packs: len(table), PackTable: at, Unordered: w.o.AnyOrder, Encryption: w.encryption()}
		})
	}()
	if err != nil {
		up.abort()
		return err
	}
	return up.close()
}

// removeParts removes the parts of a backup that is complete: nobody looks at
// them any more. What cannot be removed now goes with the backup.
func (w *BackupWriter) removeParts() {
	for n := 1; n <= w.parts.count; n++ {
		if w.cluster.driver.Delete(w.ctx, w.cluster.partHeader(w.started.ID, n).Name) != nil {
			return
		}
	}
}

// openPart opens a part as if it were a manifest.
func (c *Cluster) openPart(ctx context.Context, id string, n int) (*Manifest, error) {
	idx, err := c.readIndex(ctx, c.partHeader(id, n))
	if err != nil {
		return nil, err
	}
	line, err := summaryLine(ctx, c.driver, idx)
	if err != nil {
		return nil, err
	}
	var s partSummary
	if err := json.Unmarshal(line, &s); err != nil || s.Format != partFormat || s.Version != manifestVersion || s.ID != id || s.Number != n ||
		uint64(s.SystemID) != c.systemID || s.BlockSize == 0 || int(s.PackTable) > len(idx.frames) {
		return nil, &CorruptError{Object: idx.path, Offset: -1, Part: "summary", Err: err}
	}
	m := &Manifest{cluster: c, idx: idx, unordered: s.Unordered, Summary: Summary{ID: id, BlockSize: s.BlockSize, PackCount: s.Packs, PackTable: s.PackTable, Encryption: s.Encryption}}
	return m, m.readPacks(ctx)
}

// openLeft opens what interrupted backups have left, the newest first.
func (w *BackupWriter) openLeft() ([]*comparison, error) {
	cat, err := w.cluster.listBackups(w.ctx)
	if err != nil {
		return nil, err
	}
	var left []*comparison
	own := map[string]bool{}
	for _, id := range cat.unfinished() {
		if id == w.started.ID {
			continue
		}
		s, err := w.cluster.readStarted(w.ctx, id, cat)
		if errors.Is(err, ErrNotExist) || isCorrupt(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !s.Dead() {
			continue
		}
		own[id] = true
		l, err := w.openParts(id, cat[id].parts)
		if err != nil {
			return nil, err
		}
		if l != nil {
			left = append(left, l)
		}
	}
	slices.SortFunc(left, func(a, b *comparison) int { return strings.Compare(b.id, a.id) })
	for _, l := range left {
		l.own = own
		if l.there, err = w.cluster.listPacks(w.ctx, ""); err != nil {
			return nil, err
		}
	}
	return left, nil
}

// openParts opens the parts of one interrupted backup, as far as they are sound.
func (w *BackupWriter) openParts(id string, n int) (*comparison, error) {
	l := &comparison{ctx: w.ctx, id: id, left: true, anyOrder: w.o.AnyOrder}
	for i := 1; i <= n; i++ {
		m, err := w.cluster.openPart(w.ctx, id, i)
		if isCorrupt(err) || errors.Is(err, ErrNotExist) {
			break
		}
		if err != nil {
			return nil, err
		}
		if m.BlockSize != w.o.BlockSize || !w.comparable(m.Encryption) {
			break
		}
		l.queue = append(l.queue, m)
		l.anyOrder = l.anyOrder || m.unordered
	}
	if len(l.queue) == 0 {
		return nil, nil
	}
	return l, nil
}

func isCorrupt(err error) bool {
	var bad *CorruptError
	return errors.As(err, &bad)
}
