package layer

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/seek"
	"github.com/layerpipe/layerpipe/pkg/spancache"
)

// FuzzReader reads anything. What is read to its end can be read at offsets,
// and gives the same.
func FuzzReader(f *testing.F) {
	for _, c := range smallCases(f) {
		f.Add(c.blob, uint16(100))
		f.Add(c.blob[:len(c.blob)-5], uint16(0))
	}
	f.Fuzz(func(t *testing.T, blob []byte, spanSize uint16) {
		r := NewReader(context.Background(), bytes.NewReader(blob), Options{Seek: true, SpanSize: int64(spanSize)})
		defer r.Close()
		// Small input can stand for a lot of output.
		const most = 4 << 20
		var raw bytes.Buffer
		n, err := io.CopyN(&raw, r, most)
		if n == most {
			return
		}
		if err != io.EOF || r.Kind() == Xz {
			return
		}
		l, err := r.Seek()
		if err != nil {
			t.Fatal(err)
		}
		b, err := (&seek.Section{Layers: []seek.Layer{*l}}).MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		s, err := seek.Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		z, err := Open(&blobAt{b: blob}, &s.Layers[0], spancache.New(1<<20), LazyOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		got := make([]byte, raw.Len())
		if n, err := z.ReadAtContext(context.Background(), got, 0); n < len(got) || err != nil && err != io.EOF {
			t.Fatalf("%d bytes of %d: %v", n, len(got), err)
		}
		if z.Size() != int64(raw.Len()) || !bytes.Equal(got, raw.Bytes()) {
			t.Error("not what was streamed")
		}
	})
}

// FuzzFrames follows the structure of zstd and xz through anything, and must
// come to an end. What it passes on is what it was given.
func FuzzFrames(f *testing.F) {
	for _, c := range smallCases(f) {
		f.Add(c.blob)
	}
	f.Fuzz(func(t *testing.T, blob []byte) {
		in := func() *input {
			s := newStream(context.Background(), bytes.NewReader(nil), Options{})
			s.stop()
			i := &input{s: s, rest: blob}
			i.err = io.EOF
			return i
		}
		var got bytes.Buffer
		x := newXzReader(in())
		io.Copy(&got, x)
		if !bytes.HasPrefix(blob, got.Bytes()) {
			t.Error("xz: not what was given")
		}
		got.Reset()
		z := &frameReader{in: in()}
		for z.next() == nil {
			got.Reset()
			if _, err := io.Copy(&got, z); err != nil {
				break
			}
			if !bytes.Equal(got.Bytes(), blob[z.start:z.in.off]) {
				t.Error("zstd: not what was given")
			}
		}
	})
}
