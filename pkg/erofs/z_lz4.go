package erofs

import (
	"fmt"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// partialLZ4 decodes as much of an LZ4 block as fills out, and does not mind
// what follows. Decoders in libraries want the exact size; a block may be
// shared by a file that uses its beginning alone, and in old images its end is
// not marked.
func partialLZ4(in, out []byte) error {
	n := 0 // bytes decoded
	for n < len(out) {
		if len(in) == 0 {
			return errLZ4
		}
		token := in[0]
		in = in[1:]
		literals, in2, ok := lz4Length(int(token>>4), in)
		if !ok || min(literals, len(out)-n) > len(in2) {
			return errLZ4
		}
		n += copy(out[n:], in2[:min(literals, len(in2))])
		if n == len(out) {
			return nil
		}
		in = in2[literals:]
		if len(in) < 2 {
			return errLZ4
		}
		distance := int(in[0]) | int(in[1])<<8
		match, in2, ok := lz4Length(int(token&15), in[2:])
		if !ok || distance == 0 || distance > n {
			return errLZ4
		}
		// A match may overlap what it makes: byte by byte, so that it repeats.
		for end := min(n+match+4, len(out)); n < end; n++ {
			out[n] = out[n-distance]
		}
		in = in2
	}
	return nil
}

// lz4Length continues a length whose first four bits are n. No output is
// larger than what fits an int on any machine: in is at most 1 MiB.
func lz4Length(n int, in []byte) (int, []byte, bool) {
	if n < 15 {
		return n, in, true
	}
	for i, b := range in {
		n += int(b)
		if b != 255 {
			return n, in[i+1:], true
		}
	}
	return 0, nil, false
}

var errLZ4 = fmt.Errorf("malformed LZ4 block: %w", fault.ErrCorrupt)
