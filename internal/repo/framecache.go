package repo

import (
	"container/list"
	"context"
	"sync"
)

// frameCache keeps decoded frames up to a number of bytes. Several goroutines
// that want the same frame wait for one read. What it returns is shared: it is
// read and never changed.
type frameCache struct {
	driver Driver
	budget int64

	mu    sync.Mutex
	used  int64
	lru   list.List // of *frameCached, the latest first
	byKey map[frameKey]*list.Element
}

type frameKey struct {
	object string
	frame  int
}

type frameCached struct {
	key  frameKey
	size int64
	once sync.Once
	raw  []byte
	err  error
}

func newFrameCache(d Driver, budget int64) *frameCache {
	return &frameCache{driver: d, budget: budget, byKey: map[frameKey]*list.Element{}}
}

func (c *frameCache) get(ctx context.Context, idx *objectIndex, frame int) ([]byte, error) {
	key := frameKey{idx.path, frame}
	c.mu.Lock()
	el, ok := c.byKey[key]
	if ok {
		c.lru.MoveToFront(el)
	} else {
		e := &frameCached{key: key, size: int64(idx.frames[frame].raw)}
		el = c.lru.PushFront(e)
		c.byKey[key] = el
		c.used += e.size
		for c.used > c.budget && c.lru.Len() > 1 {
			c.drop(c.lru.Back())
		}
	}
	e := el.Value.(*frameCached)
	c.mu.Unlock()

	e.once.Do(func() { e.raw, e.err = idx.readFrame(ctx, c.driver, frame, nil) })
	if e.err != nil { // do not remember a passing fault
		c.mu.Lock()
		if c.byKey[key] == el {
			c.drop(el)
		}
		c.mu.Unlock()
	}
	return e.raw, e.err
}

func (c *frameCache) drop(el *list.Element) {
	e := el.Value.(*frameCached)
	c.lru.Remove(el)
	delete(c.byKey, e.key)
	c.used -= e.size
}
