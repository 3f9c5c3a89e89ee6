package zinfo

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
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
	if x.Unpack != nil {
		return 0, fmt.Errorf("zinfo: an index with windows of another form is not written: %w", fault.ErrUsage)
	}
	b := make([]byte, headerSize, pointSize)
	binary.LittleEndian.PutUint32(b, uint32(len(x.Points)))
	binary.LittleEndian.PutUint64(b[4:], uint64(x.SpanSize))
	n, err := w.Write(b)
	total := int64(n)
	for i := 0; i < len(x.Points) && err == nil; i++ {
		p := &x.Points[i]
		b = b[:fieldsSize]
		binary.LittleEndian.PutUint64(b, uint64(p.In))
		binary.LittleEndian.PutUint64(b[8:], uint64(p.Out))
		b[16] = p.Bits
		if p.Window != nil {
			b = append(b, p.Window...)
		} else {
			b = b[:pointSize]
			clear(b[fieldsSize:])
		}
		n, err = w.Write(b)
		total += int64(n)
	}
	return total, err
}

// Load reads a zinfo file of version 1 or 2. blobSize is the size of the
// compressed data, or -1 if it is not known; it is the bound of the offsets in
// the file. A file that promises what cannot be is refused with
// fault.ErrCorrupt. Memory is only taken for points that are really there.
//
// SOCI and erofs-utils write several checkpoints of the same output offset if
// the data begins with empty members or blocks; the last of them is kept.
func Load(r io.Reader, blobSize int64) (*Index, error) {
	br := bufio.NewReaderSize(r, 1<<16)
	var h [headerSize]byte
	if _, err := io.ReadFull(br, h[:]); err != nil {
		return nil, loadError(0, err)
	}
	have := int64(int32(binary.LittleEndian.Uint32(h[:])))
	x := &Index{SpanSize: int64(binary.LittleEndian.Uint64(h[4:])), Size: -1, BlobSize: max(blobSize, -1)}
	if have < 1 {
		return nil, corrupt(0, "%d checkpoints", have)
	}
	if x.SpanSize < 0 {
		return nil, corrupt(4, "a span size of %d", x.SpanSize)
	}

	off := int64(headerSize)
	window := make([]byte, WindowSize)
	var points []Point
	for {
		var b [fieldsSize]byte
		_, err := io.ReadFull(br, b[:])
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, loadError(off, err)
		}
		if int64(len(points)) == have {
			return nil, corrupt(off, "data after the last of %d checkpoints", have)
		}
		if _, err := io.ReadFull(br, window); err != nil {
			return nil, loadError(off, err)
		}
		in, out := binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])
		if in > maxOffset || out > maxOffset || b[16] > 7 {
			return nil, corrupt(off, "checkpoint at in=%d out=%d bits=%d", in, out, b[16])
		}
		p := Point{In: int64(in), Out: int64(out), Bits: b[16]}
		if !bytes.Equal(window, zeroWindow[:]) {
			p.Window = bytes.Clone(window)
		}
		points = append(points, p)
		off += pointSize
	}
	switch int64(len(points)) {
	case have:
		if points[0].Out == 0 {
			points[0].Window = nil // erofs-utils writes what its memory held
		}
	case have - 1:
		points = append([]Point{{In: minHeader}}, points...)
	default:
		return nil, corrupt(off, "the file ends after %d of %d checkpoints", len(points), have)
	}

	for _, p := range points {
		if n := len(x.Points); n > 0 && p.Out == x.Points[n-1].Out && p.In > x.Points[n-1].In {
			x.Points[n-1] = p
			continue
		}
		x.Points = append(x.Points, p)
	}
	if err := x.Validate(); err != nil {
		return nil, err
	}
	return x, nil
}

// zeroWindow is what a nil Window stands for.
var zeroWindow [WindowSize]byte

// Validate checks that the points can be those of a gzip file, of the sizes
// that the index gives: they lie within it, increase, and no span expands by
// more than DEFLATE can. The error is a fault.ErrCorrupt.
func (x *Index) Validate() error {
	if len(x.Points) == 0 || x.Points[0].Out != 0 {
		return corrupt(headerSize, "no checkpoint at the start of the data")
	}
	for i := range x.Points {
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
			continue
		case p.In <= x.Points[i-1].In || p.Out <= x.Points[i-1].Out:
			bad = "not behind the one before it"
		case p.Out-x.Points[i-1].Out > maxExpand(p.In-x.Points[i-1].In):
			bad = "more output than the input can hold"
		default:
			continue
		}
		if bad != "" {
			return corrupt(headerSize+pointSize*int64(i), "checkpoint %d (in=%d out=%d bits=%d): %s", i, p.In, p.Out, p.Bits, bad)
		}
	}
	return nil
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

// loadError is the error for a read that failed at the record at off.
func loadError(off int64, err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("zinfo: offset %d: unexpected end: %w: %w", off, fault.ErrCorrupt, io.ErrUnexpectedEOF)
	}
	return err
}
