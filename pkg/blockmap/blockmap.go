// Package blockmap joins sources of bytes into one address space: a disk made
// of an index and of the layers behind it.
package blockmap

import (
	"context"
	"errors"
	"io"
	"sort"

	"golang.org/x/sync/errgroup"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// ReaderAtContext is a source of bytes for many callers at once. Like
// io.ReaderAt, ReadAtContext fills p or returns an error.
type ReaderAtContext interface {
	ReadAtContext(ctx context.Context, p []byte, off int64) (n int, err error)
	Size() int64 // bytes
}

// Ready is implemented by sources that can tell whether bytes are at hand:
// ReadReady fills p if that needs no waiting, and reports whether it did.
type Ready interface {
	ReadReady(p []byte, off int64) bool
}

// A Segment is one source's place in the address space. What the source does
// not fill reads as zeros.
type Segment struct {
	Source ReaderAtContext // nil: all zeros
	Size   int64           // bytes of address space, at least the source's size
}

// maxAhead bounds how many segments one read works on at the same time.
const maxAhead = 4

// A Map is segments one behind the other. It is a ReaderAtContext itself.
type Map struct {
	segs []Segment
	ends []int64 // ends[i] is where segment i ends
}

// New lays out segments in order. Those of size 0 are allowed.
func New(segs []Segment) (*Map, error) {
	m := &Map{segs: append([]Segment(nil), segs...)}
	var end int64
	for i, s := range m.segs {
		if s.Size < 0 || s.Size > 1<<62-end {
			return nil, fault.Usagef("segment %d: %d bytes behind %d", i, s.Size, end)
		}
		if s.Source != nil && s.Source.Size() > s.Size {
			return nil, fault.Usagef("segment %d: a source of %d bytes in %d bytes of address space", i, s.Source.Size(), s.Size)
		}
		end += s.Size
		m.ends = append(m.ends, end)
	}
	return m, nil
}

// Size is the length of the address space in bytes.
func (m *Map) Size() int64 {
	if len(m.ends) == 0 {
		return 0
	}
	return m.ends[len(m.ends)-1]
}

// A part is what one segment has to do for a read.
type part struct {
	seg Segment
	p   []byte
	off int64 // in the segment
}

// ReadAtContext reads across segments; they are read at the same time, since
// each may lie behind a network. After an error the contents of p are
// undefined, and n is what is right at its front.
func (m *Map) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fault.Usagef("a read at a negative offset, %d", off)
	}
	size := m.Size()
	if off >= size {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	var atEnd error
	if int64(len(p)) > size-off {
		p, atEnd = p[:size-off], io.EOF
	}
	parts := m.split(p, off)
	if len(parts) == 1 {
		if n, err := parts[0].read(ctx); err != nil {
			return n, err
		}
		return len(p), atEnd
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxAhead)
	for i := range parts {
		g.Go(func() error {
			_, err := parts[i].read(gctx)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	return len(p), atEnd
}

// split divides a read that lies within the address space.
func (m *Map) split(p []byte, off int64) []part {
	var parts []part
	// The first segment that ends behind off.
	i := sort.Search(len(m.ends), func(i int) bool { return m.ends[i] > off })
	for ; len(p) > 0; i++ {
		start := m.ends[i] - m.segs[i].Size
		n := min(int64(len(p)), m.ends[i]-off)
		if n > 0 {
			parts = append(parts, part{m.segs[i], p[:n], off - start})
			p, off = p[n:], off+n
		}
	}
	return parts
}

// ReadReady implements Ready, for reads within one segment.
func (m *Map) ReadReady(p []byte, off int64) bool {
	i := sort.Search(len(m.ends), func(i int) bool { return m.ends[i] > off })
	if off < 0 || i == len(m.ends) || int64(len(p)) > m.ends[i]-off {
		return false
	}
	s := &m.segs[i]
	off -= m.ends[i] - s.Size
	if s.Source == nil {
		clear(p)
		return true
	}
	data := max(0, min(int64(len(p)), s.Source.Size()-off))
	if data > 0 {
		r, ok := s.Source.(Ready)
		if !ok || !r.ReadReady(p[:data], off) {
			return false
		}
	}
	clear(p[data:])
	return true
}

func (t part) read(ctx context.Context) (int, error) {
	var data int64 // bytes of p that the source has
	if t.seg.Source != nil {
		data = max(0, min(int64(len(t.p)), t.seg.Source.Size()-t.off))
	}
	if data > 0 {
		n, err := t.seg.Source.ReadAtContext(ctx, t.p[:data], t.off)
		if int64(n) < data {
			// An end where the source said there is more is no end of ours.
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return n, err
		}
	}
	clear(t.p[data:])
	return len(t.p), nil
}
