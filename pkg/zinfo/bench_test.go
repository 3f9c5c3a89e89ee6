package zinfo

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
)

// BenchmarkReadAt reads at random: half a span is inflated for each read, on
// average.
func BenchmarkReadAt(b *testing.B) {
	data := sample(40<<20, 1)
	in := member(b, data, "", 0)
	for _, span := range []int64{1 << 20, DefaultSpanSize} {
		x := build(b, in, Options{SpanSize: span})
		r := NewReaderAt(bytes.NewReader(in), x)
		for _, n := range []int{4 << 10, 128 << 10} {
			b.Run(fmt.Sprintf("span %dMiB/%dKiB", span>>20, n>>10), func(b *testing.B) {
				p := make([]byte, n)
				rnd := rand.New(rand.NewPCG(1, 1))
				b.SetBytes(int64(n))
				for b.Loop() {
					if _, err := r.ReadAt(p, rnd.Int64N(int64(len(data)-n))); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkBuild makes an index, dense and sparse: the latter must cost next to
// nothing more.
func BenchmarkBuild(b *testing.B) {
	data := sample(40<<20, 1)
	in := member(b, data, "", 0)
	for _, sparse := range []bool{false, true} {
		b.Run(fmt.Sprintf("sparse=%v", sparse), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				r := NewReader(bytes.NewReader(in), Options{Sparse: sparse})
				if _, err := r.WriteTo(io.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
