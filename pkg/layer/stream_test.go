package layer

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/bits"
	"runtime"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// readAll reads a blob through, and returns the error if there is one.
func readAll(r io.Reader, o Options) error {
	z := NewReader(context.Background(), r, o)
	defer z.Close()
	_, err := io.Copy(io.Discard, z)
	return err
}

// smallCases are layers of a few hundred bytes.
func smallCases(t testing.TB) []blobCase {
	raw := text(300, 6)
	return []blobCase{
		{"plain", Plain, raw, raw},
		{"gzip", Gzip, raw, gzipped(t, raw)},
		{"gzip members", Gzip, raw, members(t, raw, 120)},
		{"zstd", Zstd, raw, zstded(t, raw)},
		{"zstd frames", Zstd, raw, frames(t, raw, 120)},
		{"xz", Xz, raw, xzed(t, raw)},
	}
}

// A blob that was cut anywhere is an error: of integrity where it is known
// what it should be, and else one of its format. Only a cut that leaves whole
// members or frames cannot be seen then, nor any in a plain layer.
func TestTruncated(t *testing.T) {
	for _, c := range smallCases(t) {
		for n := range c.blob {
			for _, seek := range []bool{false, true} {
				cut := bytes.NewReader(c.blob[:n])
				err := readAll(cut, Options{Descriptor: describe(c.blob), Seek: seek})
				if !errors.Is(err, fault.ErrIntegrity) {
					t.Fatalf("%s cut at %d: %v", c.name, n, err)
				}
			}
			err := readAll(bytes.NewReader(c.blob[:n]), Options{})
			whole := Sniff(c.blob[:n]) == Plain || wholeParts(t, c, n)
			if err == nil != whole || err != nil && (!errors.Is(err, fault.ErrCorrupt) || !errors.Is(err, io.ErrUnexpectedEOF)) {
				t.Fatalf("%s cut at %d, no digest known: %v", c.name, n, err)
			}
		}
	}
}

// wholeParts reports whether a cut leaves a valid blob, by another decoder.
func wholeParts(t testing.TB, c blobCase, n int) bool {
	switch c.name {
	case "gzip members":
		// Each member but an empty one at the very start ends in its size.
		for _, end := range memberEnds(t, c.raw, 120) {
			if n == end {
				return true
			}
		}
	case "zstd frames":
		d, err := zstd.NewReader(bytes.NewReader(c.blob[:n]))
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		_, err = io.Copy(io.Discard, d)
		return err == nil
	}
	return false
}

// memberEnds are the offsets at which the members that members makes end.
func memberEnds(t testing.TB, raw []byte, n int) []int {
	at := len(gzipped(t, nil))
	ends := []int{at}
	for i := 0; len(raw) > 0; i++ {
		k := min(n, len(raw))
		at += len(gzipped(t, raw[:k]))
		ends = append(ends, at)
		if raw = raw[k:]; i%5 == 0 {
			at += len(gzipped(t, nil))
			ends = append(ends, at)
		}
	}
	return ends
}

// Whatever byte is not what it was, it is an integrity error, also where the
// format fails first.
func TestFlipped(t *testing.T) {
	for _, c := range smallCases(t) {
		for n := range c.blob {
			b := bytes.Clone(c.blob)
			b[n] ^= 1 << (n % 8)
			err := readAll(bytes.NewReader(b), Options{Descriptor: describe(c.blob), Seek: n%2 == 0})
			if !errors.Is(err, fault.ErrIntegrity) {
				t.Fatalf("%s flipped at %d: %v", c.name, n, err)
			}
		}
	}
}

func TestWrongDescriptor(t *testing.T) {
	for _, c := range smallCases(t) {
		d := describe(c.blob)
		d.Digest = digest.FromString("something else")
		if err := readAll(bytes.NewReader(c.blob), Options{Descriptor: d}); !errors.Is(err, fault.ErrIntegrity) {
			t.Errorf("%s, digest: %v", c.name, err)
		}
		for _, by := range []int64{-1, 1} {
			d = describe(c.blob)
			d.Size += by
			if err := readAll(bytes.NewReader(c.blob), Options{Descriptor: d}); !errors.Is(err, fault.ErrIntegrity) {
				t.Errorf("%s, size off by %d: %v", c.name, by, err)
			}
		}
		d = describe(c.blob)
		d.Size = 0 // not known
		if err := readAll(bytes.NewReader(c.blob), Options{Descriptor: d}); err != nil {
			t.Errorf("%s, size not known: %v", c.name, err)
		}
		d.Digest = digest.SHA512.FromBytes(c.blob)
		if err := readAll(bytes.NewReader(c.blob), Options{Descriptor: d, Seek: true}); err != nil {
			t.Errorf("%s, SHA-512: %v", c.name, err)
		}
		for _, bad := range []digest.Digest{"", "sha256", "sha256:12", "md5:d41d8cd98f00b204e9800998ecf8427e"} {
			d.Digest = bad
			if err := readAll(bytes.NewReader(c.blob), Options{Descriptor: d}); !errors.Is(err, fault.ErrUnsupported) {
				t.Errorf("digest %q: %v", bad, err)
			}
		}
	}
}

// A blob that does not decode, and is as it was published: corrupt.
func TestCorruptAsPublished(t *testing.T) {
	for _, c := range smallCases(t)[1:] {
		for what, b := range map[string][]byte{
			"garbage behind it": append(bytes.Clone(c.blob), "garbage"...),
			"cut":               c.blob[:len(c.blob)-3],
		} {
			for _, o := range []Options{{}, {Descriptor: describe(b)}, {Seek: true}} {
				err := readAll(bytes.NewReader(b), o)
				if !errors.Is(err, fault.ErrCorrupt) {
					t.Errorf("%s, %s: %v", c.name, what, err)
				}
			}
		}
	}
}

// What fails upstream is the error, word for word, and never an end.
func TestSourceFails(t *testing.T) {
	for _, c := range blobCases(t, 800_000) {
		for _, cause := range []error{errors.New("broken"), io.ErrUnexpectedEOF} {
			for _, n := range []int{0, 3, len(c.blob) / 2, len(c.blob)} {
				r := io.MultiReader(bytes.NewReader(c.blob[:n]), iotest.ErrReader(cause))
				err := readAll(r, Options{Descriptor: describe(c.blob), Seek: true})
				if !errors.Is(err, cause) || errors.Is(err, fault.ErrCorrupt) {
					t.Errorf("%s, %v at %d: %v", c.name, cause, n, err)
				}
			}
		}
	}
	if err := readAll(stuck{}, Options{}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("a source that gives nothing: %v", err)
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

// endless repeats a blob for ever.
type endless struct {
	b  []byte
	at int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.b[e.at:])
	e.at = (e.at + n) % len(e.b)
	return n, nil
}

// However a Reader is left, its goroutines end: the bubble of synctest waits
// for all of them, and fails if one of them waits for ever.
func TestNoGoroutineStays(t *testing.T) {
	for _, c := range blobCases(t, 800_000) {
		if len(c.raw) == 0 {
			continue // for ever
		}
		leave := map[string]func(t *testing.T, r *Reader, cancel func()){
			"close at once": func(t *testing.T, r *Reader, cancel func()) { r.Close() },
			"close in the middle": func(t *testing.T, r *Reader, cancel func()) {
				r.Discard(300_000)
				r.Close()
				r.Close()
				if _, err := r.Read(make([]byte, 1)); err == nil || err == io.EOF {
					t.Errorf("Read behind Close: %v", err)
				}
			},
			"cancel": func(t *testing.T, r *Reader, cancel func()) {
				r.Discard(300_000)
				cancel()
				if _, err := io.Copy(io.Discard, r); !errors.Is(err, context.Canceled) {
					t.Errorf("cancelled: %v", err)
				}
			},
			"cancel, and never read again": func(t *testing.T, r *Reader, cancel func()) { cancel() },
		}
		for name, leave := range leave {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					ctx, cancel := context.WithCancel(context.Background())
					defer cancel()
					r := NewReader(ctx, &endless{b: c.blob}, Options{Seek: true})
					leave(t, r, cancel)
				})
			})
		}
		t.Run(c.name+"/to the end", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := NewReader(context.Background(), bytes.NewReader(c.blob), Options{Seek: true})
				if _, err := io.Copy(io.Discard, r); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Close does not wait for a Read of the input that hangs.
func TestCloseWhileInputHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, w := io.Pipe()
		r := NewReader(context.Background(), in, Options{})
		go w.Write([]byte("some"))
		synctest.Wait()
		r.Close()
		in.Close() // as the caller would
	})
}

// bitWriter writes a deflate stream by hand.
type bitWriter struct {
	b    []byte
	acc  uint64
	bits uint
}

func (w *bitWriter) put(v uint64, n uint) {
	w.acc |= v << w.bits
	for w.bits += n; w.bits >= 8; w.bits -= 8 {
		w.b = append(w.b, byte(w.acc))
		w.acc >>= 8
	}
}

// code writes a Huffman code, whose bits come the other way round.
func (w *bitWriter) code(v uint16, n uint) {
	w.put(uint64(bits.Reverse16(v)>>(16-n)), n)
}

// literal writes a literal in the fixed code.
func (w *bitWriter) literal(c byte) {
	if c < 144 {
		w.code(0x30+uint16(c), 8)
	} else {
		w.code(0x190+uint16(c)-144, 9)
	}
}

var gzipHeader = []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}

// giantBlock is a gzip file of one block with n literals.
func giantBlock(n int) []byte {
	w := &bitWriter{b: bytes.Clone(gzipHeader)}
	w.put(1, 1)
	w.put(1, 2)
	w.literal('a')
	w.literal('a')
	// Codes of 8 bits: from now on every byte is like the last one.
	w.b = append(w.b, bytes.Repeat(w.b[len(w.b)-1:], n-2)...)
	w.code(0, 7)
	w.put(0, 7) // to the byte's end
	return append(w.b, trailer(bytes.Repeat([]byte("a"), n))...)
}

// A heapMeter measures the heap at every few MiB of input, and of output.
type heapMeter struct {
	r          io.Reader
	n          int
	mu         sync.Mutex
	base, most uint64
}

func (h *heapMeter) measure() {
	h.mu.Lock()
	defer h.mu.Unlock()
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	if h.base == 0 {
		h.base = m.HeapAlloc
	}
	h.most = max(h.most, m.HeapAlloc-min(h.base, m.HeapAlloc))
}

func (h *heapMeter) Read(p []byte) (int, error) {
	if h.n%(2<<20) == 0 {
		h.measure()
	}
	n, err := h.r.Read(p[:min(len(p), 2<<20-h.n%(2<<20))])
	h.n += n
	return n, err
}

// heapWhile reads r through and returns the most that the heap held meanwhile.
func heapWhile(t *testing.T, r io.Reader) (most uint64, err error) {
	h := &heapMeter{r: r}
	h.measure()
	z := NewReader(context.Background(), h, Options{Seek: true})
	defer z.Close()
	for err == nil {
		_, err = z.Discard(8 << 20)
		h.measure()
	}
	return h.most, err
}

// Memory does not depend on what the input is like.
func TestMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector needs memory of its own, and minutes for this")
	}
	const size = 100 << 20
	var zeros bytes.Buffer
	w, err := zstd.NewWriter(&zeros, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(w, zeroReader{}, size); err != nil {
		t.Fatal(err)
	}
	w.Close()
	empties := bytes.Repeat(gzipped(t, nil), 200_000)
	one := gzipped(t, []byte("x"))
	blocks := append(bytes.Clone(gzipHeader), bytes.Repeat([]byte{0, 0, 0, 0xff, 0xff}, 5_000_000)...)
	blocks = append(append(blocks, 1, 0, 0, 0xff, 0xff), trailer(nil)...)
	emptyFrame := zstded(t, nil)
	if len(emptyFrame) == 0 {
		emptyFrame = []byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0}
	}
	emptyBlocks := append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0x38}, bytes.Repeat([]byte{0, 0, 0}, 8_000_000)...)
	emptyBlocks = append(emptyBlocks, 1, 0, 0)
	someFrame := zstded(t, text(1000, 1))
	skipped := append([]byte("\x5e\x2a\x4d\x18\x00\x00\x80\x01"), make([]byte, 24<<20)...)
	for name, blob := range map[string][]byte{
		"gzip, zeros":                       gzippedZeros(t, size),
		"gzip, one giant block":             giantBlock(24 << 20),
		"gzip, empty members":               empties,
		"gzip, empty members behind a byte": append(bytes.Clone(one), empties...),
		"gzip, empty blocks":                blocks,
		"gzip, empty blocks behind a byte":  append(bytes.Clone(one), blocks...),
		"zstd, zeros":                       zeros.Bytes(),
		"zstd, incompressible":              zstded(t, noise(24<<20)),
		"zstd, empty frames":                bytes.Repeat(emptyFrame, 200_000),
		"zstd, empty blocks":                emptyBlocks,
		"zstd, a large skippable frame":     append(bytes.Clone(someFrame), append(skipped, someFrame...)...),
		"zstd, empty blocks behind a frame": append(someFrame, emptyBlocks...),
	} {
		t.Run(name, func(t *testing.T) {
			most, err := heapWhile(t, bytes.NewReader(blob))
			if err != io.EOF {
				t.Fatal(err)
			}
			t.Logf("%d bytes: %d KiB", len(blob), most>>10)
			// A decoder's 8 MiB window, a span's worth of input, some blocks.
			if most > 18<<20 {
				t.Errorf("%d bytes on the heap", most)
			}
		})
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func noise(n int) []byte {
	b := make([]byte, n)
	x := uint64(88172645463325252)
	for i := 0; i+8 <= n; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(b[i:], x)
	}
	return b
}

func gzippedZeros(t testing.TB, n int64) []byte {
	var buf bytes.Buffer
	w, _ := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	if _, err := io.CopyN(w, zeroReader{}, n); err != nil {
		t.Fatal(err)
	}
	w.Close()
	return buf.Bytes()
}

// trailer is a gzip member's.
func trailer(raw []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(raw))
	return binary.LittleEndian.AppendUint32(b, uint32(len(raw)))
}

// A block's header asks for a dictionary of 1.5 GiB: refused before it is made.
func TestXzDictionary(t *testing.T) {
	b := xzed(t, text(1000, 1))
	at := bytes.Index(b, []byte{xzLZMA2, 1})
	if at < 0 {
		t.Fatal("no filter found")
	}
	for size, want := range map[byte]error{40: fault.ErrUnsupported, 37: fault.ErrUnsupported, 31: fault.ErrUnsupported, 41: fault.ErrCorrupt} {
		b[at+2] = size
		if err := readAll(bytes.NewReader(b), Options{}); !errors.Is(err, want) {
			t.Errorf("size %d: %v", size, err)
		}
	}
	b[at] = 0x04 // a BCJ filter
	if err := readAll(bytes.NewReader(b), Options{}); !errors.Is(err, fault.ErrUnsupported) {
		t.Errorf("another filter: %v", err)
	}
}

// A frame that needs more memory than zstd(1) would give it.
func TestZstdWindow(t *testing.T) {
	// No single segment, no content size; window descriptor 2^(10+19) = 512 MiB.
	b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 19 << 3, 1, 0, 0}
	if err := readAll(bytes.NewReader(b), Options{Seek: true}); !errors.Is(err, fault.ErrUnsupported) {
		t.Error(err)
	}
}
