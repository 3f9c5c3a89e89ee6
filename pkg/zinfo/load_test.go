package zinfo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// loaders are the two ways to read a file, which accept and refuse the same.
var loaders = map[string]func(b []byte, blobSize int64) (*Index, error){
	"Load": func(b []byte, blobSize int64) (*Index, error) { return Load(bytes.NewReader(b), blobSize) },
	"Open": func(b []byte, blobSize int64) (*Index, error) {
		return Open(bytes.NewReader(b), int64(len(b)), blobSize)
	},
}

func TestLoad(t *testing.T) {
	for name, load := range loaders {
		t.Run(name, func(t *testing.T) { testLoad(t, load) })
	}
}

func testLoad(t *testing.T, load func([]byte, int64) (*Index, error)) {
	in := member(t, sample(1_000_000, 1), "", 0)
	x := build(t, in, Options{SpanSize: 100_000})
	v2 := encode(t, x)
	v1 := append(bytes.Clone(v2[:headerSize]), v2[headerSize+pointSize:]...)
	size := int64(len(in))
	for name, b := range map[string][]byte{"v2": v2, "v1": v1} {
		y, err := load(b, size)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if y.SpanSize != 100_000 || y.Size != -1 || y.BlobSize != size || !bytes.Equal(encode(t, y), v2) {
			t.Errorf("%s: loads as something else", name)
		}
	}
	// One checkpoint in version 1 is a bare header.
	y, err := load([]byte{1, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0}, -1)
	if err != nil || len(y.Points) != 1 || y.Points[0].In != 10 {
		t.Errorf("a bare header: %v", err)
	}
	if from, to, begin, end := y.Range(0); from != 10 || to != -1 || begin != 0 || end != -1 {
		t.Errorf("Range of one point: %d, %d, %d, %d", from, to, begin, end)
	}

	// What SOCI makes of leading empty members.
	dup := append([]byte{}, v2[:headerSize]...)
	dup[0]++
	dup = append(dup, v2[headerSize:headerSize+pointSize]...)
	dup = append(dup, v2[headerSize:]...)
	binary.LittleEndian.PutUint64(dup[headerSize+pointSize:], 20)
	if y, err = load(dup, size); err != nil || len(y.Points) != len(x.Points) || y.Points[0].In != 20 {
		t.Errorf("two points at 0: %v", err)
	}
	// And of erofs-utils, which leaves memory in the first window.
	junk := bytes.Clone(v2)
	junk[headerSize+fieldsSize+7] = 0xaa
	window := bytes.Repeat([]byte{1}, WindowSize)
	if y, err = load(junk, size); err != nil || y.ReadWindow(0, window) != nil || !bytes.Equal(window, zeroWindow[:]) {
		t.Errorf("first window: %v", err)
	}
}

// Indexes that cannot be are refused, and take no memory that is not there.
func TestLoadHostile(t *testing.T) {
	in := member(t, sample(1_000_000, 1), "", 0)
	good := encode(t, build(t, in, Options{SpanSize: 100_000}))
	point := func(i int) int { return headerSize + i*pointSize }
	set64 := func(off int, v uint64) func([]byte) []byte {
		return func(b []byte) []byte {
			binary.LittleEndian.PutUint64(b[off:], v)
			return b
		}
	}
	for _, c := range []struct {
		name string
		edit func([]byte) []byte
		want string
	}{
		{"empty", func(b []byte) []byte { return nil }, "offset 0: a record is cut short"},
		{"short header", func(b []byte) []byte { return b[:11] }, "offset 0: a record is cut short"},
		{"no points", func(b []byte) []byte { return make([]byte, 12) }, "0 checkpoints"},
		{"negative count", func(b []byte) []byte { b[3] = 0x80; return b }, "checkpoints"},
		{"2^31-1 points", func(b []byte) []byte { copy(b, "\xff\xff\xff\x7f"); return b }, "of 2147483647 checkpoints"},
		// In 32 bits, 131005 points of 32785 bytes are 31 KB.
		{"131005 points", func(b []byte) []byte { copy(b, "\xbd\xff\x01\x00"); return b[:31_000] }, "is cut short"},
		{"two too many", func(b []byte) []byte { b[0] += 2; return b }, "the file ends after"},
		{"one too few", func(b []byte) []byte { b[0]--; return b }, "data after the last"},
		{"negative span size", func(b []byte) []byte { b[11] = 0x80; return b }, "span size"},
		{"cut in a window", func(b []byte) []byte { return b[:len(b)-1] }, "is cut short"},
		{"cut in a point", func(b []byte) []byte { return b[:point(2)+5] }, "is cut short"},
		{"a byte more", func(b []byte) []byte { return append(b, 0) }, "data after the last"},
		{"bits", func(b []byte) []byte { b[point(1)+16] = 8; return b }, "bits=8"},
		{"in goes back", set64(point(2), 20), "not behind"},
		{"in stays", func(b []byte) []byte { copy(b[point(2):point(2)+8], b[point(1):]); return b }, "not behind"},
		{"out goes back", set64(point(2)+8, 1), "not behind"},
		{"in beyond the file", set64(point(3), uint64(len(in))), "beyond the end"},
		{"in huge", set64(point(3), 1<<63), "checkpoint at"},
		{"out huge", set64(point(3)+8, 1<<63), "checkpoint at"},
		{"more than 1032:1", set64(point(1)+8, 1<<40), "more output"},
		{"just more than 1032:1", func(b []byte) []byte {
			in := binary.LittleEndian.Uint64(b[point(1):]) - binary.LittleEndian.Uint64(b[point(0):])
			return set64(point(1)+8, 1032*(in+1)+1)(b[:point(2)])
		}, "more output"},
		{"in the header", set64(point(0), 9), "no such position"},
		{"first not at 0", set64(point(0)+8, 1), "no checkpoint at the start"},
	} {
		for name, load := range loaders {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				b := c.edit(bytes.Clone(good))
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				x, err := load(b, int64(len(in)))
				runtime.ReadMemStats(&after)
				if x != nil || !errors.Is(err, fault.ErrCorrupt) || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("%v, want %q", err, c.want)
				}
				if n := after.TotalAlloc - before.TotalAlloc; n > uint64(2*len(good)+1<<20) {
					t.Errorf("allocated %d bytes", n)
				}
			})
		}
	}
	broken := errors.New("broken")
	if _, err := Load(io.MultiReader(bytes.NewReader(good[:50_000]), brokenReader{broken}), -1); !errors.Is(err, broken) {
		t.Errorf("a broken source: %v", err)
	}
}

// A window that cannot be read is an error of the reads that need it, and of no
// others; so is one that has gone since.
func TestOpenBroken(t *testing.T) {
	data := sample(1_000_000, 1)
	in := member(t, data, "", 0)
	b := encode(t, build(t, in, Options{SpanSize: 100_000}))
	broken := errors.New("broken")
	for want, cut := range map[error]*cutReaderAt{
		broken:              {b: b, end: len(b) - 10, err: broken},
		io.ErrUnexpectedEOF: {b: b, end: len(b) - 10, err: io.EOF},
	} {
		x, err := Open(cut, int64(len(b)), int64(len(in)))
		if err != nil {
			t.Fatal(err)
		}
		last := len(x.Points) - 1
		r := NewReaderAt(bytes.NewReader(in), x)
		p := make([]byte, 100)
		if _, err := r.ReadAt(p, 0); err != nil {
			t.Errorf("the first span: %v", err)
		}
		off := x.Points[last].Out
		for range 2 {
			if n, err := r.ReadAt(p, off); n != 0 || !errors.Is(err, want) {
				t.Errorf("the last span: %d, %v", n, err)
			}
		}
		if err := x.DecodeSpan(last, in[x.Points[last].start():], p); !errors.Is(err, want) {
			t.Errorf("DecodeSpan: %v", err)
		}
		if _, err := x.Verify(t.Context(), bytes.NewReader(in), 1, nil); !errors.Is(err, want) {
			t.Errorf("Verify: %v", err)
		}
		if _, err := x.WriteTo(io.Discard); !errors.Is(err, want) {
			t.Errorf("WriteTo: %v", err)
		}
	}
}

// cutReaderAt is b up to end, and then err.
type cutReaderAt struct {
	b   []byte
	end int
	err error
}

func (c *cutReaderAt) ReadAt(p []byte, off int64) (int, error) {
	if n := copy(p, c.b[min(int(off), c.end):c.end]); n < len(p) {
		return n, c.err
	}
	return len(p), nil
}

type brokenReader struct{ err error }

func (r brokenReader) Read([]byte) (int, error) { return 0, r.err }

// FuzzLoad: whatever loads can be used without a panic, and is written as it
// was.
func FuzzLoad(f *testing.F) {
	in := member(f, sample(200_000, 1), "", 0)
	good := encode(f, build(f, in, Options{SpanSize: 50_000, Sparse: true}))
	f.Add(good)
	f.Add(append(bytes.Clone(good[:headerSize]), good[headerSize+pointSize:]...))
	f.Add([]byte{1, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := Load(bytes.NewReader(b), int64(len(in)))
		opened, openErr := Open(bytes.NewReader(b), int64(len(b)), int64(len(in)))
		if (err == nil) != (openErr == nil) {
			t.Fatalf("Load: %v; Open: %v", err, openErr)
		}
		if err != nil {
			if !errors.Is(err, fault.ErrCorrupt) || !errors.Is(openErr, fault.ErrCorrupt) {
				t.Fatalf("Load: %v; Open: %v", err, openErr)
			}
			return
		}
		if !bytes.Equal(encode(t, opened), encode(t, x)) {
			t.Fatal("Load and Open differ")
		}
		again, err := Load(bytes.NewReader(encode(t, x)), int64(len(in)))
		if err != nil || len(again.Points) != len(x.Points) {
			t.Fatalf("written and loaded again: %v", err)
		}
		dst := make([]byte, 10_000)
		for i := range x.Points {
			from, to, _, _ := x.Range(i)
			if from < 0 || to <= from || to > int64(len(in)) {
				t.Fatalf("span %d: %d to %d", i, from, to)
			}
			if err := x.DecodeSpan(i, in[from:to], dst); err != nil && !errors.Is(err, fault.ErrCorrupt) && !errors.Is(err, fault.ErrIntegrity) {
				t.Fatal(err)
			}
		}
		x.Verify(t.Context(), bytes.NewReader(in), 1, nil)
	})
}
