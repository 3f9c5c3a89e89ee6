package layer

import (
	"bytes"
	"encoding/binary"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Kind says how a layer's bytes are compressed.
type Kind uint8

// The kinds that NewReader reads. Xz has no random access.
const (
	Plain Kind = iota
	Gzip
	Zstd
	Xz
)

func (k Kind) String() string {
	switch k {
	case Plain:
		return "plain"
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	case Xz:
		return "xz"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// MediaType is the media type of such a layer. OCI's specification has none for
// xz.
func (k Kind) MediaType() string {
	switch k {
	case Gzip:
		return ocispec.MediaTypeImageLayerGzip
	case Zstd:
		return ocispec.MediaTypeImageLayerZstd
	case Xz:
		return ocispec.MediaTypeImageLayer + "+xz"
	}
	return ocispec.MediaTypeImageLayer
}

// SniffSize is how many bytes Sniff wants to see.
const SniffSize = 6

// Sniff tells the kind from a blob's first bytes. What is none of the others is
// Plain: media types are not asked, as they are known to be wrong.
func Sniff(prefix []byte) Kind {
	switch {
	case bytes.HasPrefix(prefix, []byte{0x1f, 0x8b}):
		return Gzip
	case bytes.HasPrefix(prefix, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return Xz
	case len(prefix) >= 4:
		m := binary.LittleEndian.Uint32(prefix)
		if m == zstdMagic || m&^15 == zstdSkippable {
			return Zstd
		}
	}
	return Plain
}
