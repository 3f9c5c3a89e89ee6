package zinfo

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/inflate"
)

// Verify inflates every span of the blob, as many at once as there are workers,
// and returns the size of the data. It checks all that there is to check: that
// each span ends exactly where the next begins, to the bit; that each window is
// what the span before it ends with, zeros aside, which sparse windows have
// instead; and the checksum and size of every member, put together from those
// of its spans. So a file that passes gives the right bytes everywhere.
//
// progress, if not nil, is called for each span from several goroutines: with
// the number of bytes from its point to the next, or the end, and in front of
// the first point those before it. Together they are the blob.
func (x *Index) Verify(ctx context.Context, blob io.ReaderAt, workers int, progress func(n int64)) (int64, error) {
	reports := make([]spanReport, len(x.Points))
	todo := make(chan int)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for range max(1, workers) {
		wg.Go(func() {
			v := verifier{x: x}
			for i := range todo {
				r := v.span(blob, i)
				reports[i] = r
				if r.err != nil {
					cancel()
				}
				if progress != nil {
					progress(r.used)
				}
			}
		})
	}
	// Spans are given out in order, so those before a bad one are finished,
	// and the first error is the same each time.
	for i := range x.Points {
		select {
		case todo <- i:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(todo)
	wg.Wait()
	return x.conclude(ctx, reports)
}

// spanReport is what was found of a span.
type spanReport struct {
	done bool
	err  error
	used int64 // bytes of the blob
	// The member that the span begins in, if it ends in the span, too. Those
	// behind it are verified by the decoder.
	ends   bool
	member inflate.MemberEnd
	// The member that the span ends in: where its part begins, and its checksum.
	open int64
	sum  uint32
	end  int64 // offset of the output behind the span
}

// conclude checks the members that lie in more than one span.
func (x *Index) conclude(ctx context.Context, reports []spanReport) (int64, error) {
	var sum uint32 // of the member at hand
	var size int64
	for i := range reports {
		r := &reports[i]
		if r.err != nil {
			return 0, r.err
		}
		if !r.done {
			return 0, context.Cause(ctx)
		}
		if m := r.member; r.ends {
			n := m.Out - x.Points[i].Out
			sum, size = combine(sum, m.Sum, n), size+n
			if sum != m.CRC {
				return 0, fmt.Errorf("span %d: gzip: offset %d: checksum is %08x, not %08x as the trailer says: %w", i, m.In-8, sum, m.CRC, fault.ErrIntegrity)
			}
			if uint32(size) != m.Size {
				return 0, fmt.Errorf("span %d: gzip: offset %d: size is %d, not %d as the trailer says (modulo 2^32): %w", i, m.In-4, size, m.Size, fault.ErrIntegrity)
			}
			sum, size = 0, 0
		}
		n := r.end - r.open
		sum, size = combine(sum, r.sum, n), size+n
	}
	return reports[len(reports)-1].end, nil
}

// A verifier inflates one span after the other.
type verifier struct {
	x      *Index
	c      cursor
	window [WindowSize]byte // as it is
}

func (v *verifier) span(blob io.ReaderAt, i int) spanReport {
	r := spanReport{done: true, open: v.x.Points[i].Out}
	if r.err = v.c.resume(blob, v.x, i); r.err == nil {
		if i == len(v.x.Points)-1 {
			v.toEnd(&r, i)
		} else {
			v.toNext(&r, i)
		}
	}
	if r.err != nil {
		r.err = spanError(i, r.err)
	}
	return r
}

// begin is where span i begins in the blob, for progress: the first one has the
// bytes in front of it, too.
func (v *verifier) begin(i int) int64 {
	if i == 0 {
		return 0
	}
	return v.x.Points[i].In
}

// memberEnd notes the end of a member that lies in the span.
func (r *spanReport) memberEnd(m inflate.MemberEnd) {
	if !r.ends {
		r.ends, r.member = true, m
	}
	r.open = m.Out
}

// toEnd inflates the last span, i, and what is behind it.
func (v *verifier) toEnd(r *spanReport, i int) {
	z := &v.c.z
	z.OnMember(r.memberEnd)
	for r.err == nil {
		_, r.err = z.Discard(1 << 30)
	}
	r.end = z.OutputOffset()
	r.used = z.InputOffset() - v.begin(i)
	switch {
	case r.err != io.EOF:
	case v.x.Size >= 0 && r.end != v.x.Size:
		r.err = fmt.Errorf("the data ends at %d, not at %d as the index says: %w", r.end, v.x.Size, fault.ErrCorrupt)
	default:
		r.err = nil
	}
}

// toNext inflates span i, and wants the decoder to pass the next point with its
// window in hand.
func (v *verifier) toNext(r *spanReport, i int) {
	z, next := &v.c.z, &v.x.Points[i+1]
	found, same := false, true
	z.OnMember(func(m inflate.MemberEnd) {
		if !found { // else it is decoded beyond the span
			r.memberEnd(m)
		}
	})
	z.OnBoundary(func(b inflate.Boundary) {
		if found || b.In != next.In || b.Out != next.Out || b.Bits != next.Bits {
			return
		}
		found = true
		r.sum = z.Sum()
		// c's own window has done its work.
		want, err := v.x.window(i+1, &v.c.window)
		if r.err = err; want != nil && !b.Member && err == nil {
			for j := WindowSize - z.Window(v.window[:]); j < WindowSize; j++ {
				same = same && (want[j] == v.window[j] || want[j] == 0)
			}
		}
	})
	r.end = next.Out
	r.used = next.In - v.begin(i)
	// The boundary is passed when the byte behind it is asked for.
	_, err := z.Discard(next.Out - v.x.Points[i].Out)
	if err == nil {
		_, err = z.Discard(1)
	}
	switch {
	case r.err != nil:
	case found && !same:
		r.err = fmt.Errorf("the window of point %d is not what comes before it: %w", i+1, fault.ErrCorrupt)
	case found:
	case err != nil && err != io.EOF:
		r.err = err
	default:
		r.err = fmt.Errorf("point %d (in=%d out=%d bits=%d) is not at a block's edge: %w", i+1, next.In, next.Out, next.Bits, fault.ErrCorrupt)
	}
}
