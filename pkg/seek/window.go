package seek

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// WindowSize is the reach of a deflate distance, in bytes.
const WindowSize = 32 << 10

// A Window is the 32 KiB of output before a gzip span. It is kept without its
// runs of zeros: of a window reduced to what its span refers to about a tenth
// is left, and an image has thousands of them. The zero Window is all zeros.
type Window struct {
	packed []byte // zeros, literals, bytes; zeros, literals, bytes; ... to the last byte that is not zero
}

// minGap is the shortest run of zeros that is worth two more numbers.
const minGap = 4

// PackWindow keeps a copy of w, WindowSize bytes from the oldest to the
// newest. Nil stands for zeros; any other length is a mistake of the caller's
// and panics.
func PackWindow(w []byte) Window {
	if w == nil {
		return Window{}
	}
	if len(w) != WindowSize {
		panic("seek: window of the wrong length")
	}
	// On the stack, in most cases: it is a tenth of it that is kept.
	var room [WindowSize / 4]byte
	packed := room[:0]
	for i := 0; i < len(w); {
		start := i
		for i < len(w) && w[i] == 0 {
			if i+8 <= len(w) && binary.LittleEndian.Uint64(w[i:]) == 0 {
				i += 8
			} else {
				i++
			}
		}
		if i == len(w) {
			break
		}
		lit, gap := i, 0
		for ; i < len(w) && gap < minGap; i++ {
			if w[i] == 0 {
				gap++
			} else {
				gap = 0
			}
		}
		i -= gap
		packed = binary.AppendUvarint(packed, uint64(lit-start))
		packed = binary.AppendUvarint(packed, uint64(i-lit))
		packed = append(packed, w[lit:i]...)
	}
	return Window{bytes.Clone(packed)}
}

// IsZero reports whether every byte of the window is zero.
func (w Window) IsZero() bool { return len(w.packed) == 0 }

// Unpack fills dst, WindowSize bytes, with the window.
func (w Window) Unpack(dst []byte) {
	dst = dst[:WindowSize]
	clear(dst)
	for p, at := w.packed, 0; len(p) > 0; {
		zeros, n := binary.Uvarint(p)
		p = p[n:]
		lits, n := binary.Uvarint(p)
		p = p[n:]
		at += int(zeros)
		copy(dst[at:], p[:lits])
		at += int(lits)
		p = p[lits:]
	}
}

// A WindowBudget counts the windows of a section, of all its layers, against
// what a reader takes. Who makes a section counts them as they come: a layer can
// be made such that there is no end of them.
type WindowBudget struct{ count, bytes int64 }

// Spend counts one more. The error is a fault.ErrUnsupported.
func (b *WindowBudget) Spend(w Window) error {
	b.count++
	b.bytes += int64(len(w.packed))
	if b.count > maxWindows || b.bytes > maxWindowBytes {
		return fmt.Errorf("%d windows of %d bytes in all, more than readers accept (larger spans make fewer): %w", b.count, b.bytes, fault.ErrUnsupported)
	}
	return nil
}
