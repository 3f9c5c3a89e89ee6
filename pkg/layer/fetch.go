package layer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/seek"
)

// decoding bounds how many spans are decoded at once, over all layers: more
// than there are processors would only take memory.
var decoding = make(chan struct{}, runtime.GOMAXPROCS(0))

// A putter gives a unit, as its distance from the first one, to those who wait.
type putter func(i int, b []byte, err error)

// fill makes the missing units, which are given as distances from first.
// Neighbours that the store does not have are fetched with one read.
func (l *Lazy) fill(ctx context.Context, d demand, first int, missing []int, put putter) {
	var wg sync.WaitGroup
	defer wg.Wait()
	if l.opt.Store != nil {
		var rest []int
		for _, i := range missing {
			if p := l.parts(first + i); len(p) == 1 && l.has(&p[0]) {
				wg.Go(func() { l.fillStored(ctx, d, first, i, &p[0], put) })
			} else {
				rest = append(rest, i)
			}
		}
		missing = rest
	}
	for len(missing) > 0 {
		in, end, _, _ := l.units.span(first + missing[0])
		n := 1
		for n < len(missing) && missing[n] == missing[n-1]+1 {
			_, e, _, _ := l.units.span(first + missing[n])
			if e-in > maxFetch {
				break
			}
			end = e
			n++
		}
		run := missing[:n]
		missing = missing[n:]
		wg.Go(func() { l.fillRun(ctx, d, first, run, in, end, put) })
	}
}

// fillStored makes a unit that the store has, or else seemed to.
func (l *Lazy) fillStored(ctx context.Context, d demand, first, i int, p *part, put putter) {
	if comp, ok := l.load(p); ok {
		b, err := l.decode(ctx, first+i, comp)
		if err == nil || ctx.Err() != nil {
			l.whole.had(first + i)
			put(i, b, err)
			return
		}
		if p.sums == nil { // it was never any good
			l.opt.Store.Drop(p.name, comp[:p.stored()])
		}
	}
	l.fillRun(ctx, d, first, []int{i}, p.in, p.end, put)
}

// fillRun makes units that lie side by side, in the blob's [in, end), each as
// soon as it is there.
func (l *Lazy) fillRun(ctx context.Context, d demand, first int, run []int, in, end int64, put putter) {
	var wg sync.WaitGroup
	defer wg.Wait()
	comp := make([]byte, end-in)
	arrived := func(n int) {
		for len(run) > 0 {
			i := run[0]
			from, to, _, _ := l.units.span(first + i)
			if to-in > int64(n) {
				return
			}
			run = run[1:]
			wg.Go(func() {
				b, err := l.make(ctx, d, first+i, comp[from-in:to-in:to-in])
				put(i, b, err)
			})
		}
	}
	if err := l.fetch(ctx, d, comp, in, arrived); err != nil {
		for _, i := range run {
			put(i, nil, l.spanError(first+i, err))
		}
	}
}

// A progressReader is a blob that tells what has arrived of a read already.
type progressReader interface {
	ReadAtProgress(ctx context.Context, p []byte, off int64, arrived func(n int)) (int, error)
}

// A suspecter is a blob that has more than one place to come from, and is told
// when one of them gives wrong bytes.
type suspecter interface{ Suspect(err error) }

// fetch reads a range of the blob, in its turn. Unless it fails arrived is
// called with all of it at last.
func (l *Lazy) fetch(ctx context.Context, d demand, p []byte, off int64, arrived func(n int)) error {
	done := 0
	return l.opt.Gate.do(ctx, d, func(ctx context.Context) (int, error) {
		before := done
		l.stats.fetches[d.urgency].Add(1)
		var (
			n   int
			err error
		)
		if r, ok := l.blob.(progressReader); ok {
			n, err = r.ReadAtProgress(ctx, p[before:], off+int64(before), func(n int) { arrived(before + n) })
		} else {
			n, err = l.blob.ReadAtContext(ctx, p[before:], off+int64(before))
		}
		l.stats.fetched[d.urgency].Add(int64(n))
		if done += n; done == len(p) {
			arrived(done)
			return n, nil
		}
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return n, fmt.Errorf("blob bytes %d to %d: %w", off, off+int64(len(p)), err)
	})
}

// fetchAgain is fetch for bytes that were not what they should be: the next
// time another server may answer.
func (l *Lazy) fetchAgain(ctx context.Context, d demand, p []byte, off int64, why error) error {
	l.stats.retries.Add(1)
	if s, ok := l.blob.(suspecter); ok {
		s.Suspect(why)
	}
	if err := l.fetch(ctx, d, p, off, func(int) {}); err != nil {
		return fmt.Errorf("%w (again, since %v)", err, why)
	}
	return nil
}

// make verifies, stores and decodes unit i, which has come from the blob. It
// is fetched once more if need be.
func (l *Lazy) make(ctx context.Context, d demand, i int, comp []byte) ([]byte, error) {
	b, err := l.verifyDecode(ctx, i, comp)
	if err == nil || ctx.Err() != nil || !l.mayRetry(i, err) {
		return b, err
	}
	in, _, _, _ := l.units.span(i)
	// Not into comp, which neighbours share a byte of.
	comp = make([]byte, len(comp))
	if err := l.fetchAgain(ctx, d, comp, in, err); err != nil {
		return nil, l.spanError(i, err)
	}
	return l.verifyDecode(ctx, i, comp)
}

// mayRetry tells errors that another fetch may heal. Bytes that match their
// digests and cannot be decoded are not among them.
func (l *Lazy) mayRetry(i int, err error) bool {
	return errors.Is(err, fault.ErrIntegrity) || l.units.digests(i) == nil
}

func (l *Lazy) verifyDecode(ctx context.Context, i int, comp []byte) ([]byte, error) {
	in, _, _, _ := l.units.span(i)
	if err := verify(comp, in, l.units.digests(i)); err != nil {
		return nil, l.spanError(i, err)
	}
	b, err := l.decode(ctx, i, comp)
	if err == nil {
		l.saveUnit(i, comp)
	}
	return b, err
}

// decode decodes what was verified, as far as it can be.
func (l *Lazy) decode(ctx context.Context, i int, comp []byte) ([]byte, error) {
	_, _, out, end := l.units.span(i)
	select {
	case decoding <- struct{}{}:
		defer func() { <-decoding }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	dst := make([]byte, end-out)
	if err := l.units.decode(i, dst, comp); err != nil {
		return nil, l.spanError(i, err)
	}
	l.stats.decoded.Add(end - out)
	return dst, nil
}

// verify compares blob bytes at off with the digests of their pieces, if there
// are any.
func verify(comp []byte, off int64, sums [][32]byte) error {
	for k := range sums {
		piece := comp[k*seek.PieceSize : min((k+1)*seek.PieceSize, len(comp))]
		if sha256.Sum256(piece) != sums[k] {
			at := off + int64(k)*seek.PieceSize
			return fmt.Errorf("blob bytes %d to %d do not match their digest: %w", at, at+int64(len(piece)), fault.ErrIntegrity)
		}
	}
	return nil
}

// spanError names the layer and the span.
func (l *Lazy) spanError(i int, err error) error {
	_, _, out, _ := l.units.span(i)
	return fmt.Errorf("layer %s: span %d at %d: %w", l.opt.Name, i, out, err)
}
