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

// fill makes the missing units, which are given as distances from first.
// Neighbours are fetched with one read.
func (l *Lazy) fill(ctx context.Context, first int, missing []int, put func(int, []byte, error)) {
	var wg sync.WaitGroup
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
		wg.Go(func() { l.fillRun(ctx, first, run, in, end, put) })
	}
	wg.Wait()
}

// fillRun makes units that lie side by side, in the blob's [in, end).
func (l *Lazy) fillRun(ctx context.Context, first int, run []int, in, end int64, put func(int, []byte, error)) {
	comp := make([]byte, end-in)
	if err := l.fetch(ctx, comp, in); err != nil {
		for _, i := range run {
			put(i, nil, l.spanError(first+i, err))
		}
		return
	}
	var wg sync.WaitGroup
	for _, i := range run {
		wg.Go(func() {
			from, to, _, _ := l.units.span(first + i)
			b, err := l.make(ctx, first+i, comp[from-in:to-in:to-in])
			put(i, b, err)
		})
	}
	wg.Wait()
}

// fetch reads a range of the blob.
func (l *Lazy) fetch(ctx context.Context, p []byte, off int64) error {
	l.stats.fetches.Add(1)
	n, err := l.blob.ReadAtContext(ctx, p, off)
	l.stats.fetched.Add(int64(n))
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("blob bytes %d to %d: %w", off, off+int64(len(p)), err)
}

// make verifies and decodes unit i. Bytes that are not what they should be are
// fetched once more: the next time another server may answer.
func (l *Lazy) make(ctx context.Context, i int, comp []byte) ([]byte, error) {
	b, err := l.decode(ctx, i, comp)
	if err == nil || ctx.Err() != nil || !l.mayRetry(i, err) {
		return b, err
	}
	l.stats.retries.Add(1)
	in, _, _, _ := l.units.span(i)
	// Not into comp, which neighbours share a byte of.
	comp = make([]byte, len(comp))
	if again := l.fetch(ctx, comp, in); again != nil {
		return nil, l.spanError(i, fmt.Errorf("%w (again, since %v)", again, err))
	}
	return l.decode(ctx, i, comp)
}

// mayRetry tells errors that another fetch may heal. Bytes that match their
// digests and cannot be decoded are not among them.
func (l *Lazy) mayRetry(i int, err error) bool {
	return errors.Is(err, fault.ErrIntegrity) || l.units.digests(i) == nil
}

func (l *Lazy) decode(ctx context.Context, i int, comp []byte) ([]byte, error) {
	in, _, out, end := l.units.span(i)
	select {
	case decoding <- struct{}{}:
		defer func() { <-decoding }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := verify(comp, in, l.units.digests(i)); err != nil {
		return nil, l.spanError(i, err)
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
