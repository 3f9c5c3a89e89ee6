package zinfo

import (
	"bytes"
	"errors"
	"io"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/inflate"
)

// Options says what index to make. The zero value makes SOCI's.
type Options struct {
	// SpanSize is the least distance of two points in bytes of output; 0 means
	// DefaultSpanSize.
	SpanSize int64
	// Sparse zeroes the bytes of each window that are not used by what comes
	// after it, nine tenths of them, so that the index compresses well. Any
	// reader can use it, but it is no longer the same as SOCI's. It takes a
	// SpanSize of at least WindowSize.
	Sparse bool
	// PerMember takes a point at the start of every member: erofs-utils' reader
	// cannot read beyond the end of one. It makes an index larger than the data
	// if the members are small.
	PerMember bool
	// MaxSize bounds the size of the index in bytes, since it is held in memory
	// and input can be made to blow it up: 4 KiB of gzip data can be worth a
	// point, in per-member mode even 20 bytes. 0 means 1 GiB, enough for 128 GiB
	// of output at the default span size.
	MaxSize int64
}

// ErrTooLarge: the index would be larger than Options.MaxSize.
var ErrTooLarge = errors.New("the index would be too large: use a larger span size")

// maxIndex is Options.MaxSize if that is 0.
const maxIndex = 1 << 30

// A Reader decompresses a gzip file and takes points as it goes.
type Reader struct {
	z      *inflate.Reader
	opt    Options
	index  Index
	trace  inflate.Trace
	window [WindowSize]byte
	err    error
}

var (
	_ io.Reader   = (*Reader)(nil)
	_ io.WriterTo = (*Reader)(nil)
)

// NewReader returns a Reader of the gzip file that r gives. Reading it to the
// end makes the index.
func NewReader(r io.Reader, o Options) *Reader {
	if o.SpanSize == 0 {
		o.SpanSize = DefaultSpanSize
	}
	if o.MaxSize == 0 {
		o.MaxSize = maxIndex
	}
	x := &Reader{z: inflate.NewReader(r), opt: o, index: Index{SpanSize: o.SpanSize, Size: -1, BlobSize: -1}}
	switch {
	case o.SpanSize < 0:
		x.err = fault.Usagef("zinfo: a negative span size, %d", o.SpanSize)
	case o.Sparse && o.SpanSize < WindowSize:
		// One trace runs at a time; it takes WindowSize bytes to finish.
		x.err = fault.Usagef("zinfo: sparse windows take a span size of at least %d bytes", WindowSize)
	}
	x.z.OnBoundary(x.boundary)
	return x
}

// boundary takes a point, or does not.
func (r *Reader) boundary(b inflate.Boundary) {
	if r.err != nil {
		return
	}
	x := &r.index
	if n := len(x.Points); n > 0 {
		last := &x.Points[n-1]
		switch {
		case b.Out == last.Out && (b.Out == 0 || r.opt.PerMember && b.Member):
			// Nothing came out since: this one does for both. Its window is
			// not needed, since there either is no output, or none of this
			// member.
			*last = Point{In: b.In, Out: b.Out, Bits: b.Bits}
			return
		case b.Out-last.Out > r.opt.SpanSize:
		case r.opt.PerMember && b.Member:
		default:
			return
		}
		r.sparsify()
	}
	if x.EncodedSize()+pointSize > r.opt.MaxSize {
		r.err = ErrTooLarge
		return
	}
	p := Point{In: b.In, Out: b.Out, Bits: b.Bits}
	if !b.Member {
		if r.z.Window(r.window[:]); r.window != zeroWindow {
			p.Window = bytes.Clone(r.window[:])
		}
		if r.opt.Sparse {
			r.z.StartTrace(&r.trace)
		}
	}
	x.Points = append(x.Points, p)
}

// sparsify finishes the window of the last point: by the time there is
// another, or the end, it is known what was used of it.
func (r *Reader) sparsify() {
	if !r.opt.Sparse || len(r.index.Points) == 0 {
		return
	}
	p := &r.index.Points[len(r.index.Points)-1]
	if p.Window != nil && !r.trace.Apply(p.Window) {
		p.Window = nil
	}
}

// finish is called with what ended the decoder's work.
func (r *Reader) finish(err error) error {
	if r.err == nil && err == io.EOF {
		r.sparsify()
		r.index.Size = r.z.OutputOffset()
		r.index.BlobSize = r.z.InputOffset()
		r.err = io.EOF
	}
	if r.err != nil {
		return r.err
	}
	return err
}

// Read gives decompressed bytes. io.EOF means that the index is complete.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.z.Read(p)
	if err != nil || r.err != nil {
		err = r.finish(err)
	}
	return n, err
}

// WriteTo decompresses everything to w.
func (r *Reader) WriteTo(w io.Writer) (int64, error) {
	if r.err != nil && r.err != io.EOF {
		return 0, r.err
	}
	n, err := r.z.WriteTo(&checkWriter{w, r})
	if err == nil {
		err = io.EOF
	}
	if err = r.finish(err); err == io.EOF {
		err = nil
	}
	return n, err
}

// checkWriter stops WriteTo when no more points can be taken.
type checkWriter struct {
	w io.Writer
	r *Reader
}

func (c *checkWriter) Write(p []byte) (int, error) {
	if c.r.err != nil {
		return 0, c.r.err
	}
	return c.w.Write(p)
}

// Index returns the index after Read gave io.EOF or WriteTo succeeded, and
// before that an error.
func (r *Reader) Index() (*Index, error) {
	switch r.err {
	case io.EOF:
		return &r.index, nil
	case nil:
		return nil, fault.Usagef("zinfo: the index is asked for before the end of the data")
	}
	return nil, r.err
}

// InputOffset is how far the input was decoded, for progress.
func (r *Reader) InputOffset() int64 { return r.z.InputOffset() }
