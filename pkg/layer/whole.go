package layer

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/spancache"
)

// A whole is the check of a layer that cannot be verified piece by piece: once
// all of its blob is cached, the digest of the whole tells. The zero value
// checks nothing.
type whole struct {
	l    *Lazy // nil: nothing to do
	want string

	mu      sync.Mutex
	have    []uint64 // a bit for each unit
	missing int
	checked bool // or being checked

	bad atomic.Pointer[error] // what all reads get from then on
}

// start is called before the layer is used.
func (w *whole) start(l *Lazy) {
	d := l.opt.Digest
	if l.Verified() || d == "" || d.Validate() != nil || d.Algorithm() != "sha256" {
		return
	}
	w.l, w.want = l, d.Encoded()
	w.missing = l.units.count()
	w.have = make([]uint64, w.missing/64+1)
	if l.opt.Store == nil {
		return
	}
	// An earlier process may have stored all of it.
	l.sequences.jobs.Go(func() {
		for i := range l.units.count() {
			p := l.parts(i)
			if len(p) != 1 || !l.has(&p[0]) || l.ctx.Err() != nil {
				return
			}
		}
		for i := range l.units.count() {
			w.had(i)
		}
	})
}

// had hears that unit i is cached.
func (w *whole) had(i int) {
	if w.l == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if bit := uint64(1) << (i % 64); w.have[i/64]&bit == 0 {
		w.have[i/64] |= bit
		w.missing--
	}
	if w.missing > 0 || w.checked {
		return
	}
	w.l.sequences.mu.Lock()
	defer w.l.sequences.mu.Unlock()
	if w.l.sequences.closed {
		return
	}
	w.checked = true
	w.l.sequences.jobs.Go(w.check)
}

// lost takes back what had said: the cache has dropped unit i meanwhile.
func (w *whole) lost(i int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.have[i/64] &^= 1 << (i % 64)
	w.missing++
	w.checked = false
}

// again lets the next use of the layer check it anew.
func (w *whole) again() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.checked = false
}

// err is not nil once the layer turned out to be wrong.
func (w *whole) err() error {
	if p := w.bad.Load(); p != nil {
		return *p
	}
	return nil
}

// check compares the digest.
func (w *whole) check() {
	l := w.l
	// Where there is not room for all of it, one that is missing is found before
	// the others are read in vain, time and again.
	for i := range l.units.count() {
		if !w.atHand(i) {
			w.lost(i)
			return
		}
	}
	h := sha256.New()
	var at int64 // bytes hashed
	if in, _, _, _ := l.units.span(0); in > 0 {
		// A gzip header is in no span.
		head := make([]byte, in)
		if err := l.fetch(l.ctx, demand{urgency: idle}, head, 0, func(int) {}); err != nil {
			w.again()
			return
		}
		h.Write(head)
		at = in
	}
	for i := range l.units.count() {
		in, end, _, _ := l.units.span(i)
		b, ok := w.unit(i)
		if !ok {
			w.lost(i)
			return
		}
		h.Write(b[at-in:])
		at = end
	}
	var err error
	if got := hex.EncodeToString(h.Sum(nil)); got != w.want {
		err = fmt.Errorf("layer %s: the whole of it has the digest sha256:%s, not sha256:%s: %w", l.opt.Name, got, w.want, fault.ErrIntegrity)
		w.bad.Store(&err)
		l.forgetAll()
	}
	if l.opt.OnWhole != nil {
		l.opt.OnWhole(err)
	}
}

// atHand reports whether unit seems to have something to return.
func (w *whole) atHand(i int) bool {
	if _, ok := w.inMemory(i); ok {
		return true
	}
	parts := w.l.parts(i)
	return len(parts) == 1 && w.l.has(&parts[0])
}

// inMemory returns a unit's blob bytes if the memory cache has them.
func (w *whole) inMemory(i int) ([]byte, bool) {
	if _, plain := w.l.units.(*plainUnits); !plain {
		return nil, false
	}
	return w.l.cache.Peek(w.l.spanKey(i))
}

// unit returns a unit's blob bytes, if they are at hand.
func (w *whole) unit(i int) ([]byte, bool) {
	l := w.l
	if b, ok := w.inMemory(i); ok {
		return b, true
	}
	parts := l.parts(i)
	if len(parts) != 1 {
		return nil, false
	}
	return l.load(&parts[0])
}

// forgetAll removes from the caches what there is of the layer.
func (l *Lazy) forgetAll() {
	for i := range l.units.count() {
		l.cache.Remove(spancache.Key{Layer: l.key, Span: int64(i)})
		for _, p := range l.parts(i) {
			if l.has(&p) {
				l.opt.Store.Drop(p.name, nil)
			}
		}
	}
}
