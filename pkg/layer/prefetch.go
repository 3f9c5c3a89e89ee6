package layer

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// Ahead puts the spans of n bytes at off into the cache, or if memory is false
// only into the store, before somebody reads them. It gives way to reads.
func (l *Lazy) Ahead(ctx context.Context, off, n int64, memory bool) error {
	end := min(off+n, l.size)
	for off = max(off, 0); off < end; {
		first := l.units.find(off)
		n, next := l.batch(first, end)
		if n == 0 || !memory {
			n = max(n, 1)
			_, _, _, next = l.units.span(first + n - 1)
			if err := l.keep(ctx, soon, first, n); err != nil {
				return err
			}
		} else if err := l.prefetch(ctx, soon, first, n); err != nil {
			return err
		}
		off = next
	}
	return nil
}

// Fill brings the whole layer into the store in idle time. Without a store it
// fills memory, as long as room, which it counts down in bytes, lasts. What
// fails is left out; the error is the first one.
func (l *Lazy) Fill(ctx context.Context, room *int64) error {
	var (
		failed error
		inRow  int
	)
	for i, count := 0, l.units.count(); i < count; {
		_, _, out, _ := l.units.span(i)
		n, end := l.batch(i, l.size)
		if b := l.opt.Gate.Bandwidth; b > 0 {
			n, end = l.slice(i, n, b/4)
		}
		var err error
		switch {
		case l.opt.Store != nil:
			n = max(n, 1)
			err = l.keep(ctx, idle, i, n)
		case n == 0: // it would have to be decoded to a file
			n = 1
		case *room < end-out:
			return failed
		default:
			*room -= end - out
			err = l.prefetch(ctx, idle, i, n)
		}
		if err != nil {
			if failed == nil {
				failed = err
			}
			if inRow++; inRow == maxFailures || ctx.Err() != nil {
				return failed
			}
		} else {
			inRow = 0
		}
		i += n
	}
	return failed
}

// maxFailures is how many batches may fail one after another before Fill gives
// up: a registry that is gone has been tried often enough.
const maxFailures = 5

// slice takes fewer units than n, so that they are about size bytes of the
// blob: with little bandwidth much at once would be a burst and a long pause.
func (l *Lazy) slice(first, n int, size int64) (int, int64) {
	in, _, _, end := l.units.span(first)
	for i := 1; i < n; i++ {
		_, inEnd, _, e := l.units.span(first + i)
		if inEnd-in > size {
			return i, end
		}
		end = e
	}
	return n, end
}

// keep brings n units into the store. They are not decoded.
func (l *Lazy) keep(ctx context.Context, u urgency, first, n int) error {
	var missing []part
	for i := first; i < first+n; i++ {
		parts := l.parts(i)
		for _, p := range parts {
			if !l.has(&p) {
				missing = append(missing, p)
			}
		}
	}
	for len(missing) > 0 {
		k := 1
		// Neighbours may share a byte.
		for k < len(missing) && missing[k].in <= missing[k-1].end && missing[k].end-missing[0].in <= aheadFetch {
			k++
		}
		if err := l.keepRun(ctx, demand{urgency: u}, missing[:k]); err != nil {
			return err
		}
		missing = missing[k:]
	}
	for i := first; i < first+n; i++ {
		l.whole.had(i)
	}
	return nil
}

// keepRun fetches and stores parts that lie side by side.
func (l *Lazy) keepRun(ctx context.Context, d demand, run []part) error {
	in := run[0].in
	comp := make([]byte, run[len(run)-1].end-in)
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	arrived := func(n int) {
		for len(run) > 0 && run[0].end-in <= int64(n) {
			p := run[0]
			run = run[1:]
			wg.Go(func() {
				if err := l.keepPart(ctx, d, &p, comp[p.in-in:p.end-in:p.end-in]); err != nil {
					mu.Lock()
					defer mu.Unlock()
					errs = append(errs, err)
				}
			})
		}
	}
	err := l.fetch(ctx, d, comp, in, arrived)
	wg.Wait()
	if err := errors.Join(append(errs, err)...); err != nil {
		return fmt.Errorf("layer %s: %w", l.opt.Name, err)
	}
	return nil
}

func (l *Lazy) keepPart(ctx context.Context, d demand, p *part, comp []byte) error {
	err := verify(comp, p.in, p.sums)
	if errors.Is(err, fault.ErrIntegrity) {
		comp = make([]byte, len(comp))
		if err = l.fetchAgain(ctx, d, comp, p.in, err); err == nil {
			err = verify(comp, p.in, p.sums)
		}
	}
	if err == nil {
		l.save(p, comp)
	}
	return err
}
