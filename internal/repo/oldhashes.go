package repo

import (
	"cmp"
	"slices"
	"sync"
)

// oldHashes are the hashes of an earlier version's blocks, a window of them at a
// time. The blocks of a file that was backed up often lie in as many packs as
// there were backups, in turn: a window is filled pack by pack, so that every
// index is looked for once, however many there are.
type oldHashes struct {
	mu      sync.Mutex
	windows [2]hashesFrom // the one used last comes first; readers may be on both sides of an edge
}

// hashesFrom are the hashes of the blocks from the first on.
type hashesFrom struct {
	first int64
	all   []Hash
}

func (h *hashesFrom) has(n int64) bool { return n >= h.first && n < h.first+int64(len(h.all)) }

// hashWindow is the most that a window holds: the blocks of 1 GiB, as long as a
// relation's file is, with 2 MiB of hashes.
const hashWindow = 1 << 17

// noHash stands for a block that there is nothing to compare with: it is zero,
// or its pack is not in the store as the manifest names it.
var noHash Hash

// from returns the hashes from block n on, up to the end of a window or of the
// file. They are read only.
func (h *oldHashes) from(o *oldFile, n int64) ([]Hash, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	w := &h.windows
	if !w[0].has(n) {
		w[0], w[1] = w[1], w[0]
	}
	if !w[0].has(n) {
		all, err := fillHashes(o, n/hashWindow*hashWindow)
		if err != nil {
			return nil, err
		}
		w[0] = hashesFrom{n / hashWindow * hashWindow, all}
	}
	return w[0].all[n-w[0].first:], nil
}

// fillHashes returns the window that begins with a block.
func fillHashes(o *oldFile, first int64) ([]Hash, error) {
	blocks := min(blockCount(o.file.Size, o.m.BlockSize)-first, hashWindow)
	all := make([]Hash, blocks)
	type span struct {
		pack      int32
		from      uint32
		at, count int64
	}
	var spans []span
	cur := o.cursor()
	for n := int64(0); n < blocks; {
		run, skip := cur.seek(first + n)
		count := min(int64(run.Count)-skip, blocks-n)
		if run.Pack != ZeroPack {
			spans = append(spans, span{run.Pack, run.First + uint32(skip), n, count})
		}
		n += count
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.pack, b.pack) })
	var idx *objectIndex
	for i, s := range spans {
		if i == 0 || s.pack != spans[i-1].pack {
			var err error
			if idx, err = o.from.index(o.m, s.pack); err != nil {
				return nil, err
			}
		}
		if idx == nil {
			continue
		}
		for k := range s.count {
			all[s.at+k] = idx.blocks[int64(s.from)+k].hash
		}
	}
	return all, nil
}
