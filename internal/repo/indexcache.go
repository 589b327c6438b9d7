package repo

import (
	"container/list"
	"context"
	"sync"
)

// indexCacheSize bounds the pack indexes in memory: at most 20 bytes times
// 32768 blocks each, about 21 MB in all.
const indexCacheSize = 32

// indexCache keeps the indexes of the packs that were used last. Several
// goroutines that want the same index wait for one read.
type indexCache struct {
	mu    sync.Mutex
	lru   *list.List // of *indexEntry, the latest first
	byKey map[string]*list.Element
}

type indexEntry struct {
	key  string
	once sync.Once
	idx  *objectIndex
	err  error
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
		for c.lru.Len() > indexCacheSize {
			c.drop(c.lru.Back())
		}
	}
	e := el.Value.(*indexEntry)
	c.mu.Unlock()

	e.once.Do(func() { e.idx, e.err = cl.readIndex(ctx, want) })
	if e.err != nil { // do not remember a passing fault
		c.mu.Lock()
		if c.byKey[e.key] == el {
			c.drop(el)
		}
		c.mu.Unlock()
	}
	return e.idx, e.err
}

func (c *indexCache) drop(el *list.Element) {
	c.lru.Remove(el)
	delete(c.byKey, el.Value.(*indexEntry).key)
}
