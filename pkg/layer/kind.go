package layer

import (
	"bytes"
	"encoding/binary"
	"fmt"
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

// Sniff tells the kind from a blob's first bytes, of which it needs six. What
// is none of the others is Plain: media types are not asked, as they are known
// to be wrong.
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
