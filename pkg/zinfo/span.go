package zinfo

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/inflate"
)

// A spanDecoder is what it takes to inflate a span: some 400 KB, so it is kept.
type spanDecoder struct {
	z      inflate.Reader
	in     memReader
	window [WindowSize]byte
}

var decoders = sync.Pool{New: func() any { return new(spanDecoder) }}

// memReader is a bytes.Reader that can live in a pool without holding on to
// what it read.
type memReader struct{ b []byte }

func (m *memReader) Read(p []byte) (int, error) {
	if len(m.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, m.b)
	m.b = m.b[n:]
	return n, nil
}

// DecodeSpan inflates the output from point i on into dst, all of it. comp are
// the compressed bytes from the offset on that Range gives for the span; fewer
// are enough if dst is not the whole span, and more if it is longer: it may go
// on through further spans and members.
//
// The checksums of members that begin and end within dst are verified. If dst
// is the last span and ends where the data does, the input must end properly,
// too.
//
// Errors are fault.ErrCorrupt and fault.ErrIntegrity, with offsets in the blob.
// Nothing is allocated once the pool of decoders is warm. It is safe for
// concurrent use.
func (x *Index) DecodeSpan(i int, comp, dst []byte) error {
	d := decoders.Get().(*spanDecoder)
	err := d.decode(x, i, comp, dst)
	d.in.b = nil
	decoders.Put(d)
	return err
}

func (d *spanDecoder) decode(x *Index, i int, comp, dst []byte) error {
	p := &x.Points[i]
	window, err := x.window(i, &d.window)
	if err != nil {
		return spanError(i, err)
	}
	d.in.b = comp
	d.z.Resume(&d.in, p.boundary(), window)
	if n, err := d.z.ReadFull(dst); err == io.EOF {
		return shortSpan(i, n, len(dst))
	} else if err != nil {
		return spanError(i, err)
	}
	// The last span is not always the only one that reaches the end: a point
	// may be where there is no output behind it.
	if p.Out+int64(len(dst)) != x.Size || i < len(x.Points)-1 && p.start()+int64(len(comp)) < x.BlobSize {
		return nil
	}
	if n, err := d.z.Discard(1); n != 0 {
		return fmt.Errorf("span %d: the data goes on beyond its size of %d: %w", i, x.Size, fault.ErrCorrupt)
	} else if err != io.EOF {
		return spanError(i, err)
	}
	return nil
}

// boundary is p in the decoder's terms. Only the first point is known to be at
// a member's start; elsewhere the window may be of use.
func (p *Point) boundary() inflate.Boundary {
	return inflate.Boundary{In: p.In, Out: p.Out, Bits: p.Bits, Member: p.Out == 0}
}

func shortSpan(i, got, want int) error {
	return fmt.Errorf("span %d: the data ends %d bytes early: %w", i, want-got, fault.ErrCorrupt)
}

// spanError says in which span an error is. What is wrong with the data comes
// with an offset; other errors are those of the source.
func spanError(i int, err error) error {
	if e, ok := errors.AsType[*inflate.Error](err); ok {
		return fmt.Errorf("span %d: %w", i, e)
	}
	return err
}
