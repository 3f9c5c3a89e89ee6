package zinfo

import (
	"bytes"
	"io"
	"runtime"
	"testing"
)

// cycle gives the same bytes times times over.
type cycle struct {
	b          []byte
	off, times int
}

func (c *cycle) Read(p []byte) (n int, err error) {
	for n < len(p) && c.times > 0 {
		k := copy(p[n:], c.b[c.off:])
		n += k
		if c.off += k; c.off == len(c.b) {
			c.off = 0
			c.times--
		}
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Input that is made to be large does not make a large index: there is a point
// for each span of output, however many blocks and members there are, and
// windows of zeros take no memory.
func TestBombs(t *testing.T) {
	for _, c := range []struct {
		name  string
		body  []byte
		times int
		out   int64
	}{
		{"1032 to 1", member(t, make([]byte, 8<<20), "", 0), 40, 320 << 20},
		{"empty members", member(t, nil, "", 0), 1 << 17, 0},
		{"tiny members", member(t, []byte("a"), "", 0), 1 << 17, 1 << 17},
		{"empty blocks", member(t, []byte("a"), "", 1), 1 << 15, 1 << 15},
	} {
		for _, sparse := range []bool{false, true} {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			r := NewReader(&cycle{b: c.body, times: c.times}, Options{Sparse: sparse})
			n, err := r.WriteTo(io.Discard)
			runtime.ReadMemStats(&after)
			x, err2 := r.Index()
			if err != nil || err2 != nil || n != c.out {
				t.Fatalf("%s: %d bytes, %v, %v", c.name, n, err, err2)
			}
			if max := int(c.out/DefaultSpanSize) + 1; len(x.Points) > max {
				t.Errorf("%s: %d points, more than %d", c.name, len(x.Points), max)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
				t.Errorf("%s: allocated %d bytes", c.name, n)
			}
			if got := x.EncodedSize(); got > headerSize+pointSize*(1+c.out/DefaultSpanSize) {
				t.Errorf("%s: an index of %d bytes", c.name, got)
			}
		}
	}
}

// A span of a bomb is bounded by what is asked for.
func TestBombSpan(t *testing.T) {
	in := member(t, make([]byte, 64<<20), "", 0)
	x := build(t, in, Options{})
	dst := bytes.Repeat([]byte{1}, 1000)
	from, to, _, _ := x.Range(0)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := x.DecodeSpan(0, in[from:to], dst); err != nil || !bytes.Equal(dst, make([]byte, 1000)) {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("allocated %d bytes", n)
	}
}
