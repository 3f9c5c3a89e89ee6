package layer

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/ulikunitz/xz"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// text makes n bytes that compress about as well as a layer does: words from
// a vocabulary, with some noise in between.
func text(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	words := make([][]byte, 4000)
	for i := range words {
		words[i] = make([]byte, 2+r.IntN(12))
		for j := range words[i] {
			words[i][j] = byte('a' + r.IntN(26))
		}
	}
	b := make([]byte, 0, n+64)
	for len(b) < n {
		if r.IntN(12) == 0 {
			for range 8 {
				b = append(b, byte(r.Uint32()))
			}
			continue
		}
		b = append(b, words[r.IntN(len(words))]...)
		b = append(b, ' ')
	}
	return b[:n]
}

func gzipped(t testing.TB, b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(b)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// members makes a gzip file of members of n bytes each, with an empty one in
// front, in the middle and at the end, as bgzf has it.
func members(t testing.TB, b []byte, n int) []byte {
	out := gzipped(t, nil)
	for i := 0; len(b) > 0; i++ {
		k := min(n, len(b))
		out = append(out, gzipped(t, b[:k])...)
		if b = b[k:]; i%5 == 0 {
			out = append(out, gzipped(t, nil)...)
		}
	}
	return append(out, gzipped(t, nil)...)
}

func zstded(t testing.TB, b []byte, o ...zstd.EOption) []byte {
	var buf bytes.Buffer
	w, err := zstd.NewWriter(&buf, append(o, zstd.WithEncoderConcurrency(1))...)
	if err != nil {
		t.Fatal(err)
	}
	// In parts, so that the encoder cannot know the size beforehand.
	for len(b) > 0 {
		n := min(len(b), 10000)
		w.Write(b[:n])
		b = b[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// frames makes zstd frames of n bytes each, some with a content size and some
// without, and skippable ones in front, in between and at the end.
func frames(t testing.TB, b []byte, n int) []byte {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	skip := []byte("\x5e\x2a\x4d\x18\x05\x00\x00\x00hello")
	out := bytes.Clone(skip)
	for i := 0; len(b) > 0; i++ {
		k := min(n, len(b))
		if i%3 == 0 {
			out = append(out, zstded(t, b[:k])...)
		} else {
			out = enc.EncodeAll(b[:k], out)
		}
		if b = b[k:]; i%4 == 0 {
			out = append(out, skip...)
		}
	}
	return append(out, skip...)
}

func xzed(t testing.TB, b []byte) []byte {
	var buf bytes.Buffer
	w, err := xz.WriterConfig{DictCap: 64 << 10}.NewWriter(&buf)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(b)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func describe(blob []byte) *ocispec.Descriptor {
	return &ocispec.Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar", Digest: digest.FromBytes(blob), Size: int64(len(blob))}
}

type blobCase struct {
	name string
	kind Kind
	raw  []byte
	blob []byte
}

// blobCases are layers of every kind and dialect. n is the uncompressed size.
func blobCases(t testing.TB, n int) []blobCase {
	raw := text(n, 42)
	zeros := make([]byte, n)
	cases := []blobCase{
		{"plain", Plain, raw, raw},
		{"gzip", Gzip, raw, gzipped(t, raw)},
		{"gzip members", Gzip, raw, members(t, raw, 60000)},
		{"gzip of zeros", Gzip, zeros, gzipped(t, zeros)},
		{"gzip empty", Gzip, nil, gzipped(t, nil)},
		{"zstd", Zstd, raw, zstded(t, raw)},
		{"zstd frames", Zstd, raw, frames(t, raw, 50000)},
		{"zstd large frames", Zstd, raw, frames(t, raw, n/3)},
		{"zstd of zeros", Zstd, zeros, zstded(t, zeros, zstd.WithEncoderCRC(false))},
		{"zstd empty", Zstd, nil, frames(t, nil, 1)},
	}
	return cases
}

func TestReader(t *testing.T) {
	cases := blobCases(t, 1200_000)
	small := text(100_000, 9)
	cases = append(cases, blobCase{"xz", Xz, small, xzed(t, small)},
		blobCase{"xz streams", Xz, append(bytes.Clone(small), small...), append(xzed(t, small), xzed(t, small)...)},
		blobCase{"empty", Plain, nil, nil})
	for _, c := range cases {
		for _, seek := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/seek=%v", c.name, seek), func(t *testing.T) {
				r := NewReader(context.Background(), bytes.NewReader(c.blob), Options{Descriptor: describe(c.blob), Seek: seek, SpanSize: 100_000})
				defer r.Close()
				if k := r.Kind(); k != c.kind {
					t.Errorf("kind %v", k)
				}
				if err := iotest.TestReader(r, c.raw); err != nil {
					t.Fatal(err)
				}
				if r.Digest() != digest.FromBytes(c.blob) || r.BlobSize() != int64(len(c.blob)) {
					t.Errorf("digest %s, size %d", r.Digest(), r.BlobSize())
				}
				l, err := r.Seek()
				switch {
				case !seek:
					if !errors.Is(err, fault.ErrUsage) {
						t.Errorf("Seek, not asked for: %v", err)
					}
				case c.kind == Xz:
					if !errors.Is(err, fault.ErrUnsupported) {
						t.Errorf("Seek of xz: %v", err)
					}
				case err != nil:
					t.Error(err)
				case l.Validate() != nil:
					t.Error(l.Validate())
				case l.Size != int64(len(c.raw)):
					t.Errorf("size %d", l.Size)
				}
			})
		}
	}
}

// Peek, Discard and Read in any order give what bufio.Reader's give.
func TestPeekDiscard(t *testing.T) {
	raw := text(2<<20, 3)
	for _, blob := range [][]byte{raw, gzipped(t, raw)} {
		r := NewReader(context.Background(), iotest.HalfReader(bytes.NewReader(blob)), Options{})
		defer r.Close()
		rnd := rand.New(rand.NewPCG(1, 2))
		at := 0
		for at < len(raw) {
			switch rnd.IntN(3) {
			case 0:
				n := rnd.IntN(MaxPeek + 1)
				p, err := r.Peek(n)
				want := raw[at:min(at+n, len(raw))]
				if !bytes.Equal(p, want) || (err == io.EOF) != (len(want) < n) {
					t.Fatalf("Peek(%d) at %d: %d bytes, %v", n, at, len(p), err)
				}
				if r.Buffered() < len(p) {
					t.Fatalf("Buffered is %d behind Peek(%d)", r.Buffered(), n)
				}
			case 1:
				n := rnd.Int64N(100_000)
				k, err := r.Discard(n)
				if want := min(n, int64(len(raw)-at)); k != want || (err == io.EOF) != (want < n) {
					t.Fatalf("Discard(%d) at %d: %d, %v", n, at, k, err)
				}
				at += int(k)
			case 2:
				p := make([]byte, rnd.IntN(100_000))
				n, err := io.ReadFull(r, p)
				if !bytes.Equal(p[:n], raw[at:at+n]) || err != nil && at+n != len(raw) {
					t.Fatalf("Read of %d at %d: %v", len(p), at, err)
				}
				at += n
			}
		}
		if _, err := r.Peek(MaxPeek + 1); !errors.Is(err, fault.ErrUsage) {
			t.Errorf("Peek(MaxPeek+1): %v", err)
		}
		if _, err := r.Discard(-1); !errors.Is(err, fault.ErrUsage) {
			t.Errorf("Discard(-1): %v", err)
		}
	}
}
