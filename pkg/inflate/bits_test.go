package inflate

import (
	"encoding/hex"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"testing"
)

// bitWriter puts a DEFLATE stream together, RFC 1951 section 3.1.1.
type bitWriter struct {
	b []byte
	n uint // bits used of the last byte, 0 to 7
}

// put writes a number: its lowest bit first.
func (w *bitWriter) put(v uint64, width uint) {
	for i := range width {
		if w.n == 0 {
			w.b = append(w.b, 0)
		}
		w.b[len(w.b)-1] |= byte(v>>i&1) << w.n
		w.n = (w.n + 1) & 7
	}
}

// code writes a Huffman code: its highest bit first.
func (w *bitWriter) code(c uint, width uint8) {
	for i := int(width) - 1; i >= 0; i-- {
		w.put(uint64(c>>i&1), 1)
	}
}

// bytes aligns and writes bytes.
func (w *bitWriter) bytes(p ...byte) {
	w.b = append(w.b, p...)
	w.n = 0
}

// assemble makes a stream from text. Of each line, what follows # is a comment.
// The rest is words:
//
//	5:3     the number 5 in 3 bits
//	5:3*7   that seven times
//	=0110   a Huffman code, in the order of its bits
//	|       zeros up to the next byte
//	x4b04   bytes in hexadecimal, aligned
func assemble(t testing.TB, text string) []byte {
	t.Helper()
	var w bitWriter
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		for _, word := range strings.Fields(line) {
			if err := w.word(word); err != nil {
				t.Fatalf("%q: %v", word, err)
			}
		}
	}
	return w.b
}

func (w *bitWriter) word(s string) error {
	switch {
	case s == "|":
		w.n = 0
	case s[0] == 'x':
		p, err := hex.DecodeString(s[1:])
		w.bytes(p...)
		return err
	case s[0] == '=':
		c, err := strconv.ParseUint(s[1:], 2, 32)
		w.code(uint(c), uint8(len(s)-1))
		return err
	default:
		v, width, times := 0, 0, 1
		if strings.Contains(s, "*") {
			if _, err := fmt.Sscanf(s, "%d:%d*%d", &v, &width, &times); err != nil {
				return err
			}
		} else if _, err := fmt.Sscanf(s, "%d:%d", &v, &width); err != nil {
			return err
		}
		for range times {
			w.put(uint64(v), uint(width))
		}
	}
	return nil
}

// canonical gives the codes for lengths, RFC 1951 section 3.2.2.
func canonical(lens []uint8) []uint {
	var count, next [maxBits + 2]uint
	for _, l := range lens {
		count[l]++
	}
	count[0] = 0
	for l := 1; l <= maxBits; l++ {
		next[l+1] = (next[l] + count[l]) << 1
	}
	codes := make([]uint, len(lens))
	for s, l := range lens {
		if l > 0 {
			codes[s] = next[l]
			next[l]++
		}
	}
	return codes
}

// dynamic writes the header of a dynamic block: the code length code gives each
// of the lengths 0 to 15 four bits, and there are no repeats.
func (w *bitWriter) dynamic(final bool, lit, dist []uint8) {
	if final {
		w.put(1, 1)
	} else {
		w.put(0, 1)
	}
	w.put(2, 2)
	w.put(uint64(len(lit)-257), 5)
	w.put(uint64(len(dist)-1), 5)
	w.put(numPre-4, 4)
	for _, s := range preOrder {
		if s < 16 {
			w.put(4, 3)
		} else {
			w.put(0, 3)
		}
	}
	for _, l := range lit {
		w.code(uint(l), 4)
	}
	for _, l := range dist {
		w.code(uint(l), 4)
	}
}

// shortDynamic writes the header of a dynamic block in as few bits as there are
// to be had with little thought: with repeats, and a code length code of just
// the symbols that occur.
func (w *bitWriter) shortDynamic(final bool, lit, dist []uint8) {
	type token struct{ sym, extra, width uint }
	var tokens []token
	lens := append(append([]uint8(nil), lit...), dist...)
	for i := 0; i < len(lens); {
		n := 1
		for i+n < len(lens) && lens[i+n] == lens[i] && n < 138 {
			n++
		}
		switch {
		case lens[i] == 0 && n >= 11:
			tokens = append(tokens, token{18, uint(n - 11), 7})
		case lens[i] == 0 && n >= 3:
			tokens = append(tokens, token{17, uint(n - 3), 3})
		case i > 0 && lens[i] == lens[i-1] && n >= 3:
			n = min(n, 6)
			tokens = append(tokens, token{16, uint(n - 3), 2})
		default:
			n = 1
			tokens = append(tokens, token{uint(lens[i]), 0, 0})
		}
		i += n
	}
	used := 0
	var pre [numPre]uint8
	for _, t := range tokens {
		if pre[t.sym] == 0 {
			pre[t.sym] = 1
			used++
		}
	}
	// A complete code: all of width or width-1.
	if used == 1 {
		pre[0], pre[1], used = 1, 1, 2
	}
	width := bits.Len(uint(used - 1))
	short := 1<<width - used
	for s := range pre {
		if pre[s] != 0 {
			pre[s] = uint8(width)
			if short > 0 {
				pre[s]--
				short--
			}
		}
	}
	last := numPre
	for pre[preOrder[last-1]] == 0 {
		last--
	}
	w.put(uint64(b2u(final)), 1)
	w.put(2, 2)
	w.put(uint64(len(lit)-257), 5)
	w.put(uint64(len(dist)-1), 5)
	w.put(uint64(last-4), 4)
	for _, s := range preOrder[:last] {
		w.put(uint64(pre[s]), 3)
	}
	codes := canonical(pre[:])
	for _, t := range tokens {
		w.code(codes[t.sym], pre[t.sym])
		w.put(uint64(t.extra), t.width)
	}
}

func b2u(b bool) uint {
	if b {
		return 1
	}
	return 0
}
