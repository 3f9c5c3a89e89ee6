package layer

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// A Gate decides which reads of blobs may go over a network that they share.
// One that somebody waits for always may. Reading ahead waits while there are
// such, and gives way to one that comes meanwhile: it is cut off, and goes on
// later from where it was. Filling a cache in idle time gives way to both, one
// request at a time, and keeps to a bandwidth.
//
// The zero value is usable. Layers that come over the same network should have
// the same Gate.
type Gate struct {
	// Bandwidth bounds what idle time is used for, in bytes a second; 0 is no
	// bound. It must not change once the Gate is in use.
	Bandwidth int64

	bulkUntil atomic.Int64 // in Unix nanoseconds

	mu      sync.Mutex
	now     int            // reads under way that somebody waits for
	soon    int            // reads ahead
	idle    int            // reads in idle time, 0 or 1
	cut     map[*pass]bool // those that may be cut off
	quiet   time.Time      // when the last one ended that was not idle
	free    time.Time      // when the bandwidth allows another idle one
	changed chan struct{}  // closed when one ends, if somebody waits for that
	cuts    int            // how many were cut off
}

// An urgency is how soon something is needed.
type urgency int

const (
	now  urgency = iota // somebody waits
	soon                // somebody is likely to need it
	idle                // nobody knows
	urgencies
)

// A demand is what a fetch is for. Once urgent is closed somebody waits for it
// after all.
type demand struct {
	urgency urgency
	urgent  <-chan struct{}
}

// quietTime is how long nothing must have been fetched before idle time begins:
// a program that reads one file after another leaves gaps that are no idle time.
const quietTime = 100 * time.Millisecond

// errCut ends a fetch that gives way.
var errCut = errors.New("gave way to a read that somebody waits for")

// A pass is the leave to fetch.
type pass struct {
	urgency urgency
	ctx     context.Context
	cancel  context.CancelCauseFunc // nil: it is not cut off
	began   time.Time
}

// do calls fetch when that is its turn, and again if it was cut off; fetch
// goes on where it was, and says how many bytes it got.
func (g *Gate) do(ctx context.Context, d demand, fetch func(context.Context) (int, error)) error {
	for {
		p, err := g.enter(ctx, d)
		if err != nil {
			return err
		}
		n, err := g.through(p, d, fetch)
		g.leave(p, n)
		if err == nil || ctx.Err() != nil || p.cancel == nil || !errors.Is(context.Cause(p.ctx), errCut) {
			return err
		}
	}
}

// through runs fetch, and keeps it from being cut off once it is urgent.
func (g *Gate) through(p *pass, d demand, fetch func(context.Context) (int, error)) (int, error) {
	if p.cancel != nil {
		defer p.cancel(nil)
		if d.urgent != nil {
			done := make(chan struct{})
			defer close(done)
			go func() {
				select {
				case <-d.urgent:
					g.mu.Lock()
					delete(g.cut, p)
					g.mu.Unlock()
				case <-done:
				}
			}()
		}
	}
	return fetch(p.ctx)
}

// enter waits for its turn.
func (g *Gate) enter(ctx context.Context, d demand) (*pass, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	for {
		g.mu.Lock()
		wait, ok := g.turn(d)
		if ok {
			p := g.admit(ctx, d)
			g.mu.Unlock()
			return p, nil
		}
		if g.changed == nil {
			g.changed = make(chan struct{})
		}
		changed := g.changed
		g.mu.Unlock()
		var timer <-chan time.Time
		if wait > 0 {
			timer = time.After(wait)
		}
		select {
		case <-changed:
		case <-d.urgent:
		case <-timer:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// hurried reports whether somebody waits by now.
func (d demand) hurried() bool {
	select {
	case <-d.urgent:
		return true
	default:
		return false
	}
}

// turn reports whether a fetch may go, or after what time it should ask again;
// 0: when something has changed.
func (g *Gate) turn(d demand) (wait time.Duration, ok bool) {
	if d.urgency == now || d.hurried() {
		return 0, true
	}
	if d.urgency == soon {
		return 0, g.now == 0
	}
	if g.now+g.soon+g.idle > 0 {
		return 0, false
	}
	t := time.Now()
	wait = max(g.free.Sub(t), g.quiet.Add(quietTime).Sub(t), 0)
	return wait, wait == 0
}

// admit counts a fetch, and cuts off those that have to give way to it. What
// was not urgent from the start cuts off nothing but idle ones: a reader that
// has caught up with its own read-ahead would cut off the rest of that.
func (g *Gate) admit(ctx context.Context, d demand) *pass {
	p := &pass{urgency: d.urgency, ctx: ctx, began: time.Now()}
	switch d.urgency {
	case now:
		g.now++
		g.giveWay(soon)
	case soon:
		g.soon++
		g.giveWay(idle)
	case idle:
		g.idle++
	}
	if d.urgency != now && !d.hurried() {
		p.ctx, p.cancel = context.WithCancelCause(ctx)
		if g.cut == nil {
			g.cut = make(map[*pass]bool)
		}
		g.cut[p] = true
	}
	return p
}

// giveWay cuts off what is of urgency u, or less urgent.
func (g *Gate) giveWay(u urgency) {
	for p := range g.cut {
		if p.urgency >= u {
			p.cancel(errCut)
			delete(g.cut, p)
			g.cuts++
		}
	}
}

// leave ends a fetch of n bytes.
func (g *Gate) leave(p *pass, n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.cut, p)
	switch p.urgency {
	case now:
		g.now--
	case soon:
		g.soon--
	case idle:
		g.idle--
		if g.Bandwidth > 0 {
			g.free = p.began.Add(time.Duration(float64(n) / float64(g.Bandwidth) * float64(time.Second)))
		}
	}
	if p.urgency != idle {
		g.quiet = time.Now()
	}
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
}

// setBulk notes that somebody reads in bulk.
func (g *Gate) setBulk() { g.bulkUntil.Store(time.Now().Add(bulkTime).UnixNano()) }

// bulk reports whether somebody did lately.
func (g *Gate) bulk() bool {
	t := g.bulkUntil.Load()
	return t > 0 && time.Now().UnixNano() < t
}

// Cut is how many fetches had to give way.
func (g *Gate) Cut() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.cuts
}
