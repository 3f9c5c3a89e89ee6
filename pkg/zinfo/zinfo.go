// Package zinfo makes and uses checkpoint files of gzip data: with one, any
// part of the decompressed data can be had by inflating a span of a few MiB.
//
// # Format
//
// The format is that of SOCI, version 2, which erofs-utils writes and reads
// too. All numbers are little-endian, nothing is padded, and there is no magic:
//
//	header, 12 bytes
//	  have       int32   number of checkpoints
//	  span_size  int64   bytes of output wanted between two of them
//	checkpoint, 32785 bytes, have times
//	  in         uint64  first byte of input wholly behind the checkpoint
//	  out        uint64  offset of the output there
//	  bits       uint8   unused bits (0 to 7) at the top of byte in-1
//	  window     [32768]uint8  output before it, oldest first, zeros where
//	                     there is less
//
// Version 1 leaves the first checkpoint out; it is at in=10, out=0. Which of
// the two a file is can only be told from its length.
//
// # Where checkpoints are
//
// The first is at the end of the first member's header. Another is taken at
// the end of a DEFLATE block that is not its member's last, or at the end of a
// member's header, if it is more than span_size behind the one before. On
// files of one member the result is byte for byte the one of SOCI. Its rule
// also gives several checkpoints at offset 0 if a file begins with empty
// members or empty blocks, which its own reader then refuses: here the last
// replaces the others.
package zinfo

import (
	"github.com/layerpipe/layerpipe/pkg/inflate"
)

// DefaultSpanSize is what is used for a span size of 0, here and by the peers.
const DefaultSpanSize = 4 << 20

// WindowSize is the size of a Point's Window.
const WindowSize = inflate.WindowSize

// zeroWindow is what a nil Window stands for.
var zeroWindow [WindowSize]byte

// A Point is a place where decompression can be started.
type Point struct {
	In, Out int64  // offsets in the compressed and decompressed data
	Bits    uint8  // bits of byte In-1 still to be used, 0 to 7
	Window  []byte // the WindowSize bytes of output before, or nil for zeros
}

// start is the offset of the first compressed byte that is needed.
func (p *Point) start() int64 {
	if p.Bits > 0 {
		return p.In - 1
	}
	return p.In
}

// An Index is the contents of a zinfo file, and, where they are known, the
// sizes of what it is an index of.
type Index struct {
	SpanSize int64   // bytes of output wanted between points
	Points   []Point // In and Out increase strictly; the first Out is 0
	Size     int64   // of the decompressed data, or -1
	BlobSize int64   // of the compressed data, or -1

	// Unpack, if not nil, fills window, of WindowSize bytes, with that of point
	// i, for an index whose windows are kept elsewhere or in another form. The
	// Windows of the Points are not looked at then. It may be called by several
	// goroutines at once.
	Unpack func(i int, window []byte) error
}

// ReadWindow fills window, of WindowSize bytes, with that of point i.
func (x *Index) ReadWindow(i int, window []byte) error {
	if x.Unpack != nil {
		return x.Unpack(i, window)
	}
	if w := x.Points[i].Window; w != nil {
		copy(window[:WindowSize], w)
	} else {
		clear(window[:WindowSize])
	}
	return nil
}

// window is that of point i, or nil for zeros. buf may be used to hold it.
func (x *Index) window(i int, buf *[WindowSize]byte) ([]byte, error) {
	if x.Unpack == nil {
		return x.Points[i].Window, nil
	}
	return buf[:], x.Unpack(i, buf[:])
}

// Range gives what span i is made from and what it makes: the compressed bytes
// from compOff up to compEnd, decompressed those from outOff up to outEnd.
// Spans that lie side by side may share a compressed byte. The ends of the last
// span are -1 where the Index does not know the sizes.
func (x *Index) Range(i int) (compOff, compEnd, outOff, outEnd int64) {
	p := &x.Points[i]
	compEnd, outEnd = x.BlobSize, x.Size
	if i+1 < len(x.Points) {
		compEnd, outEnd = x.Points[i+1].In, x.Points[i+1].Out
	}
	return p.start(), compEnd, p.Out, outEnd
}

// Find is the span that the byte at offset off of the decompressed data is in.
func (x *Index) Find(off int64) int {
	lo, hi := 0, len(x.Points)
	for hi-lo > 1 {
		if mid := (lo + hi) / 2; x.Points[mid].Out <= off {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo
}
