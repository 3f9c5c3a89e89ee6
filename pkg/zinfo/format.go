package zinfo

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

const (
	headerSize = 12
	fieldsSize = 17 // of a checkpoint, before its window
	pointSize  = fieldsSize + WindowSize

	// A member's header is 10 bytes at least; version 1 takes it to be exactly
	// that, so that files with a name in the header need version 2.
	minHeader = 10

	// maxRatio is the most that DEFLATE can expand: 258 bytes for 2 bits.
	maxRatio = 1032

	// maxOffset bounds offsets, so that sums of them do not overflow.
	maxOffset = 1 << 60
)

// EncodedSize is the size of the file that WriteTo writes.
func (x *Index) EncodedSize() int64 {
	return headerSize + pointSize*int64(len(x.Points))
}

// WriteTo writes the index as a zinfo file of version 2.
func (x *Index) WriteTo(w io.Writer) (int64, error) {
	if len(x.Points) > math.MaxInt32 {
		return 0, fmt.Errorf("zinfo: %d points do not fit: %w", len(x.Points), fault.ErrUnsupported)
	}
	b := make([]byte, headerSize, pointSize)
	binary.LittleEndian.PutUint32(b, uint32(len(x.Points)))
	binary.LittleEndian.PutUint64(b[4:], uint64(x.SpanSize))
	n, err := w.Write(b)
	total := int64(n)
	for i := 0; i < len(x.Points) && err == nil; i++ {
		p := &x.Points[i]
		b = b[:pointSize]
		binary.LittleEndian.PutUint64(b, uint64(p.In))
		binary.LittleEndian.PutUint64(b[8:], uint64(p.Out))
		b[16] = p.Bits
		if err = x.ReadWindow(i, b[fieldsSize:]); err != nil {
			break
		}
		n, err = w.Write(b)
		total += int64(n)
	}
	return total, err
}

// Validate checks that the points can be those of a gzip file, of the sizes
// that the index gives: they lie within it, increase, and no span expands by
// more than DEFLATE can. The error is a fault.ErrCorrupt.
func (x *Index) Validate() error {
	if len(x.Points) == 0 || x.Points[0].Out != 0 {
		return corrupt(headerSize, "no checkpoint at the start of the data")
	}
	for i := range x.Points {
		if err := x.validate(i); err != nil {
			return err
		}
	}
	return nil
}

// validate checks point i by itself and against the one before it.
func (x *Index) validate(i int) error {
	p := &x.Points[i]
	var bad string
	switch {
	case p.Bits > 7, p.In < minHeader, p.In > maxOffset, p.Out > maxOffset:
		bad = "no such position"
	case x.BlobSize >= 0 && p.In >= x.BlobSize:
		bad = "beyond the end of the compressed data"
	case x.Size >= 0 && p.Out > x.Size:
		bad = "beyond the end of the data"
	case p.Window != nil && len(p.Window) != WindowSize:
		bad = "a window that is not 32 KiB"
	case i == 0:
		return nil
	case p.In <= x.Points[i-1].In || p.Out <= x.Points[i-1].Out:
		bad = "not behind the one before it"
	case p.Out-x.Points[i-1].Out > maxExpand(p.In-x.Points[i-1].In):
		bad = "more output than the input can hold"
	default:
		return nil
	}
	return corrupt(headerSize+pointSize*int64(i), "checkpoint %d (in=%d out=%d bits=%d): %s", i, p.In, p.Out, p.Bits, bad)
}

// maxExpand is the most that n bytes of input can become, and a byte shared
// with what came before.
func maxExpand(n int64) int64 {
	if n >= maxOffset/maxRatio {
		return maxOffset
	}
	return maxRatio * (n + 1)
}

func corrupt(off int64, format string, args ...any) error {
	return fmt.Errorf("zinfo: offset %d: %s: %w", off, fmt.Sprintf(format, args...), fault.ErrCorrupt)
}
