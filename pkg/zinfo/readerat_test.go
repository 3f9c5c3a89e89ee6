package zinfo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// TestIndexOfAnotherFile: its points lead anywhere. One in four passes for the
// start of a block, so that a short read must not be answered by what is found
// there.
func TestIndexOfAnotherFile(t *testing.T) {
	in := member(t, sample(3_000_000, 1), "", 0)
	x := build(t, member(t, sample(3_000_000, 2), "", 0), Options{SpanSize: 20_000})
	x.Size, x.BlobSize = -1, -1
	r := NewReaderAt(bytes.NewReader(in), x)
	p := make([]byte, 10)
	for i, point := range x.Points[1:] {
		if _, err := r.ReadAt(p, point.Out); !errors.Is(err, fault.ErrCorrupt) {
			t.Errorf("point %d, at %d of %d bytes: %q, %v", i+1, point.In, len(in), p, err)
		}
	}
}

func TestReaderAt(t *testing.T) {
	data := sample(3_000_000, 7)
	for name, in := range files(t, data) {
		t.Run(name, func(t *testing.T) {
			x := build(t, in, Options{SpanSize: 200_000, Sparse: true})
			b := encode(t, x)
			opened, err := Open(bytes.NewReader(b), int64(len(b)), -1) // knows no sizes
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range []*Index{x, opened} {
				r := NewReaderAt(bytes.NewReader(in), x)
				var wg sync.WaitGroup
				for g := range uint64(12) { // more than are kept
					wg.Go(func() {
						rnd := rand.New(rand.NewPCG(g, 1))
						p := make([]byte, 50_000)
						for range 20 {
							n := rnd.IntN(len(p))
							off := rnd.IntN(len(data) + 1000)
							got, err := r.ReadAt(p[:n], int64(off))
							want := data[min(off, len(data)):min(off+n, len(data))]
							if !bytes.Equal(p[:got], want) {
								t.Errorf("%d bytes at %d: got %d, or they differ", n, off, got)
							}
							if short := len(want) < n; (err == io.EOF) != short && !(n == 0 && err != nil) || err != nil && err != io.EOF {
								t.Errorf("%d bytes at %d: %v", n, off, err)
							}
						}
					})
				}
				wg.Wait()
				if len(r.idle) > maxIdle {
					t.Errorf("%d decoders kept", len(r.idle))
				}
				// In sequence, in odd pieces.
				all, err := io.ReadAll(io.NewSectionReader(r, 0, 1<<40))
				if err != nil || !bytes.Equal(all, data) {
					t.Errorf("in sequence: %d bytes, %v", len(all), err)
				}
			}
		})
	}
}

// countingReaderAt counts the bytes that are read of a blob.
type countingReaderAt struct {
	r io.ReaderAt
	n int64
}

func (c *countingReaderAt) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.r.ReadAt(p, off)
	c.n += int64(n)
	return n, err
}

// Reading in sequence inflates nothing twice, and reads allocate nothing.
func TestReaderAtEconomy(t *testing.T) {
	data := sample(3_000_000, 8)
	in := member(t, data, "", 0)
	x := build(t, in, Options{SpanSize: 1_000_000})
	blob := &countingReaderAt{r: bytes.NewReader(in)}
	r := NewReaderAt(blob, x)
	p := make([]byte, 1000)
	// Two clients taking turns, each in sequence.
	for off := 0; off < 1_500_000; off += len(p) {
		for _, at := range []int{off, off + 1_500_000} {
			if _, err := r.ReadAt(p, int64(at)); err != nil || !bytes.Equal(p, data[at:at+len(p)]) {
				t.Fatalf("at %d: %v", at, err)
			}
		}
	}
	if limit := int64(len(in)) * 2; blob.n > limit {
		t.Errorf("read %d bytes of a blob of %d", blob.n, len(in))
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	if n := testing.AllocsPerRun(50, func() {
		if _, err := r.ReadAt(p, rnd.Int64N(int64(len(data)-len(p)))); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("ReadAt: %v allocations", n)
	}
	from, to, begin, end := x.Range(1)
	dst := make([]byte, end-begin)
	if n := testing.AllocsPerRun(20, func() {
		if err := x.DecodeSpan(1, in[from:to], dst); err != nil {
			t.Fatal(err)
		}
	}); n > 0.5 { // a pool may be emptied by the garbage collector
		t.Errorf("DecodeSpan: %v allocations", n)
	}
}

// Who reads in one place reads one window of an index that was opened.
func TestOpenEconomy(t *testing.T) {
	data := sample(3_000_000, 8)
	in := member(t, data, "", 0)
	b := encode(t, build(t, in, Options{SpanSize: 100_000}))
	file := &countingReaderAt{r: bytes.NewReader(b)}
	x, err := Open(file, int64(len(b)), int64(len(in)))
	if err != nil {
		t.Fatal(err)
	}
	r := NewReaderAt(bytes.NewReader(in), x)
	p := make([]byte, 1000)
	for _, off := range []int64{1_500_000, 1_501_000} {
		if _, err := r.ReadAt(p, off); err != nil || !bytes.Equal(p, data[off:off+1000]) {
			t.Errorf("at %d: %v", off, err)
		}
	}
	if want := int64(headerSize + fieldsSize*len(x.Points) + WindowSize); file.n != want {
		t.Errorf("read %d bytes of an index of %d, want %d", file.n, len(b), want)
	}
}

// An index whose owner keeps the windows otherwise does all that others do.
func TestUnpack(t *testing.T) {
	data := sample(1_500_000, 12)
	in := split(t, data, 700_000)
	whole := build(t, in, Options{SpanSize: 200_000})
	x := *whole
	x.Points = nil
	for _, p := range whole.Points {
		p.Window = nil
		x.Points = append(x.Points, p)
	}
	x.Unpack = whole.ReadWindow
	if n, err := x.Verify(t.Context(), bytes.NewReader(in), 2, nil); err != nil || n != int64(len(data)) {
		t.Errorf("Verify: %d, %v", n, err)
	}
	r := NewReaderAt(bytes.NewReader(in), &x)
	p := make([]byte, 3000)
	rnd := rand.New(rand.NewPCG(1, 1))
	read := func() {
		off := rnd.Int64N(int64(len(data) - len(p)))
		if _, err := r.ReadAt(p, off); err != nil || !bytes.Equal(p, data[off:off+int64(len(p))]) {
			t.Fatalf("at %d: %v", off, err)
		}
	}
	for range 2 * maxIdle {
		read()
	}
	if n := testing.AllocsPerRun(50, read); n > 0 {
		t.Errorf("ReadAt: %v allocations", n)
	}
	for i := range x.Points {
		from, to, begin, end := x.Range(i)
		dst := make([]byte, end-begin)
		if err := x.DecodeSpan(i, in[from:to], dst); err != nil || !bytes.Equal(dst, data[begin:end]) {
			t.Errorf("span %d: %v", i, err)
		}
	}
	if !bytes.Equal(encode(t, &x), encode(t, whole)) {
		t.Error("written, it is another one")
	}
	whole.Points[2].Window[WindowSize-1] ^= 0xff
	if _, err := x.Verify(t.Context(), bytes.NewReader(in), 1, nil); !errors.Is(err, fault.ErrCorrupt) {
		t.Errorf("a bad window: %v", err)
	}
}

func TestReaderAtErrors(t *testing.T) {
	data := sample(1_000_000, 9)
	in := member(t, data, "", 0)
	x := build(t, in, Options{SpanSize: 100_000})
	p := make([]byte, 1000)
	r := NewReaderAt(bytes.NewReader(in), x)
	if _, err := r.ReadAt(p, -1); !errors.Is(err, fault.ErrUsage) {
		t.Errorf("negative offset: %v", err)
	}
	r = NewReaderAt(bytes.NewReader(in[:len(in)/2]), x)
	if _, err := r.ReadAt(p, 900_000); !errors.Is(err, fault.ErrCorrupt) {
		t.Errorf("half a blob: %v", err)
	}
	broken := errors.New("broken")
	r = NewReaderAt(brokenReaderAt{broken}, x)
	for range 3 {
		if _, err := r.ReadAt(p, 500_000); !errors.Is(err, broken) {
			t.Errorf("a broken blob: %v", err)
		}
	}
	short := *x
	short.Size += 5
	r = NewReaderAt(bytes.NewReader(in), &short)
	if n, err := r.ReadAt(p, int64(len(data))-10); n != 10 || !errors.Is(err, fault.ErrCorrupt) {
		t.Errorf("less data than the index says: %d, %v", n, err)
	}
}

// Points beyond 4 GiB, of the blob and of the data, are written, loaded and read
// from like others.
func TestBeyond4GiB(t *testing.T) {
	const inShift, outShift = 5<<32 + 3, 9<<32 + 7
	data := sample(1_000_000, 13)
	in := member(t, data, "", 0)
	near := build(t, in, Options{SpanSize: 100_000})
	far := &Index{SpanSize: 100_000, Points: []Point{{In: 10}}, Size: near.Size + outShift, BlobSize: near.BlobSize + inShift}
	for _, p := range near.Points[1:] {
		p.In, p.Out = p.In+inShift, p.Out+outShift
		far.Points = append(far.Points, p)
	}
	b := encode(t, far)
	blob := shiftedReaderAt{bytes.NewReader(in), inShift}
	for name, load := range loaders {
		x, err := load(b, far.BlobSize)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !bytes.Equal(encode(t, x), b) {
			t.Errorf("%s: loads as something else", name)
		}
		r := NewReaderAt(blob, x)
		first := near.Points[1].Out
		p := make([]byte, 5000)
		for off := first; off < int64(len(data)); off += 37_000 {
			n, err := r.ReadAt(p, outShift+off)
			if want := data[off:min(off+5000, int64(len(data)))]; !bytes.Equal(p[:n], want) || err != nil && err != io.EOF {
				t.Errorf("%s: at %d: %d, %v", name, off, n, err)
			}
		}
		x.Size = far.Size
		last := len(x.Points) - 1
		from, to, begin, end := x.Range(last)
		dst := make([]byte, end-begin)
		if err := x.DecodeSpan(last, in[from-inShift:to-inShift], dst); err != nil || !bytes.Equal(dst, data[begin-outShift:]) {
			t.Errorf("%s: the last span: %v", name, err)
		}
	}
}

// shiftedReaderAt is r at an offset.
type shiftedReaderAt struct {
	r  io.ReaderAt
	by int64
}

func (s shiftedReaderAt) ReadAt(p []byte, off int64) (int, error) { return s.r.ReadAt(p, off-s.by) }

type brokenReaderAt struct{ err error }

func (r brokenReaderAt) ReadAt([]byte, int64) (int, error) { return 0, r.err }

// Verify notices whatever is wrong with an index or its blob.
func TestVerify(t *testing.T) {
	data := sample(2_000_000, 10)
	in := split(t, data, 900_000)
	good := build(t, in, Options{SpanSize: 200_000})
	// A member ends in a span that it did not begin in: only Verify can know
	// its checksum.
	trailer := 0
	for i := range in[:len(in)-10] {
		if trailer == 0 && i > 20 && bytes.Equal(in[i:i+10], in[:10]) {
			trailer = i - 8
		}
	}
	for _, c := range []struct {
		name string
		edit func(x *Index, in []byte)
		kind error
		want string
	}{
		{"nothing", func(x *Index, in []byte) {}, nil, ""},
		{"checksum", func(x *Index, in []byte) { in[trailer]++ }, fault.ErrIntegrity, fmt.Sprintf("offset %d: checksum is", trailer)},
		{"size", func(x *Index, in []byte) { in[trailer+4]++ }, fault.ErrIntegrity, fmt.Sprintf("offset %d: size is", trailer+4)},
		{"window", func(x *Index, in []byte) { x.Points[3].Window[9]++ }, fault.ErrCorrupt, "window of point 3"},
		{"in", func(x *Index, in []byte) { x.Points[3].In++ }, fault.ErrCorrupt, "point 3 ("},
		{"out", func(x *Index, in []byte) { x.Points[3].Out++ }, fault.ErrCorrupt, "point 3 ("},
		{"bits", func(x *Index, in []byte) { x.Points[3].Bits ^= 1 }, fault.ErrCorrupt, "point 3 ("},
		{"size of all", func(x *Index, in []byte) { x.Size++ }, fault.ErrCorrupt, "the data ends at"},
		{"last trailer", func(x *Index, in []byte) { in[len(in)-1]++ }, fault.ErrIntegrity, "size is"},
	} {
		for _, workers := range []int{1, 3} {
			t.Run(fmt.Sprint(c.name, workers), func(t *testing.T) {
				x := *good
				x.Points = nil
				for _, p := range good.Points {
					p.Window = bytes.Clone(p.Window)
					x.Points = append(x.Points, p)
				}
				in := bytes.Clone(in)
				c.edit(&x, in)
				n, err := x.Verify(t.Context(), bytes.NewReader(in), workers, nil)
				if !errors.Is(err, c.kind) || err != nil && !strings.Contains(err.Error(), c.want) {
					t.Fatalf("%v, want %q", err, c.want)
				}
				if err == nil && n != int64(len(data)) {
					t.Fatalf("%d bytes", n)
				}
			})
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := good.Verify(ctx, bytes.NewReader(in), 2, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// What Verify says of its progress adds up, however small the spans are.
func TestVerifyProgress(t *testing.T) {
	in := append(split(t, sample(500_000, 12), 200_000), make([]byte, 100)...)
	x := build(t, in, Options{SpanSize: 30_000})
	var mu sync.Mutex
	var calls, total int64
	_, err := x.Verify(t.Context(), bytes.NewReader(in), 3, func(n int64) {
		mu.Lock()
		defer mu.Unlock()
		calls, total = calls+1, total+n
		if n <= 0 {
			t.Errorf("a span of %d bytes", n)
		}
	})
	if err != nil || calls != int64(len(x.Points)) || total != int64(len(in)) {
		t.Errorf("%d calls for %d points, %d of %d bytes, %v", calls, len(x.Points), total, len(in), err)
	}
}

func TestCombine(t *testing.T) {
	data := sample(100_000, 11)
	for _, n := range []int{0, 1, 2, 100, 65_537, len(data)} {
		a, b := crc32.ChecksumIEEE(data[:n]), crc32.ChecksumIEEE(data[n:])
		if got, want := combine(a, b, int64(len(data)-n)), crc32.ChecksumIEEE(data); got != want {
			t.Errorf("at %d: %08x, want %08x", n, got, want)
		}
	}
}
