// Package spancache keeps what was expensive to make, in memory of a bounded
// size. Whoever asks for the same thing at the same time shares the work.
package spancache

import (
	"container/list"
	"context"
	"sync"
)

// A Key names a span. Layer must differ wherever the span's bytes may: it has
// to stand for the blob and for the way it is cut into spans.
type Key struct {
	Layer [32]byte
	Span  int64
}

// A Cache maps keys to read-only buffers. Once they are more than its bound
// the one that was not used for longest goes. It is safe for concurrent use.
type Cache struct {
	max int64

	mu      sync.Mutex
	entries map[Key]*list.Element // of *entry
	recent  list.List             // front: used last
	flights map[Key]*flight
	stats   Stats
}

type entry struct {
	key Key
	buf []byte
}

// Stats counts what happened so far.
type Stats struct {
	Hits    int64 // found
	Misses  int64 // had to be filled
	Shared  int64 // waited for another's fill
	Failed  int64 // fills that failed
	Evicted int64 // entries that had to go
	Entries int64 // held now
	Bytes   int64 // held now
	Filled  int64 // bytes, of all fills
}

// New returns a cache for maxBytes bytes. With 0 it keeps nothing, and work is
// still shared.
func New(maxBytes int64) *Cache {
	return &Cache{
		max:     maxBytes,
		entries: make(map[Key]*list.Element),
		flights: make(map[Key]*flight),
	}
}

// Max is the bound in bytes.
func (c *Cache) Max() int64 { return c.max }

// Stats returns the counters.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Entries = int64(len(c.entries))
	return s
}

// A flight is a fill of one key that is under way.
type flight struct {
	group *group
	done  chan struct{} // closed when buf and err are set
	buf   []byte
	err   error
}

// A group is the flights that one call of a fill function makes. It is
// cancelled when nobody waits for any of them any more.
type group struct {
	cancel  context.CancelFunc
	waiting int // callers and flights they wait for
	keys    []Key
	flights []*flight
	urgent  chan struct{} // closed once somebody needs one of them now
	hurried bool          // urgent is closed
}

// hurry tells the fill that it is waited for.
func (g *group) hurry() {
	if !g.hurried {
		g.hurried = true
		close(g.urgent)
	}
}

// Lookup returns what is in the cache, if it is.
func (c *Cache) Lookup(key Key) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lookup(key)
}

func (c *Cache) lookup(key Key) ([]byte, bool) {
	e, ok := c.entries[key]
	if !ok {
		return nil, false
	}
	c.recent.MoveToFront(e)
	c.stats.Hits++
	return e.Value.(*entry).buf, true
}

// Peek is Lookup without counting as a use.
func (c *Cache) Peek(key Key) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[key]
	if !ok {
		return nil, false
	}
	return e.Value.(*entry).buf, true
}

// Remove drops a key that should not be used any more.
func (c *Cache) Remove(key Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[key]; ok {
		c.remove(e)
	}
}

// Contains reports whether the key is in the cache or being filled, without
// counting as a use.
func (c *Cache) Contains(key Key) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, held := c.entries[key]
	_, flying := c.flights[key]
	return held || flying
}

// Get returns the buffer of a key, which must not be written to and stays
// valid when the cache drops it. If it is not there, fill makes it, for all
// that ask meanwhile. The context of fill ends only once all of those have
// gone; it has the values of the first one's. Errors are not kept.
func (c *Cache) Get(ctx context.Context, key Key, fill func(context.Context) ([]byte, error)) ([]byte, error) {
	bufs, err := c.GetAll(ctx, []Key{key}, func(ctx context.Context, _ []int, _ <-chan struct{}, put func(int, []byte, error)) {
		b, err := fill(ctx)
		put(0, b, err)
	})
	if err != nil {
		return nil, err
	}
	return bufs[0], nil
}

// A FillFunc makes the buffers of several keys. Missing are the indexes of the
// keys concerned. It must call put for each of them, in any order, from any
// goroutine, before it returns; nobody waits for the others then. Urgent is
// closed once somebody waits for one of them who did not only want to have it
// at hand: at once for GetAll, and later, if ever, for Prefetch.
type FillFunc func(ctx context.Context, missing []int, urgent <-chan struct{}, put func(i int, buf []byte, err error))

// GetAll is Get for several different keys. Those which are neither there nor
// being made already are made by one call of fill, which can thus see which
// of them are neighbours. The error is that of the first key that has one.
func (c *Cache) GetAll(ctx context.Context, keys []Key, fill FillFunc) ([][]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	bufs := make([][]byte, len(keys))
	flights := make([]*flight, len(keys)) // nil where there is a buffer
	var (
		own     *group
		missing []int
		wait    bool
	)
	c.mu.Lock()
	for i, key := range keys {
		if b, ok := c.lookup(key); ok {
			bufs[i] = b
			continue
		}
		wait = true
		f := c.flights[key]
		if f == nil {
			f = c.take(&own, key)
			missing = append(missing, i)
		} else {
			c.stats.Shared++
		}
		f.group.hurry()
		f.group.waiting++
		flights[i] = f
	}
	c.mu.Unlock()
	if !wait {
		return bufs, nil
	}
	c.start(ctx, own, missing, fill)
	defer c.leave(flights)
	for i, f := range flights {
		if f == nil {
			continue
		}
		if err := f.wait(ctx); err != nil {
			return nil, err
		}
		bufs[i] = f.buf
	}
	return bufs, nil
}

// Prefetch sees to it that those keys are in the cache which are neither there
// nor being made already, and waits for them. It makes them as GetAll does, but
// is no use of them, and is not urgent.
func (c *Cache) Prefetch(ctx context.Context, keys []Key, fill FillFunc) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	var (
		own     *group
		missing []int
		flights []*flight
	)
	c.mu.Lock()
	for i, key := range keys {
		if _, held := c.entries[key]; held || c.flights[key] != nil {
			continue
		}
		f := c.take(&own, key)
		f.group.waiting++
		flights = append(flights, f)
		missing = append(missing, i)
	}
	c.mu.Unlock()
	c.start(ctx, own, missing, fill)
	defer c.leave(flights)
	for _, f := range flights {
		if err := f.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// take makes the flight of a key, in a group that it makes for the first one.
// The lock is held.
func (c *Cache) take(own **group, key Key) *flight {
	if *own == nil {
		*own = &group{urgent: make(chan struct{})}
	}
	f := &flight{group: *own, done: make(chan struct{})}
	c.flights[key] = f
	(*own).keys = append((*own).keys, key)
	(*own).flights = append((*own).flights, f)
	c.stats.Misses++
	return f
}

// start runs the fill of a group, if there is one.
func (c *Cache) start(ctx context.Context, own *group, missing []int, fill FillFunc) {
	if own == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.mu.Lock()
	own.cancel = cancel // nobody calls it yet: the caller still waits
	c.mu.Unlock()
	go c.run(ctx, own, missing, fill)
}

// wait waits for a flight to end.
func (f *flight) wait(ctx context.Context) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// leave takes back a caller's interest in flights.
func (c *Cache) leave(flights []*flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range flights {
		if f == nil {
			continue
		}
		g := f.group
		if g.waiting--; g.waiting > 0 {
			continue
		}
		// Whoever comes from now on starts anew, rather than to be handed the
		// error of a fill that was cancelled.
		g.cancel()
		for i, f := range g.flights {
			if c.flights[g.keys[i]] == f {
				delete(c.flights, g.keys[i])
			}
		}
	}
}

// run calls fill, and makes what it puts known to those who wait.
func (c *Cache) run(ctx context.Context, g *group, missing []int, fill FillFunc) {
	defer g.cancel()
	at := make(map[int]int, len(missing))
	for j, i := range missing {
		at[i] = j
	}
	fill(ctx, missing, g.urgent, func(i int, buf []byte, err error) {
		c.land(g, at[i], buf, err)
	})
	for j := range g.flights {
		c.land(g, j, nil, errNotFilled)
	}
}

// land ends a flight, unless it has ended.
func (c *Cache) land(g *group, j int, buf []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f, key := g.flights[j], g.keys[j]
	select {
	case <-f.done:
		return
	default:
	}
	f.buf, f.err = buf, err
	if c.flights[key] == f {
		delete(c.flights, key)
	}
	if err != nil {
		c.stats.Failed++
	} else {
		c.stats.Filled += int64(len(buf))
		c.add(key, buf)
	}
	close(f.done)
}

// add keeps a buffer, unless it alone is more than the cache may hold.
func (c *Cache) add(key Key, buf []byte) {
	if cost(buf) > c.max {
		return
	}
	if e, ok := c.entries[key]; ok { // by a fill that was given up and ended all the same
		c.remove(e)
	}
	c.entries[key] = c.recent.PushFront(&entry{key, buf})
	c.stats.Bytes += cost(buf)
	for c.stats.Bytes > c.max {
		c.remove(c.recent.Back())
		c.stats.Evicted++
	}
}

func (c *Cache) remove(e *list.Element) {
	ent := c.recent.Remove(e).(*entry)
	delete(c.entries, ent.key)
	c.stats.Bytes -= cost(ent.buf)
}

// cost is what a buffer takes, with the bookkeeping around it: else a cache of
// empty spans would have no bound.
func cost(buf []byte) int64 { return int64(cap(buf)) + 256 }

type fillError string

func (e fillError) Error() string { return string(e) }

// errNotFilled is what those get who wait for a key that fill forgot.
const errNotFilled = fillError("span was not filled: a bug")
