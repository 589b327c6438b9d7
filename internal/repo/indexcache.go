package repo

import (
	"cmp"
	"container/list"
	"context"
	"sync"
)

// indexCacheBlocks bounds the pack indexes in memory: with 20 bytes for each of
// their blocks, about 21 MB in all. Small backups have small packs: what counts
// is not the number of packs.
const indexCacheBlocks = 1 << 20

// indexCache keeps the indexes of the packs that were used last. Several
// goroutines that want the same index wait for one read.
type indexCache struct {
	mu     sync.Mutex
	most   int        // blocks, indexCacheBlocks where 0
	blocks int        // of the indexes that were read
	lru    *list.List // of *indexEntry, the latest first
	byKey  map[string]*list.Element
}

type indexEntry struct {
	key    string
	blocks int // counted, once it was read
	once   sync.Once
	idx    *objectIndex
	err    error
}

func (c *indexCache) get(ctx context.Context, cl *Cluster, want header) (*objectIndex, error) {
	c.mu.Lock()
	if c.lru == nil {
		c.lru, c.byKey = list.New(), map[string]*list.Element{}
	}
	el, ok := c.byKey[want.Name]
	if ok {
		c.lru.MoveToFront(el)
	} else {
		el = c.lru.PushFront(&indexEntry{key: want.Name})
		c.byKey[want.Name] = el
	}
	e := el.Value.(*indexEntry)
	c.mu.Unlock()

	e.once.Do(func() {
		if e.idx, e.err = cl.readIndex(ctx, want); e.err == nil {
			c.count(el, len(e.idx.blocks))
		}
	})
	if e.err != nil { // do not remember a passing fault
		c.mu.Lock()
		if c.byKey[e.key] == el {
			c.drop(el)
		}
		c.mu.Unlock()
	}
	return e.idx, e.err
}

// count counts an index that was read, and lets go of those that were not used
// for longest.
func (c *indexCache) count(el *list.Element, blocks int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := el.Value.(*indexEntry)
	if c.byKey[e.key] != el {
		return // it was let go meanwhile
	}
	e.blocks = blocks
	c.blocks += blocks
	for c.blocks > cmp.Or(c.most, indexCacheBlocks) && c.lru.Back() != el {
		c.drop(c.lru.Back())
	}
}

func (c *indexCache) drop(el *list.Element) {
	e := el.Value.(*indexEntry)
	c.lru.Remove(el)
	delete(c.byKey, e.key)
	c.blocks -= e.blocks
}
