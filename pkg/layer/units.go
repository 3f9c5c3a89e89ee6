package layer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/inflate"
	"github.com/layerpipe/layerpipe/pkg/seek"
)

// Units are the parts of a layer that are fetched, verified, decoded and
// cached as a whole: the spans of a gzip or zstd layer, pieces of a plain one.
type units interface {
	// count is the number of units.
	count() int
	// find returns the unit that has the layer's byte at off, which must be
	// within the layer.
	find(off int64) int
	// span returns the unit's range in the blob, and in the layer.
	span(i int) (in, inEnd, out, outEnd int64)
	// digests returns those of the pieces of the blob's range, or nil.
	digests(i int) [][32]byte
	// decode fills dst, which has the unit's size, from comp, its range in
	// the blob.
	decode(i int, dst, comp []byte) error
	// open decodes a unit as a stream, for those too large for memory. The
	// result may go on behind the unit's end.
	open(i int, comp io.Reader) (io.ReadCloser, error)
}

// findSpan finds the last span at or before off.
func findSpan(spans []seek.Span, off int64) int {
	return sort.Search(len(spans), func(i int) bool { return spans[i].Out > off }) - 1
}

// plainUnits cuts a blob that is not compressed into equal parts.
type plainUnits struct {
	size int64
	unit int64
	sums [][32]byte // for parts of seek.PieceSize
}

func (u *plainUnits) count() int         { return int((u.size + u.unit - 1) / u.unit) }
func (u *plainUnits) find(off int64) int { return int(off / u.unit) }

func (u *plainUnits) span(i int) (in, inEnd, out, outEnd int64) {
	at := int64(i) * u.unit
	end := min(at+u.unit, u.size)
	return at, end, at, end
}

func (u *plainUnits) digests(i int) [][32]byte {
	if u.sums == nil {
		return nil
	}
	return u.sums[i : i+1]
}

func (u *plainUnits) decode(_ int, dst, comp []byte) error {
	copy(dst, comp)
	return nil
}

func (u *plainUnits) open(_ int, comp io.Reader) (io.ReadCloser, error) {
	return io.NopCloser(comp), nil
}

// gzipUnits are what lies between checkpoints.
type gzipUnits struct{ l *seek.Layer }

func (u *gzipUnits) count() int                                { return len(u.l.Spans) }
func (u *gzipUnits) find(off int64) int                        { return findSpan(u.l.Spans, off) }
func (u *gzipUnits) span(i int) (in, inEnd, out, outEnd int64) { return u.l.Range(i) }
func (u *gzipUnits) digests(i int) [][32]byte                  { return u.l.Spans[i].Digests }

// An inflater is what it takes to inflate a span, some 400 KB.
type inflater struct {
	z      inflate.Reader
	in     bytes.Reader
	window [seek.WindowSize]byte
}

var inflaters = sync.Pool{New: func() any { return new(inflater) }}

// resume sets the inflater to the start of span i.
func (u *gzipUnits) resume(f *inflater, i int, comp io.Reader) {
	s := &u.l.Spans[i]
	s.Window.Unpack(f.window[:])
	// Only the first span is known to begin with a member.
	f.z.Resume(comp, inflate.Boundary{In: s.In, Out: s.Out, Bits: s.Bits, Member: s.Out == 0}, f.window[:])
}

func (u *gzipUnits) decode(i int, dst, comp []byte) error {
	f := inflaters.Get().(*inflater)
	defer func() {
		f.in.Reset(nil)
		inflaters.Put(f)
	}()
	f.in.Reset(comp)
	u.resume(f, i, &f.in)
	if n, err := f.z.ReadFull(dst); err != nil {
		return shortOf(err, int64(n), int64(len(dst)))
	}
	if i < len(u.l.Spans)-1 {
		return nil
	}
	return atEnd(&f.z)
}

func (u *gzipUnits) open(i int, comp io.Reader) (io.ReadCloser, error) {
	f := new(inflater)
	u.resume(f, i, comp)
	return io.NopCloser(&f.z), nil
}

// zstdUnits are frames, some together.
type zstdUnits struct{ l *seek.Layer }

func (u *zstdUnits) count() int                                { return len(u.l.Spans) }
func (u *zstdUnits) find(off int64) int                        { return findSpan(u.l.Spans, off) }
func (u *zstdUnits) span(i int) (in, inEnd, out, outEnd int64) { return u.l.Range(i) }
func (u *zstdUnits) digests(i int) [][32]byte                  { return u.l.Spans[i].Digests }

var unzstders = sync.Pool{New: func() any {
	d, err := newZstdDecoder(zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return err
	}
	return d
}}

func (u *zstdUnits) decode(i int, dst, comp []byte) error {
	v := unzstders.Get()
	d, ok := v.(*zstd.Decoder)
	if !ok {
		return v.(error)
	}
	defer unzstders.Put(d)
	got, err := d.DecodeAll(comp, dst[:0:len(dst)])
	if err != nil {
		return zstdError(u.l.Spans[i].In, err)
	}
	if len(got) != len(dst) {
		return shortOf(io.ErrUnexpectedEOF, int64(len(got)), int64(len(dst)))
	}
	return nil
}

func (u *zstdUnits) open(i int, comp io.Reader) (io.ReadCloser, error) {
	d, err := newZstdDecoder()
	if err != nil {
		return nil, err
	}
	if err := d.Reset(comp); err != nil {
		d.Close()
		return nil, zstdError(u.l.Spans[i].In, err)
	}
	return d.IOReadCloser(), nil
}

// shortOf says of an end that it came too early.
func shortOf(err error, got, want int64) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("the data ends after %d bytes of %d: %w", got, want, fault.ErrCorrupt)
	}
	return err
}

// atEnd checks that a decoder has come to its proper end.
func atEnd(r io.Reader) error {
	var b [1]byte
	n, err := io.ReadFull(r, b[:])
	if n > 0 {
		return fmt.Errorf("the data goes on beyond its size: %w", fault.ErrCorrupt)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
