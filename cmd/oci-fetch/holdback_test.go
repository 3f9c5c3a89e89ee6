package main

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// TestHoldback: what has passed is always a prefix without the last byte that
// says something, and after release it is all there.
func TestHoldback(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 0))
		var in, out bytes.Buffer
		h := &holdback{w: &out}
		for range rng.IntN(20) {
			p := make([]byte, rng.IntN(100_000)>>rng.IntN(17))
			for i := range rng.IntN(3) * len(p) / 2 {
				p[i%len(p)] = byte(rng.IntN(3))
			}
			in.Write(p)
			if n, err := h.Write(p); n != len(p) || err != nil {
				t.Fatal(n, err)
			}
			says := bytes.TrimRight(in.Bytes(), "\x00")
			if want := max(len(says)-1, 0); out.Len() != want || !bytes.HasPrefix(in.Bytes(), out.Bytes()) {
				t.Fatalf("seed %d: %d bytes have passed of %d, want %d", seed, out.Len(), in.Len(), want)
			}
		}
		if err := h.release(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(in.Bytes(), out.Bytes()) {
			t.Fatalf("seed %d: got %d bytes of %d", seed, out.Len(), in.Len())
		}
	}
}
