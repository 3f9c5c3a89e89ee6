package erofs

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/ulikunitz/xz/lzma"
)

// microLZMA encodes with a library, whose stream has a header of 13 bytes.
func microLZMA(t testing.TB, data []byte, props lzma.Properties) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := lzma.WriterConfig{Properties: &props, SizeInHeader: true, Size: int64(len(data))}.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	s := b.Bytes()[lzma.HeaderLen:]
	s[0] = ^b.Bytes()[0]
	return s
}

// libraryLZMA decodes with the library.
func libraryLZMA(in []byte, n int) ([]byte, error) {
	h := append([]byte{^in[0], 0, 0, 16, 0}, make([]byte, 9)...)
	h[5], h[6], h[7] = byte(n), byte(n>>8), byte(n>>16)
	r, err := lzma.NewReader(bytes.NewReader(append(h, in[1:]...)))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, int64(n)))
}

// lzmaSamples are contents that take every branch: literals alone, long and
// short matches, near and far ones, the same distances again.
func lzmaSamples() [][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	var list [][]byte
	for _, alphabet := range []int{1, 2, 5, 60, 256} {
		b := make([]byte, 6000)
		for i := range b {
			b[i] = byte(rng.IntN(alphabet))
		}
		copy(b[2500:], b[:700])
		copy(b[4000:], b[300:900])
		copy(b[4700:], b[2500:3900])
		b[5000]++
		list = append(list, b)
	}
	far := make([]byte, 100_000)
	for i := range far {
		far[i] = byte(rng.IntN(256))
	}
	for range 200 { // so far back that distances have direct bits
		n := 2 + rng.IntN(300)
		copy(far[len(far)-1-rng.IntN(20_000)-n:], far[rng.IntN(40_000):][:n])
	}
	return append(list, far)
}

func TestLZMA(t *testing.T) {
	var d lzmaDecoder // one for all, as in the pool
	for i, data := range lzmaSamples() {
		for _, props := range []lzma.Properties{{LC: 3, LP: 0, PB: 2}, {LC: 0, LP: 0, PB: 0}, {LC: 0, LP: 4, PB: 4}, {LC: 2, LP: 2, PB: 1}, {LC: 4, LP: 0, PB: 3}} {
			in := microLZMA(t, data, props)
			out := make([]byte, len(data))
			if err := d.decode(in, out, false); err != nil || !bytes.Equal(out, data) {
				t.Fatalf("sample %d, %+v: %v", i, props, err)
			}
			if len(data) > 10_000 {
				break
			}
			for k := 1; k < len(data); k += 1 + k/2 {
				clear(out)
				if err := d.decode(append(in, 1, 2, 3), out[:k], true); err != nil || !bytes.Equal(out[:k], data[:k]) {
					t.Fatalf("sample %d, %+v, %d bytes in part: %v", i, props, k, err)
				}
				// What ends within the data, or goes on behind it, is not all of it.
				if err := d.decode(in, out[:k], false); err == nil {
					t.Errorf("sample %d, %+v: the first %d bytes pass for all", i, props, k)
				}
			}
			if d.decode(append(in, 0), out, false) == nil {
				t.Errorf("sample %d, %+v: a byte more passes", i, props)
			}
			for cut := range min(len(in), 30) {
				if err := d.decode(in[:len(in)-1-cut], out, false); err == nil {
					t.Errorf("sample %d, %+v: %d bytes less pass", i, props, cut+1)
				}
			}
		}
	}
}

// TestDamagedLZMA: nothing that is fed to the decoder makes it panic, and what
// it takes for sound is what the library makes of it.
func TestDamagedLZMA(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var d lzmaDecoder
	for _, data := range lzmaSamples()[1:5] {
		good := microLZMA(t, data, lzma.Properties{LC: 3, LP: 0, PB: 2})
		for range 150 {
			in, out := bytes.Clone(good), make([]byte, len(data))
			for range 1 + rng.IntN(3) {
				in[rng.IntN(len(in))] ^= 1 << rng.IntN(8)
			}
			ours := d.decode(in, out, false)
			want, err := libraryLZMA(in, len(data))
			if ours == nil && (err != nil || !bytes.Equal(out, want)) {
				t.Errorf("%d bytes decode, the library says %v", len(out), err)
			}
			partial := bytes.Clone(out)
			err = d.decode(in, partial, true)
			if len(want) == len(data) && (err != nil || !bytes.Equal(partial, want)) {
				t.Errorf("the library decodes %d bytes: %v", len(want), err)
			}
		}
	}
	for _, bad := range [][]byte{nil, {0xa2}, {0xa2, 0, 0, 0}, {0, 0, 0, 0, 0, 0}, {^byte(4*9 + 1), 0, 0, 0, 0, 0}} {
		if err := d.decode(bad, make([]byte, 100), true); err == nil {
			t.Errorf("% x decodes", bad)
		}
	}
}

func BenchmarkLZMA(b *testing.B) {
	rng := rand.New(rand.NewPCG(5, 6))
	var data []byte
	for len(data) < 256<<10 {
		data = fmt.Appendf(data, "%s %d ", []string{"the", "quick", "brown", "fox", "jumps", "over"}[rng.IntN(6)], rng.IntN(1000))
	}
	in, out := microLZMA(b, data, lzma.Properties{LC: 3, LP: 0, PB: 2}), make([]byte, len(data))
	b.Run("ours", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		var d lzmaDecoder
		for b.Loop() {
			if err := d.decode(in, out, false); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("library", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			if _, err := libraryLZMA(in, len(data)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
