package layer

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/seek"
)

// A spill is a span that is too large for memory, such as a zstd layer of a
// single frame. It is decoded once, from its start, to a temporary file, and
// only as far as somebody has asked for.
type spill struct {
	l    *Lazy
	unit int
	in   int64 // the range in the blob
	end  int64
	size int64 // decoded

	mu      sync.Mutex
	cond    *sync.Cond // done, err, failed or waiters changed
	f       *os.File
	path    string // if it could not be unlinked at once
	done    int64  // bytes in f
	want    int64  // bytes that are waited for
	waiters int
	failed  int   // failed fetches so far; reading goes on with the next demand
	lastErr error // of the last of them
	err     error // for good
}

const (
	// spillFetch is the most that is fetched at a time for a spill, in pieces.
	// It starts with one and doubles, since who wants a little of a large span
	// should not wait for much, and who wants all of it not often.
	spillFetch = 8
	spillChunk = 256 << 10
)

// spill returns the spill of unit i, and makes it if it is not there.
func (l *Lazy) spill(i int) *spill {
	l.spills.Lock()
	defer l.spills.Unlock()
	if s := l.spills.m[i]; s != nil {
		return s
	}
	in, inEnd, out, outEnd := l.units.span(i)
	s := &spill{l: l, unit: i, in: in, end: inEnd, size: outEnd - out}
	s.cond = sync.NewCond(&s.mu)
	if l.ctx.Err() != nil {
		s.err = errClosed
		return s
	}
	l.spills.m[i] = s
	l.spills.jobs.Go(s.run)
	return s
}

// forget makes the next read start anew: after an error for good there may be
// room again on the disk, or the blob may be a better one.
func (l *Lazy) forget(s *spill) {
	l.spills.Lock()
	if l.spills.m[s.unit] == s {
		delete(l.spills.m, s.unit)
	}
	l.spills.Unlock()
}

// readAt reads p, which is within the span, at off of the span.
func (s *spill) readAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := s.wait(ctx, off+int64(len(p))); err != nil {
		return 0, err
	}
	n, err := s.f.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	return n, s.l.spanError(s.unit, fmt.Errorf("spilled data: %w", err))
}

// wait waits until there are n bytes in the file.
func (s *spill) wait(ctx context.Context, n int64) error {
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cond.Broadcast()
	})
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if n <= s.done {
		return nil
	}
	s.waiters++
	s.want = max(s.want, n)
	s.cond.Broadcast()
	failed := s.failed
	defer func() {
		if s.waiters--; s.waiters == 0 {
			s.want = 0
		}
	}()
	for {
		switch {
		case n <= s.done:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case s.err != nil:
			return s.err
		case s.failed != failed:
			return s.lastErr
		}
		s.cond.Wait()
	}
}

// demand waits until somebody wants more than there is. It reports false when
// the layer was closed.
func (s *spill) demand() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.want <= s.done && s.l.ctx.Err() == nil {
		s.cond.Wait()
	}
	return s.l.ctx.Err() == nil
}

// run is the spill's goroutine.
func (s *spill) run() {
	stop := context.AfterFunc(s.l.ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cond.Broadcast()
	})
	defer stop()
	if !s.demand() {
		s.fail(errClosed)
		return
	}
	if err := s.decode(); err != nil {
		s.l.forget(s)
		s.fail(s.l.spanError(s.unit, err))
	}
}

func (s *spill) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	s.cond.Broadcast()
	s.remove()
}

// decode decodes the span, with pauses.
func (s *spill) decode() error {
	if err := s.create(); err != nil {
		return err
	}
	r, err := s.l.units.open(s.unit, &feed{s: s, next: s.in, pieces: 1})
	if err != nil {
		return err
	}
	defer r.Close()
	buf := make([]byte, min(spillChunk, s.size))
	for s.done < s.size {
		if !s.demand() {
			return errClosed
		}
		b := buf[:min(int64(len(buf)), s.size-s.done)]
		n, err := io.ReadFull(r, b)
		if _, err := s.f.WriteAt(b[:n], s.done); err != nil {
			return err
		}
		s.mu.Lock()
		s.done += int64(n)
		s.cond.Broadcast()
		s.mu.Unlock()
		s.l.stats.decoded.Add(int64(n))
		if err != nil {
			return shortOf(err, s.done, s.size)
		}
	}
	return nil
}

// create makes the file, which has no name where the system allows that.
func (s *spill) create() error {
	f, err := os.CreateTemp(s.l.opt.SpillDir, "layerpipe-span-*")
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.f = f
	if os.Remove(f.Name()) != nil {
		s.path = f.Name()
	}
	return nil
}

// close must be called when run has ended.
func (s *spill) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = 0
	if s.err == nil {
		s.err = errClosed
	}
	s.cond.Broadcast()
	s.remove()
}

// remove gets rid of the file. Reads of it that are under way fail.
func (s *spill) remove() {
	s.done = 0
	if s.f != nil {
		s.f.Close()
	}
	if s.path != "" {
		os.Remove(s.path)
	}
}

// A feed gives a spill's decoder the blob's bytes, piece by piece, each
// verified. It has no errors for the decoder, whose state they would spoil: it
// tells those who wait, and tries again once somebody asks again.
type feed struct {
	s      *spill
	next   int64 // offset of what is fetched next
	pieces int64 // how much of it
	buf    []byte
}

func (f *feed) Read(p []byte) (int, error) {
	for len(f.buf) == 0 {
		s := f.s
		if f.next == s.end {
			return 0, io.EOF
		}
		if !s.demand() {
			return 0, errClosed
		}
		err := f.fetch()
		if err == nil {
			f.pieces = min(2*f.pieces, spillFetch)
			break
		}
		if s.l.ctx.Err() != nil {
			return 0, errClosed
		}
		s.mu.Lock()
		s.failed++
		s.lastErr = s.l.spanError(s.unit, err)
		s.want = 0 // whoever asks again raises it again
		s.cond.Broadcast()
		s.mu.Unlock()
	}
	n := copy(p, f.buf)
	f.buf = f.buf[n:]
	return n, nil
}

// fetch gets the next pieces, verified: one from the store, or several from the
// blob, and again from there if need be.
func (f *feed) fetch() error {
	s := f.s
	parts := s.l.parts(s.unit)
	k := (f.next - s.in) / seek.PieceSize
	if parts != nil {
		if b, ok := s.l.load(&parts[k]); ok {
			f.next += int64(len(b))
			f.buf = b
			return nil
		}
	}
	// Somebody waits, or there would be no demand.
	d := demand{urgency: now}
	comp := make([]byte, min(f.pieces*seek.PieceSize, s.end-f.next))
	sums := s.l.units.digests(s.unit)
	if sums != nil {
		sums = sums[k:][:seek.Pieces(int64(len(comp)))]
	}
	if err := s.l.fetch(s.l.ctx, d, comp, f.next, func(int) {}); err != nil {
		return err
	}
	err := verify(comp, f.next, sums)
	if err != nil {
		if err = s.l.fetchAgain(s.l.ctx, d, comp, f.next, err); err == nil {
			err = verify(comp, f.next, sums)
		}
	}
	if err != nil {
		return err
	}
	if parts != nil {
		for i := range sums {
			p := &parts[k+int64(i)]
			s.l.save(p, comp[p.in-f.next:p.end-f.next])
		}
	}
	f.next += int64(len(comp))
	f.buf = comp
	return nil
}

// measure finds the size of a layer whose index does not say it, by decoding
// the last span.
func (l *Lazy) measure(ctx context.Context, u *gzipUnits) (int64, error) {
	i := len(u.l.Spans) - 1
	in := u.l.Spans[i].Start()
	r, err := u.open(i, &blobReader{ctx: ctx, l: l, off: in})
	if err != nil {
		return 0, err
	}
	defer r.Close()
	n, err := io.Copy(io.Discard, r)
	if err != nil {
		return 0, l.spanError(i, err)
	}
	size := u.l.Spans[i].Out + n
	if size < u.l.Spans[i].Out || size > 1<<62 {
		return 0, fmt.Errorf("%d bytes: %w", size, fault.ErrCorrupt)
	}
	return size, nil
}

// A blobReader reads a blob from an offset to its end.
type blobReader struct {
	ctx context.Context
	l   *Lazy
	off int64
	buf []byte
}

func (r *blobReader) Read(p []byte) (int, error) {
	if len(r.buf) == 0 {
		n := min(r.l.blob.Size()-r.off, seek.PieceSize)
		if n <= 0 {
			return 0, io.EOF
		}
		buf := make([]byte, n)
		if err := r.l.fetch(r.ctx, demand{urgency: now}, buf, r.off, func(int) {}); err != nil {
			return 0, err
		}
		r.buf = buf
		r.off += n
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}
