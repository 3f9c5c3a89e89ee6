package zinfo

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/inflate"
)

// maxIdle is how many decoders a ReaderAt keeps between reads: one for every
// client that reads in sequence, and not too many.
const maxIdle = 8

// A ReaderAt reads the decompressed data of a gzip file at any offset. It keeps
// no data, only idle decoders: a read that begins where an earlier one in the
// same span ended, or behind, goes on from there, so that reading in sequence
// inflates nothing twice. It keeps eight of them at most, of some 400 KB each, and
// allocates nothing once it has as many as there are callers at once. It is safe
// for concurrent use.
type ReaderAt struct {
	x    *Index
	blob io.ReaderAt

	mu   sync.Mutex
	idle []*cursor // the longest unused first
}

var _ io.ReaderAt = (*ReaderAt)(nil)

// NewReaderAt returns a ReaderAt of what blob, of which x is an index, holds.
func NewReaderAt(blob io.ReaderAt, x *Index) *ReaderAt {
	return &ReaderAt{x: x, blob: blob}
}

// Size is the size of the decompressed data, or -1 if the index does not have
// it.
func (r *ReaderAt) Size() int64 { return r.x.Size }

// ReadAt reads len(p) bytes from offset off on. It gives io.EOF with fewer at
// the end of the data. Other errors than those of the blob are
// fault.ErrCorrupt and fault.ErrIntegrity. A point that leads nowhere, as those
// of another file's index do, is such an error.
func (r *ReaderAt) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fault.Usagef("zinfo: a read at a negative offset, %d", off)
	}
	if r.x.Size >= 0 && off >= r.x.Size {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	i := r.x.Find(off)
	c := r.take(r.x.Points[i].Out, off)
	var n int
	var err error
	if c.pos < 0 {
		err = c.start(r.blob, r.x, i, off)
	}
	if err == nil {
		n, err = c.readAt(p, off)
	}
	if err != nil && err != io.EOF {
		err = spanError(i, err)
	}
	if err == io.EOF && r.x.Size >= 0 && off+int64(n) < r.x.Size {
		err = fmt.Errorf("the data ends at %d, not at %d as the index says: %w", off+int64(n), r.x.Size, fault.ErrCorrupt)
	}
	r.give(c)
	return n, err
}

// take gives the idle decoder that is nearest before off, but not before min,
// or else the one that was not used for longest, or a new one; the latter two
// have a negative pos.
func (r *ReaderAt) take(min, off int64) *cursor {
	r.mu.Lock()
	defer r.mu.Unlock()
	best := -1
	for i, c := range r.idle {
		if c.pos >= min && c.pos <= off && (best < 0 || c.pos > r.idle[best].pos) {
			best = i
		}
	}
	fresh := best < 0
	if fresh {
		// A decoder that stands somewhere is worth keeping as long as there
		// is room.
		if len(r.idle) < maxIdle && (len(r.idle) == 0 || r.idle[0].pos >= 0) {
			return &cursor{pos: -1}
		}
		best = 0
	}
	c := r.idle[best]
	r.idle = append(r.idle[:best], r.idle[best+1:]...)
	if fresh {
		c.pos = -1
	}
	return c
}

// give puts a decoder back: those that stand nowhere come first, since they are
// the first to be used.
func (r *ReaderAt) give(c *cursor) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.idle) == maxIdle {
		if c.pos < 0 {
			return
		}
		r.idle = append(r.idle[:0], r.idle[1:]...)
	}
	r.idle = append(r.idle, c)
	if c.pos < 0 {
		copy(r.idle[1:], r.idle)
		r.idle[0] = c
	}
}

// A cursor is a decoder that stands at an offset of the decompressed data.
type cursor struct {
	z      inflate.Reader
	in     sectionReader
	pos    int64 // or -1
	window [WindowSize]byte
}

// sectionReader is an io.SectionReader that can be set anew.
type sectionReader struct {
	r        io.ReaderAt
	off, end int64
}

func (s *sectionReader) Read(p []byte) (int, error) {
	if s.end >= 0 {
		if s.off >= s.end {
			return 0, io.EOF
		}
		p = p[:min(int64(len(p)), s.end-s.off)]
	}
	n, err := s.r.ReadAt(p, s.off)
	s.off += int64(n)
	if n > 0 && err != nil && errors.Is(err, io.EOF) {
		err = nil // it comes again
	}
	return n, err
}

// resume puts c at point i.
func (c *cursor) resume(blob io.ReaderAt, x *Index, i int) error {
	window, err := x.window(i, &c.window)
	if err != nil {
		return err
	}
	p := &x.Points[i]
	c.in = sectionReader{blob, p.start(), x.BlobSize}
	c.z.Resume(&c.in, p.boundary(), window)
	c.pos = p.Out
	return nil
}

// leadIn is how much behind a point must decode before any of it is given, in
// bytes. Places at random in compressed data, which is where the points of
// another file's index are, pass for the start of a block one time in four, but
// not for long.
const leadIn = 64 << 10

// start puts c at point i, to read from off on.
func (c *cursor) start(blob io.ReaderAt, x *Index, i int, off int64) error {
	if err := c.resume(blob, x, i); err != nil || off-c.pos >= leadIn {
		return err
	}
	if _, err := c.z.Discard(leadIn); err != nil && err != io.EOF {
		c.pos = -1
		return err
	}
	return c.resume(blob, x, i)
}

// readAt reads from off on, which is not before c's position.
func (c *cursor) readAt(p []byte, off int64) (n int, err error) {
	_, err = c.z.Discard(off - c.pos)
	for n < len(p) && err == nil {
		var k int
		k, err = c.z.Read(p[n:])
		n += k
	}
	c.pos = c.z.OutputOffset()
	if err != nil {
		c.pos = -1
	}
	if n == len(p) {
		err = nil
	}
	return n, err
}
