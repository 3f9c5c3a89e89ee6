package erofs

import (
	"container/list"
	"sync"
)

// extentCache keeps the decoded extents that were used last: a sequential
// reader comes back to each many times, and small files share fragments.
type extentCache struct {
	mu    sync.Mutex
	size  int64 // bytes
	order list.List
	byKey map[extentKey]*list.Element
}

const extentCacheSize = 32 << 20 // bytes; the largest extent has 12 MiB

type extentKey struct {
	nid uint64
	off int64 // in the file
}

type cachedExtent struct {
	key  extentKey
	data []byte
}

func (c *extentCache) get(key extentKey) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	el, ok := c.byKey[key]
	if !ok {
		return nil
	}
	c.order.MoveToFront(el)
	return el.Value.(*cachedExtent).data
}

func (c *extentCache) put(key extentKey, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byKey == nil {
		c.byKey = make(map[extentKey]*list.Element)
	}
	if old, ok := c.byKey[key]; ok {
		c.drop(old)
	}
	c.byKey[key] = c.order.PushFront(&cachedExtent{key, data})
	c.size += int64(len(data))
	for c.size > extentCacheSize {
		c.drop(c.order.Back())
	}
}

func (c *extentCache) drop(el *list.Element) {
	e := c.order.Remove(el).(*cachedExtent)
	delete(c.byKey, e.key)
	c.size -= int64(len(e.data))
}
