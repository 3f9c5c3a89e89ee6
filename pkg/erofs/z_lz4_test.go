package erofs

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/pierrec/lz4/v4"
)

// TestPartialLZ4 decodes beginnings of every length of blocks that a library
// has compressed, with other bytes behind them.
func TestPartialLZ4(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, alphabet := range []int{1, 2, 5, 256} {
		data := make([]byte, 3000)
		for i := range data {
			data[i] = byte(rng.IntN(alphabet))
		}
		copy(data[1500:], data[:700])
		block := make([]byte, lz4.CompressBlockBound(len(data)))
		n, err := lz4.CompressBlock(data, block, nil)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			continue // not compressible
		}
		block = append(block[:n:n], 0, 0, 0, 7, 1)
		for k := 1; k <= len(data); k += 1 + k/50 {
			out := make([]byte, k)
			if err := decodeLZ4(block, out, true); err != nil || !bytes.Equal(out, data[:k]) {
				t.Fatalf("alphabet of %d, %d bytes: %v", alphabet, k, err)
			}
		}
		out := make([]byte, len(data))
		for cut := range n {
			if err := partialLZ4(block[:cut], out); err == nil {
				t.Fatalf("alphabet of %d: a block cut at %d of %d decodes", alphabet, cut, n)
			}
		}
	}
	for _, bad := range [][]byte{{0x00, 0, 0}, {0x10, 'a', 2, 0}, {0xf0}, {0xf0, 255, 255}, {0x1f, 'a', 1, 0, 255}} {
		if err := partialLZ4(bad, make([]byte, 100)); err == nil {
			t.Errorf("% x decodes", bad)
		}
	}
}
