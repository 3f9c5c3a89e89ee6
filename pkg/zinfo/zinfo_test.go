package zinfo

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/pkg/fault"
)

// On files of one member the index is SOCI's, byte for byte.
func TestSameAsSOCI(t *testing.T) {
	data := sample(700_000, 1)
	for name, in := range map[string][]byte{
		"plain": member(t, data, "", 0),
		"name":  member(t, data, "layer.tar", 0),
		"all":   allFields(t, data),
		"empty": member(t, nil, "", 0),
		"small": member(t, data[:100], "", 0),
		// Blocks end where a span does, exactly: that is not enough for a point.
		"flushed": flushed(t, data, 50_000),
	} {
		for _, span := range []int64{1, 30_000, 50_000, 200_000, 1 << 22} {
			t.Run(fmt.Sprintf("%s/%d", name, span), func(t *testing.T) {
				ref := naive{in: in, span: span}
				if err := ref.gunzip(); err != nil {
					t.Fatal(err)
				}
				var want []byte
				want = binary.LittleEndian.AppendUint32(want, uint32(len(ref.points)))
				want = binary.LittleEndian.AppendUint64(want, uint64(span))
				for _, p := range ref.points {
					want = binary.LittleEndian.AppendUint64(want, uint64(p.In))
					want = binary.LittleEndian.AppendUint64(want, uint64(p.Out))
					want = append(want, p.Bits)
					want = append(want, p.Window...)
				}
				if got := encode(t, build(t, in, Options{SpanSize: span})); !bytes.Equal(got, want) {
					t.Fatalf("%d bytes, want %d; or they differ", len(got), len(want))
				}
			})
		}
	}
}

// flushed is a member with a block's end after each n bytes of data.
func flushed(t *testing.T, data []byte, n int) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	for part := range slices.Chunk(data, n) {
		if _, err := w.Write(part); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// The same, against erofs-utils. Its first window is memory that nobody wrote
// to.
func TestSameAsErofsUtils(t *testing.T) {
	mkfs := interop.Peer(t, "mkfs.erofs")
	dir := t.TempDir()
	tar := filepath.Join(dir, "l.tar")
	// Some 10 MB of tar, of what is there.
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	src := filepath.Join(strings.TrimSpace(string(goroot)), "src")
	if err := exec.Command("tar", "-C", src, "-cf", tar, "runtime").Run(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(tar)
	if err != nil {
		t.Fatal(err)
	}
	blob := filepath.Join(dir, "l.tar.gz")
	in := member(t, data, "", 0)
	if err := os.WriteFile(blob, in, 0o666); err != nil {
		t.Fatal(err)
	}
	zinfo := filepath.Join(dir, "l.zinfo")
	args := append(mkfs[1:], "--tar=i", "--gzinfo="+zinfo, filepath.Join(dir, "l.erofs"), blob)
	if out, err := exec.Command(mkfs[0], args...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want, err := os.ReadFile(zinfo)
	if err != nil {
		t.Fatal(err)
	}
	x, err := Load(bytes.NewReader(want), int64(len(in)))
	if err != nil {
		t.Fatal(err)
	}
	got := encode(t, build(t, in, Options{SpanSize: x.SpanSize}))
	if len(x.Points) < 2 {
		t.Fatalf("%d points: nothing to compare", len(x.Points))
	}
	clear(want[headerSize+fieldsSize : headerSize+pointSize])
	if !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, mkfs.erofs: %d; or they differ", len(got), len(want))
	}
	if n, err := x.Verify(context.Background(), bytes.NewReader(in), 2, nil); err != nil || n != int64(len(data)) {
		t.Fatalf("Verify of mkfs.erofs's: %d, %v", n, err)
	}
}

// Every span of every kind of file decodes, with dense and with sparse windows,
// on its own and together with the next ones.
func TestSpans(t *testing.T) {
	data := sample(2_000_000, 2)
	for name, in := range files(t, data) {
		for _, o := range []Options{{SpanSize: 100_000}, {SpanSize: WindowSize, Sparse: true}, {SpanSize: 100_000, Sparse: true}, {SpanSize: 100_000, PerMember: true}, {Sparse: true, PerMember: true}} {
			t.Run(fmt.Sprintf("%s/%+v", name, o), func(t *testing.T) {
				made := build(t, in, o)
				if made.Size != int64(len(data)) || made.BlobSize != int64(len(in)) {
					t.Fatalf("sizes %d, %d; want %d, %d", made.Size, made.BlobSize, len(data), len(in))
				}
				x, err := Load(bytes.NewReader(encode(t, made)), made.BlobSize)
				if err != nil {
					t.Fatal(err)
				}
				for i := range x.Points {
					from, to, begin, end := made.Range(i)
					dst := make([]byte, end-begin)
					// The whole span, as much of it as decodes on its own, and a
					// bit of it.
					if err := made.DecodeSpan(i, in[from:to], dst); err != nil || !bytes.Equal(dst, data[begin:end]) {
						t.Fatalf("span %d: %v, or it differs", i, err)
					}
					clear(dst)
					n := min(len(dst), 100)
					if err := x.DecodeSpan(i, in[from:to], dst[:n]); err != nil || !bytes.Equal(dst[:n], data[begin:begin+int64(n)]) {
						t.Fatalf("beginning of span %d: %v, or it differs", i, err)
					}
				}
				if n, err := x.Verify(context.Background(), bytes.NewReader(in), 2, nil); err != nil || n != int64(len(data)) {
					t.Fatalf("Verify: %d, %v", n, err)
				}
			})
		}
	}
}

// A span decodes although others follow that are not asked for, and on beyond
// its own end if they are.
func TestSpanOn(t *testing.T) {
	data := sample(1_000_000, 3)
	in := split(t, data, 90_000)
	x := build(t, in, Options{SpanSize: 50_000})
	for i := range x.Points {
		from, _, begin, _ := x.Range(i)
		dst := make([]byte, int64(len(data))-begin)
		if err := x.DecodeSpan(i, in[from:], dst); err != nil || !bytes.Equal(dst, data[begin:]) {
			t.Fatalf("from span %d on: %v, or it differs", i, err)
		}
	}
}

// Where points are.
func TestPoints(t *testing.T) {
	data := sample(2_000_000, 4)
	all := files(t, data)
	// One point where SOCI has three, the last one of them.
	x := build(t, all["empty ones"], Options{})
	if empty := len(member(t, nil, "", 0)); len(x.Points) != 1 || x.Points[0].In != int64(2*empty+10) {
		t.Errorf("leading empty members: %d points, the first at %d", len(x.Points), x.Points[0].In)
	}
	// Members make no points of their own, unless asked to.
	many := all["members"]
	if x := build(t, many, Options{SpanSize: 400_000}); len(x.Points) != 5 {
		t.Errorf("%d points over members, want 5", len(x.Points))
	}
	if x := build(t, many, Options{SpanSize: 400_000, PerMember: true}); len(x.Points) != 34 {
		t.Errorf("%d points in per-member mode, want 34", len(x.Points))
	}
	// An empty member between others makes none either.
	gap := bytes.Join([][]byte{member(t, data[:1000], "", 0), member(t, nil, "", 0), member(t, data, "", 0)}, nil)
	if x := build(t, gap, Options{PerMember: true}); len(x.Points) != 2 || x.Points[1].Out != 1000 {
		t.Errorf("a gap: %+v", x.Points)
	}
	// Sparse windows are what is needed and no more.
	dense := build(t, all["plain"], Options{SpanSize: 300_000})
	sparse := build(t, all["plain"], Options{SpanSize: 300_000, Sparse: true})
	for i, p := range sparse.Points {
		used := 0
		for j, c := range p.Window {
			if c != 0 {
				used++
				if c != dense.Points[i].Window[j] {
					t.Fatalf("window %d, byte %d is neither zero nor right", i, j)
				}
			}
		}
		if i > 0 && (used == 0 || used > WindowSize*9/10) {
			t.Errorf("window %d: %d bytes used", i, used)
		}
	}
}

// The index cannot be made larger than allowed.
func TestMaxSize(t *testing.T) {
	in := split(t, sample(100_000, 5), 100)
	for _, read := range []func(*Reader) error{
		func(r *Reader) error { _, err := io.Copy(io.Discard, r); return err },
		func(r *Reader) error { _, err := io.ReadAll(r); return err },
	} {
		r := NewReader(bytes.NewReader(in), Options{PerMember: true, MaxSize: 1 << 20})
		if err := read(r); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%v", err)
		}
		if _, err := r.Index(); !errors.Is(err, ErrTooLarge) {
			t.Errorf("Index: %v", err)
		}
		if n := r.index.EncodedSize(); n > 1<<20 {
			t.Errorf("it took %d bytes", n)
		}
	}
	for _, o := range []Options{{SpanSize: -1}, {SpanSize: 100, Sparse: true}} {
		if _, err := io.ReadAll(NewReader(bytes.NewReader(in), o)); !errors.Is(err, fault.ErrUsage) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	r := NewReader(bytes.NewReader(in), Options{})
	if _, err := r.Index(); !errors.Is(err, fault.ErrUsage) {
		t.Errorf("Index at once: %v", err)
	}
}

// Bad data in a span is found, and said where.
func TestBadSpans(t *testing.T) {
	data := sample(1_000_000, 6)
	in := member(t, data, "", 0)
	x := build(t, in, Options{SpanSize: 100_000})
	last := len(x.Points) - 1
	from, to, begin, end := x.Range(last)
	dst := make([]byte, end-begin)
	if err := x.DecodeSpan(last, in[from:to-1], dst); !errors.Is(err, fault.ErrCorrupt) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("last span cut off: %v", err)
	}
	from, to, begin, end = x.Range(1)
	if err := x.DecodeSpan(1, in[from:to-8], dst[:0]); err != nil {
		t.Errorf("nothing of a span: %v", err)
	}
	dst = make([]byte, end-begin)
	if err := x.DecodeSpan(1, in[from:to-8], dst); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("span cut off: %v", err)
	}
	// The first span of a one-span file has the member's checksum to hold
	// against it.
	small := member(t, data[:1000], "", 0)
	x = build(t, small, Options{})
	small[len(small)-7] ^= 1
	from, to, begin, end = x.Range(0)
	if err := x.DecodeSpan(0, small[from:to], dst[:end-begin]); !errors.Is(err, fault.ErrIntegrity) {
		t.Errorf("checksum: %v", err)
	}
	if err := x.DecodeSpan(0, small[from:to], make([]byte, 2000)); !errors.Is(err, fault.ErrCorrupt) && !errors.Is(err, fault.ErrIntegrity) {
		t.Errorf("more than there is: %v", err)
	}
}
