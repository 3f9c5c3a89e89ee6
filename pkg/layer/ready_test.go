package layer

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// TestReadReady: before a span was read nothing of it is ready; afterwards all
// of it is, and right, and no more than it.
func TestReadReady(t *testing.T) {
	for _, c := range blobCases(t, 600_000) {
		z := open(t, &blobAt{b: c.blob}, seekOf(t, c.blob, 100_000), 64<<20, LazyOptions{})
		ready := func(off, n int64) bool {
			p := make([]byte, n)
			ok := z.ReadReady(p, off)
			if ok && !bytes.Equal(p, c.raw[off:off+n]) {
				t.Fatalf("%s: %d bytes at %d are wrong", c.name, n, off)
			}
			return ok
		}
		size := z.Size()
		if size == 0 {
			continue
		}
		rng := rand.New(rand.NewPCG(1, 2))
		for range 20 {
			off := rng.Int64N(size)
			start, end := z.Span(off)
			if err := z.Warm(t.Context(), off, 1); err != nil {
				t.Fatal(err)
			}
			if !ready(start, end-start) || !ready(off, 1) {
				t.Errorf("%s: %d..%d is not ready", c.name, start, end)
			}
			if z.ReadReady(make([]byte, end-start+1), start) {
				t.Errorf("%s: more than %d..%d is ready", c.name, start, end)
			}
		}
		if z.ReadReady(make([]byte, 1), -1) || z.ReadReady(make([]byte, 1), size) {
			t.Errorf("%s: ready outside", c.name)
		}
		fresh := open(t, &blobAt{b: c.blob}, seekOf(t, c.blob, 100_000), 64<<20, LazyOptions{})
		if fresh.ReadReady(make([]byte, 1), 0) {
			t.Errorf("%s: ready unread", c.name)
		}
	}
}
