package seek

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

func descriptor(name string, size int64) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: digest.FromString(name), Size: size}
}

// sums makes the digests that n bytes need.
func sums(name string, n int64) [][32]byte {
	d := make([][32]byte, Pieces(n))
	for i := range d {
		d[i] = sha256.Sum256(binary.AppendVarint([]byte(name), int64(i)))
	}
	return d
}

// sparseWindow is a window with runs of text in it, as sparse windows are.
func sparseWindow(seed uint64) Window {
	r := rand.New(rand.NewPCG(seed, 7))
	w := make([]byte, WindowSize)
	for i := 0; i < len(w); i += 1 + r.IntN(5000) {
		for n := r.IntN(20); n > 0 && i < len(w); n-- {
			w[i] = byte(r.IntN(256))
			i++
		}
	}
	return PackWindow(w)
}

// sample is a section with a layer of each kind.
func sample() *Section {
	s := &Section{Layers: []Layer{
		{Descriptor: descriptor("plain", 5<<20+1), Kind: Plain, Size: 5<<20 + 1},
		{Descriptor: descriptor("gzip", 9<<20), Kind: Gzip, Size: 30 << 20, Spans: []Span{
			{In: 10, Out: 0},
			{In: 3<<20 + 5, Out: 10 << 20, Bits: 3, Window: sparseWindow(1)},
			{In: 4<<20 + 7, Out: 14 << 20, Bits: 7},
			{In: 8 << 20, Out: 20 << 20, Window: sparseWindow(2)},
		}},
		{Descriptor: descriptor("zstd", 3<<20), Kind: Zstd, Size: 12 << 20, Spans: []Span{
			{In: 0, Out: 0}, {In: 1 << 20, Out: 4 << 20}, {In: 2<<20 + 1, Out: 8 << 20},
		}},
		{Descriptor: descriptor("empty", 0), Kind: Plain},
	}}
	s.Layers[0].Spans = []Span{{}}
	for i := range s.Layers {
		l := &s.Layers[i]
		for j := range l.Spans {
			in, end, _, _ := l.Range(j)
			l.Spans[j].Digests = sums(string(l.Descriptor.Digest), end-in)
		}
	}
	m := descriptor("manifest", 1234)
	m.MediaType = ocispec.MediaTypeImageManifest
	m.Annotations = map[string]string{"b": "2", "a": "1"}
	s.Manifest = &m
	return s
}

func TestRoundTrip(t *testing.T) {
	want := sample()
	prefix := bytes.Repeat([]byte("metadata"), 128)
	b, err := want.Append(prefix)
	if err != nil {
		t.Fatal(err)
	}
	if (len(b)-len(prefix))%512 != 0 || !bytes.HasPrefix(b, prefix) {
		t.Fatalf("section of %d bytes", len(b)-len(prefix))
	}
	got, err := Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Error("not what was written")
	}
	again, err := got.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, b[len(prefix):]) {
		t.Error("the bytes depend on more than the section")
	}
}

// A layer of more than 4 GiB, of which each span begins behind that.
func TestBeyond4GiB(t *testing.T) {
	const in, out = 5<<32 + 3, 9<<32 + 7
	want := &Section{Layers: []Layer{{Descriptor: descriptor("large", in+3<<20), Kind: Gzip, Size: out + 9<<20, Spans: []Span{
		{In: 10}, {In: in, Out: out, Bits: 5, Window: sparseWindow(1)}, {In: in + 1<<20, Out: out + 4<<20},
	}}}}
	l := &want.Layers[0]
	for i := range l.Spans {
		from, to, _, _ := l.Range(i)
		l.Spans[i].Digests = sums("large", to-from)
	}
	b, err := want.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Read(bytes.NewReader(b), int64(len(b)))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("not what was written: %v", err)
	}
}

func TestNoLayers(t *testing.T) {
	b, err := new(Section).MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Read(bytes.NewReader(b), int64(len(b)))
	if err != nil || len(got.Layers) != 0 || got.Manifest != nil {
		t.Fatalf("%+v, %v", got, err)
	}
}

func TestWindow(t *testing.T) {
	cases := map[string]func(w []byte){
		"zero":       func(w []byte) {},
		"last":       func(w []byte) { w[WindowSize-1] = 1 },
		"first":      func(w []byte) { w[0] = 1 },
		"dense":      func(w []byte) { copy(w, bytes.Repeat([]byte("x"), WindowSize)) },
		"short gaps": func(w []byte) { copy(w, bytes.Repeat([]byte("x\x00\x00"), WindowSize)) },
		"long gaps":  func(w []byte) { copy(w, bytes.Repeat([]byte("x\x00\x00\x00\x00\x00"), WindowSize)) },
		"gap at end": func(w []byte) { w[WindowSize-3] = 1 },
		"exact gaps": func(w []byte) { copy(w, bytes.Repeat([]byte("x\x00\x00\x00\x00"), WindowSize)) },
	}
	for name, fill := range cases {
		w := make([]byte, WindowSize)
		fill(w)
		p := PackWindow(w)
		got := bytes.Repeat([]byte{0xff}, WindowSize)
		p.Unpack(got)
		if !bytes.Equal(got, w) {
			t.Errorf("%s: not what was packed", name)
		}
		if p.IsZero() != (name == "zero") {
			t.Errorf("%s: IsZero is %v", name, p.IsZero())
		}
		if len(p.packed) > WindowSize+16 {
			t.Errorf("%s: packed to %d bytes", name, len(p.packed))
		}
	}
	if !PackWindow(nil).IsZero() {
		t.Error("nil is not zero")
	}
}

// Each case breaks one rule: Append refuses to write it.
func TestValidate(t *testing.T) {
	cases := map[string]func(s *Section){
		"digest":              func(s *Section) { s.Layers[0].Descriptor.Digest = "sha256:12" },
		"negative blob":       func(s *Section) { s.Layers[1].Descriptor.Size = -1 },
		"negative size":       func(s *Section) { s.Layers[1].Size = -1 },
		"plain size":          func(s *Section) { s.Layers[0].Size++ },
		"plain spans":         func(s *Section) { s.Layers[0].Spans = make([]Span, 2) },
		"plain no span":       func(s *Section) { s.Layers[0].Spans = nil },
		"plain checkpoint":    func(s *Section) { s.Layers[0].Spans[0].Bits = 1 },
		"empty with a span":   func(s *Section) { s.Layers[3].Spans = make([]Span, 1) },
		"gzip no span":        func(s *Section) { s.Layers[1].Spans = nil },
		"bits":                func(s *Section) { s.Layers[1].Spans[1].Bits = 8 },
		"zstd bits":           func(s *Section) { s.Layers[2].Spans[1].Bits = 1 },
		"zstd window":         func(s *Section) { s.Layers[2].Spans[1].Window = sparseWindow(3) },
		"zstd first":          func(s *Section) { s.Layers[2].Spans[0].In = 1 },
		"first out":           func(s *Section) { s.Layers[1].Spans[0].Out = 1 },
		"same in":             func(s *Section) { s.Layers[1].Spans[2].In = s.Layers[1].Spans[1].In },
		"same out":            func(s *Section) { s.Layers[1].Spans[2].Out = s.Layers[1].Spans[1].Out },
		"backwards":           func(s *Section) { s.Layers[1].Spans[3].In = 11 },
		"in beyond":           func(s *Section) { s.Layers[1].Spans[3].In = s.Layers[1].Descriptor.Size },
		"out beyond":          func(s *Section) { s.Layers[1].Spans[3].Out = s.Layers[1].Size + 1 },
		"growth":              func(s *Section) { s.Layers[1].Size = 20<<20 + maxGrowthGzip*(1<<20+3) },
		"growth overflow":     func(s *Section) { s.Layers[1].Size = 1 << 62 },
		"zstd growth":         func(s *Section) { s.Layers[2].Size = 1 << 40 },
		"too few digests":     func(s *Section) { p := &s.Layers[1].Spans[3].Digests; *p = (*p)[1:] },
		"too many digests":    func(s *Section) { p := &s.Layers[1].Spans[3].Digests; *p = append(*p, [32]byte{}) },
		"plain few digests":   func(s *Section) { p := &s.Layers[0].Spans[0].Digests; *p = (*p)[1:] },
		"digest by mid-byte":  func(s *Section) { s.Layers[1].Spans[3].In = 4<<20 + 7 + 4<<20; s.Layers[1].Spans[3].Bits = 0 },
		"kind":                func(s *Section) { s.Layers[1].Kind = 4 },
		"kind of the zeros":   func(s *Section) { s.Layers[1].Kind = 0 },
		"window in plain one": func(s *Section) { s.Layers[0].Spans[0].Window = sparseWindow(3) },
	}
	for name, spoil := range cases {
		s := sample()
		spoil(s)
		_, err := s.MarshalBinary()
		if !errors.Is(err, fault.ErrCorrupt) && !errors.Is(err, fault.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
