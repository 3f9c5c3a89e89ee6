package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// text is data that compresses like source code does: words, repeated.
func text(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	words := make([][]byte, 500)
	for i := range words {
		words[i] = make([]byte, 2+r.IntN(9))
		for j := range words[i] {
			words[i][j] = byte('a' + r.IntN(26))
		}
	}
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = append(b, words[int(r.ExpFloat64()*60)%len(words)]...)
		b = append(b, " \n\t("[r.IntN(4)])
	}
	return b[:n]
}

// noise does not compress.
func noise(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// mixed has long matches, short ones, noise and zeros, near and far.
func mixed(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 3))
	b := make([]byte, 0, n+1<<16)
	for len(b) < n {
		k := 1 + r.IntN(5000)
		switch r.IntN(6) {
		case 0:
			b = append(b, noise(k, r.Uint64())...)
		case 1:
			b = append(b, make([]byte, k*3)...)
		case 2: // runs with a period of 2 to 20
			p := noise(2+r.IntN(19), r.Uint64())
			b = append(b, bytes.Repeat(p, k/len(p))...)
		case 3: // something from before
			if d := 1 + r.IntN(40000); d < len(b) {
				for range k {
					b = append(b, b[len(b)-d])
				}
			}
		default:
			b = append(b, text(k, r.Uint64())...)
		}
	}
	return b[:n]
}

// deflated compresses with compress/flate; a flush every so often makes empty
// stored blocks.
func deflated(t testing.TB, data []byte, level, flush int) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := flate.NewWriter(&buf, level)
	if err != nil {
		t.Fatal(err)
	}
	for len(data) > 0 {
		n := len(data)
		if flush > 0 {
			n = min(n, flush)
		}
		w.Write(data[:n])
		if data = data[n:]; flush > 0 {
			w.Flush()
		}
	}
	w.Close()
	return buf.Bytes()
}

// gzipped makes one member for each part.
func gzipped(t testing.TB, parts ...[]byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	for i, p := range parts {
		w := gzip.NewWriter(&buf)
		if i%3 == 1 {
			w.Name, w.Comment, w.Extra = "name", "comment", []byte("extra field")
		}
		w.Write(p)
		w.Close()
	}
	return buf.Bytes()
}

func TestLevels(t *testing.T) {
	data := mixed(1_500_000, 1)
	for _, level := range []int{flate.HuffmanOnly, 0, 1, 6, 9} {
		for _, flush := range []int{0, 70_000} {
			t.Run(fmt.Sprintf("level %d flush %d", level, flush), func(t *testing.T) {
				checkFlate(t, deflated(t, data, level, flush))
			})
		}
	}
}

// TestRandomCodes decodes blocks whose codes are random but complete: lengths
// of up to 15 bits for both, and every symbol, with all subtables that take.
func TestRandomCodes(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 4))
		var w bitWriter
		out := 0
		blocks := 1 + r.IntN(4)
		for i := range blocks {
			lit := randomLens(r, 257+r.IntN(30), 257)
			dist := randomLens(r, 1+r.IntN(30), 1)
			w.dynamic(i == blocks-1, lit, dist)
			litCodes, distCodes := canonical(lit), canonical(dist)
			for range r.IntN(3000) {
				s := r.IntN(len(lit))
				switch {
				case s < 256:
					w.code(litCodes[s], lit[s])
					out++
				case s > 256 && out > 0:
					d := r.IntN(len(dist))
					base, extra := int(distEntry[d]>>16), uint(distEntry[d]&0xff)
					// One in twenty may be too far, and ends it there.
					if base+1<<extra > out && r.IntN(20) != 0 {
						continue
					}
					w.code(litCodes[s], lit[s])
					v := r.Uint64()
					w.put(v, uint(litEntry[s]&0xff))
					out += int(litEntry[s]>>16) + int(v&(1<<(litEntry[s]&0xff)-1))
					w.code(distCodes[d], dist[d])
					w.put(r.Uint64(), extra)
				}
			}
			w.code(litCodes[256], lit[256])
		}
		checkFlate(t, w.b)
	}
}

// randomLens makes the lengths of a complete code over n symbols, used ones at
// least, by splitting leaves at random; deep ones are likelier than not.
func randomLens(r *rand.Rand, n, used int) []uint8 {
	leaves := []uint8{1, 1}
	if used == 1 && r.IntN(4) == 0 {
		lens := make([]uint8, n)
		lens[r.IntN(n)] = 1
		return lens
	}
	target := max(2, used+r.IntN(n-used+1))
	for tries := 0; len(leaves) < min(target, n) && tries < 100_000; tries++ {
		i := r.IntN(len(leaves))
		if r.IntN(3) > 0 {
			i = len(leaves) - 1
		}
		if leaves[i] < maxBits {
			leaves[i]++
			leaves = append(leaves, leaves[i])
		}
	}
	lens := make([]uint8, max(n, len(leaves)))
	for i, p := range r.Perm(len(lens))[:len(leaves)] {
		lens[p] = leaves[i]
	}
	if len(lens) > 256 && lens[256] == 0 {
		for i := range lens {
			if lens[i] != 0 {
				lens[256], lens[i] = lens[i], 0
				break
			}
		}
	}
	if len(lens) > 256 {
		return lens
	}
	return lens[:max(n, 1)]
}

func TestMembers(t *testing.T) {
	a, b := text(300_000, 1), mixed(200_000, 2)
	empty := []byte{}
	for _, c := range []struct {
		name string
		in   []byte
		want []byte
	}{
		{"one", gzipped(t, a), a},
		{"two", gzipped(t, a, b), append(bytes.Clone(a), b...)},
		{"empty", gzipped(t, empty), nil},
		{"empty ones around", gzipped(t, empty, empty, a, empty, b, empty), append(bytes.Clone(a), b...)},
		{"trailing zeros", append(gzipped(t, a), make([]byte, 100_000)...), a},
	} {
		t.Run(c.name, func(t *testing.T) {
			z := NewReader(bytes.NewReader(c.in))
			points := z.checkpoints(1 << 20)
			var members []MemberEnd
			z.OnMember(func(m MemberEnd) { members = append(members, m) })
			got, err := io.ReadAll(z)
			if err != nil || !bytes.Equal(got, c.want) {
				t.Fatalf("%d bytes, %v; want %d", len(got), err, len(c.want))
			}
			if z.InputOffset() != int64(len(c.in)) {
				t.Errorf("InputOffset %d, want %d", z.InputOffset(), len(c.in))
			}
			if n := len(members); members[n-1].Out != int64(len(c.want)) {
				t.Errorf("last member ends at %d, want %d", members[n-1].Out, len(c.want))
			}
			resumeAll(t, c.in, points(), got, nil, false)

			var buf bytes.Buffer
			z.Reset(&slowReader{bytes.NewReader(c.in)})
			if n, err := z.WriteTo(&buf); err != nil || n != int64(len(c.want)) || !bytes.Equal(buf.Bytes(), c.want) {
				t.Errorf("WriteTo: %d, %v", n, err)
			}
			z.Reset(bytes.NewReader(c.in))
			skip := int64(len(c.want)) / 3
			if n, err := z.Discard(skip); n != skip || err != nil {
				t.Errorf("Discard: %d, %v", n, err)
			}
			if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, c.want[skip:]) {
				t.Errorf("after Discard: %d bytes, %v", len(got), err)
			}
			if n, err := z.Discard(1); n != 0 || err != io.EOF {
				t.Errorf("Discard at the end: %d, %v", n, err)
			}
		})
	}
}

// Headers and trailers with something wrong, and at which offset.
func TestBadGzip(t *testing.T) {
	data := text(1000, 3)
	good := gzipped(t, data)
	two := gzipped(t, data, data) // the second has all fields
	first := len(good)
	hcrc := bytes.Clone(good)
	hcrc[3] |= flagHCRC
	hcrc = append(hcrc[:10], append([]byte{0x12, 0x34}, good[10:]...)...)
	far := append(gzipped(t, data), 0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255)
	far = append(far, assemble(t, "1:1 1:2 =0000001 =00000 =0000000")...)
	change := func(in []byte, i int, v byte) []byte {
		in = bytes.Clone(in)
		in[i] = v
		return in
	}
	named := func(flag byte, n int) []byte {
		in := change(good, 3, flag)
		return slices.Concat(in[:10], bytes.Repeat([]byte("x"), n), []byte{0}, in[10:])
	}
	if out, err := io.ReadAll(NewReader(bytes.NewReader(named(flagName, maxName-1)))); err != nil || !bytes.Equal(out, data) {
		t.Errorf("the longest name: %v", err)
	}
	n := len(good)
	for _, c := range []struct {
		name string
		in   []byte
		off  int64
		kind error
	}{
		{"empty", nil, 0, io.ErrUnexpectedEOF},
		{"not gzip", []byte("hello, world"), 0, fault.ErrCorrupt},
		{"method", change(good, 2, 7), 2, fault.ErrCorrupt},
		{"reserved flags", change(good, 3, 0x20), 3, fault.ErrCorrupt},
		{"header checksum", hcrc, 0, fault.ErrIntegrity},
		{"checksum", change(good, n-8, good[n-8]^1), int64(n - 8), fault.ErrIntegrity},
		{"size", change(good, n-4, good[n-4]^1), int64(n - 4), fault.ErrIntegrity},
		{"garbage", append(bytes.Clone(good), 'x'), int64(n), fault.ErrCorrupt},
		{"garbage after zeros", append(bytes.Clone(good), 0, 0, 0x1f, 0x8b), int64(n + 2), fault.ErrCorrupt},
		{"second member's magic", change(two, first+1, 0), int64(first), fault.ErrCorrupt},
		{"second member's method", change(two, first+2, 9), int64(first + 2), fault.ErrCorrupt},
		{"endless name", named(flagName, maxName), 0, fault.ErrCorrupt},
		{"endless comment", named(flagComment, maxName), 0, fault.ErrCorrupt},
		{"distance into the member before", far, int64(n + 10 + 1), fault.ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := io.ReadAll(NewReader(bytes.NewReader(c.in)))
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Off != c.off || !errors.Is(err, c.kind) {
				t.Fatalf("%v; want %v at %d", err, c.kind, c.off)
			}
		})
	}
	// A right header checksum is taken.
	_, err := io.ReadAll(NewReader(bytes.NewReader(hcrc)))
	var want, got uint16
	if _, serr := fmt.Sscanf(err.Error(), "gzip: offset 0: header checksum is %x, not %x", &want, &got); serr != nil {
		t.Fatal(err)
	}
	hcrc[10], hcrc[11] = byte(want), byte(want>>8)
	if out, err := io.ReadAll(NewReader(bytes.NewReader(hcrc))); err != nil || !bytes.Equal(out, data) {
		t.Fatal(err)
	}
}

// Offsets have 64 bits, on machines of 32 as well: of boundaries, of errors, and
// of members, whose trailers know their sizes modulo 2^32.
func TestBeyond4GiB(t *testing.T) {
	const inShift, outShift = 5<<32 + 3, 9<<32 + 7
	data := mixed(600_000, 8)
	in := gzipped(t, data[:200_000], data[200_000:])
	z := NewReader(bytes.NewReader(in))
	points := z.checkpoints(1 << 20)
	if _, err := io.ReadAll(z); err != nil {
		t.Fatal(err)
	}
	here := points()
	z.Reset(bytes.NewReader(in))
	z.base, z.obase = inShift, z.obase+outShift
	points = z.checkpoints(1 << 20)
	if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	for i, p := range points() {
		p.In -= inShift
		if p.Out -= outShift; p.Boundary != here[i].Boundary {
			t.Fatalf("boundary %d: %+v, want %+v", i, p.Boundary, here[i].Boundary)
		}
	}
	if z.InputOffset() != inShift+int64(len(in)) || z.OutputOffset() != outShift+int64(len(data)) {
		t.Errorf("ends at %d, %d", z.InputOffset(), z.OutputOffset())
	}

	cut := bytes.Clone(in[:len(in)-9])
	for i, p := range here {
		b := p.Boundary
		off := b.In
		if b.Bits > 0 {
			off--
		}
		b.In, b.Out = b.In+inShift, b.Out+outShift
		z.Resume(bytes.NewReader(cut[off:]), b, p.window)
		got, err := io.ReadAll(z)
		e, ok := errors.AsType[*Error](err)
		if !bytes.HasPrefix(data[p.Out:], got) || !ok || e.Off != inShift+int64(len(cut)) {
			t.Fatalf("resumed at point %d: %d bytes, %v", i, len(got), err)
		}
	}

	z.Reset(bytes.NewReader(in))
	z.OnBoundary(func(b Boundary) {
		if b.Member {
			z.start -= 1 << 32 // as if there had been so much more
		}
	})
	if _, err := io.ReadAll(z); err != nil {
		t.Error(err)
	}
}

// ReadFull gives what there is, in any pieces, and needs no input beyond it.
func TestReadFull(t *testing.T) {
	data := mixed(700_000, 5)
	in := gzipped(t, data[:300_000], nil, data[300_000:])
	var points []Boundary
	z := NewReader(bytes.NewReader(in))
	z.OnBoundary(func(b Boundary) { points = append(points, b) })
	for got := 0; got < len(data); {
		p := make([]byte, min(1+got%1000*7919%90_000, len(data)-got))
		if n, err := z.ReadFull(p); n != len(p) || err != nil || !bytes.Equal(p, data[got:got+n]) {
			t.Fatalf("at %d: %d, %v", got, n, err)
		}
		got += len(p)
	}
	if n, err := z.ReadFull(make([]byte, 10)); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	for i, b := range points {
		if b.Out == 0 || i > 0 && b.Out == points[i-1].Out {
			continue
		}
		z.Reset(bytes.NewReader(in[:b.In]))
		p := make([]byte, b.Out)
		if n, err := z.ReadFull(p); err != nil || !bytes.Equal(p, data[:n]) {
			t.Errorf("input up to %+v: %d, %v", b, n, err)
		}
		z.Reset(bytes.NewReader(in[:b.In]))
		if n, err := z.ReadFull(make([]byte, b.Out+5)); n != int(b.Out) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("input up to %+v, and 5 bytes more: %d, %v", b, n, err)
		}
	}
}

// A file that ends anywhere but at its end is an error there.
func TestTruncated(t *testing.T) {
	in := gzipped(t, text(3000, 4), noise(100, 5), mixed(2000, 6))
	var ends []int
	z := NewReader(bytes.NewReader(in))
	z.OnMember(func(m MemberEnd) { ends = append(ends, int(m.In)) })
	if _, err := io.ReadAll(z); err != nil {
		t.Fatal(err)
	}
	for n := range in {
		got, err := io.ReadAll(NewReader(bytes.NewReader(in[:n])))
		if len(ends) > 0 && n == ends[0] {
			ends = ends[1:]
			if err != nil {
				t.Errorf("%d bytes, whole members: %v", n, err)
			}
			continue
		}
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Off != int64(n) || !errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(err, fault.ErrCorrupt) {
			t.Fatalf("%d bytes: %v (%d bytes out)", n, err, len(got))
		}
	}
}

// An error of the source is given as it is, not taken for the end of the data.
func TestSourceError(t *testing.T) {
	in := gzipped(t, text(500_000, 7))
	broken := errors.New("broken")
	for _, n := range []int{0, 5, 10, 1000, len(in) - 4, len(in)} {
		z := NewReader(io.MultiReader(bytes.NewReader(in[:n]), errReader{broken}))
		if _, err := io.ReadAll(z); err != broken {
			t.Errorf("after %d bytes: %v", n, err)
		}
		if _, err := z.Read(make([]byte, 1)); err != broken {
			t.Errorf("after %d bytes, again: %v", n, err)
		}
	}
	z := NewReader(errReader{nil})
	if _, err := io.ReadAll(z); err != errNoInput {
		t.Errorf("a source that gives nothing: %v", err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }
