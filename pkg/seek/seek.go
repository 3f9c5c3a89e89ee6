// Package seek is the seek section of an index image: what is needed to read
// an image's layers at any offset, and to verify what was read, while they
// still lie compressed in a registry.
//
// A section lists the layers from the lowest up. Each layer is cut into spans
// that can be decoded on their own (gzip: from one checkpoint to the next;
// zstd: whole frames; plain: the whole blob), and the compressed bytes of each
// span are covered by SHA-256 digests of pieces of at most PieceSize bytes. A
// reader fetches a span's bytes, verifies each piece it uses, and only then
// decodes.
//
// docs/formats.md describes the bytes; format.go is their only other home.
package seek

import (
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// PieceSize is the number of blob bytes under one digest. The last piece of a
// span is shorter.
const PieceSize = 1 << 20

// Kind says how a layer's bytes are encoded. The values are the ones on disk.
type Kind uint8

// The kinds of layers that can be read at an offset.
const (
	Plain Kind = 1 // the blob is the tar
	Gzip  Kind = 2 // RFC 1952, one or more members
	Zstd  Kind = 3 // RFC 8878, one or more frames
)

func (k Kind) String() string {
	switch k {
	case Plain:
		return "plain"
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// A Section describes all layers of an index image.
type Section struct {
	Layers   []Layer             // from the lowest up, in the order of the image's device slots
	Manifest *ocispec.Descriptor // the image manifest, where known
}

// A Layer describes one blob.
type Layer struct {
	Descriptor ocispec.Descriptor // media type, digest and size of the blob as it is stored
	Kind       Kind
	Size       int64  // bytes, uncompressed
	Spans      []Span // in order; a plain layer has exactly one, an empty one none
}

// A Span is a part of a layer that can be decoded without what lies before it.
type Span struct {
	// In and Out are the offsets, in bytes, of the span's start in the blob
	// and in the uncompressed layer.
	In, Out int64
	// Bits counts the unused top bits of byte In-1 where the span starts in
	// mid-byte (0..7; gzip only).
	Bits uint8
	// Window is the 32 KiB of output before the span, reduced to what the span
	// refers to (gzip only).
	Window Window
	// Digests are the SHA-256 of the span's blob bytes, see Layer.Range, in
	// pieces of PieceSize.
	Digests [][32]byte
}

// Tag is what an index image's device slot calls the layer: the first 64 hex
// digits of its digest, which is all of a SHA-256.
func (l *Layer) Tag() string {
	hex := l.Descriptor.Digest.Encoded()
	return hex[:min(len(hex), 64)]
}

// Range returns where span i lies: blob bytes [in, inEnd), which for a span
// that starts in mid-byte begin with the byte shared with its neighbour, and
// uncompressed bytes [out, outEnd).
func (l *Layer) Range(i int) (in, inEnd, out, outEnd int64) {
	s := &l.Spans[i]
	in, inEnd, out, outEnd = s.Start(), l.Descriptor.Size, s.Out, l.Size
	if i+1 < len(l.Spans) {
		inEnd, outEnd = l.Spans[i+1].In, l.Spans[i+1].Out
	}
	return in, inEnd, out, outEnd
}

// Start is the offset of the first blob byte that the span needs.
func (s *Span) Start() int64 {
	if s.Bits > 0 {
		return s.In - 1
	}
	return s.In
}

// Pieces is the number of digests that cover n blob bytes.
func Pieces(n int64) int64 { return (n + PieceSize - 1) / PieceSize }
