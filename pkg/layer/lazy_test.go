package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/seek"
	"github.com/layerpipe/layerpipe/pkg/spancache"
	"github.com/layerpipe/layerpipe/pkg/zinfo"
)

// blobAt is a blob in memory that counts, and that can be made to lie or fail.
type blobAt struct {
	b     []byte
	reads atomic.Int64
	bytes atomic.Int64
	hook  func(ctx context.Context, p []byte, off int64) error // after p was read
}

func (b *blobAt) Size() int64 { return int64(len(b.b)) }

func (b *blobAt) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	b.reads.Add(1)
	n, err := bytes.NewReader(b.b).ReadAt(p, off)
	b.bytes.Add(int64(n))
	if b.hook != nil {
		if err := b.hook(ctx, p[:n], off); err != nil {
			return 0, err
		}
	}
	return n, err
}

// seekOf reads a blob through and returns what was collected, as it comes back
// from a section's bytes.
func seekOf(t testing.TB, blob []byte, spanSize int64) *seek.Layer {
	t.Helper()
	key := fmt.Sprint(digest.FromBytes(blob), spanSize)
	b, ok := sections[key]
	if !ok {
		r := NewReader(context.Background(), bytes.NewReader(blob), Options{Seek: true, SpanSize: spanSize})
		defer r.Close()
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Fatal(err)
		}
		l, err := r.Seek()
		if err != nil {
			t.Fatal(err)
		}
		b, err = (&seek.Section{Layers: []seek.Layer{*l}}).MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		sections[key] = b
	}
	s, err := seek.Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return &s.Layers[0]
}

// sections are what seekOf made, so that it is not made again for each test.
var sections = map[string][]byte{}

func open(t testing.TB, blob *blobAt, l *seek.Layer, cache int64, o LazyOptions) *Lazy {
	t.Helper()
	if o.SpillDir == "" {
		o.SpillDir = t.TempDir()
	}
	z, err := Open(blob, l, spancache.New(cache), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { z.Close() })
	return z
}

// readRandomly compares reads at random places with raw, from many goroutines.
func readRandomly(t *testing.T, z ReaderAtContext, raw []byte, readers, reads int) {
	t.Helper()
	if z.Size() != int64(len(raw)) {
		t.Fatalf("size %d, not %d", z.Size(), len(raw))
	}
	var wg sync.WaitGroup
	for g := range readers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 5))
			for range reads {
				off := r.IntN(len(raw) + 100)
				n := r.IntN([]int{100, 5000, 500_000}[r.IntN(3)])
				p := make([]byte, n)
				k, err := z.ReadAtContext(context.Background(), p, int64(off))
				want := raw[min(off, len(raw)):min(off+n, len(raw))]
				if !bytes.Equal(p[:k], want) || (err == io.EOF) != (len(want) < n) || err != nil && err != io.EOF {
					t.Errorf("%d bytes at %d: %d, %v", n, off, k, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestLazy(t *testing.T) {
	for _, c := range blobCases(t, 800_000) {
		for name, o := range map[string]struct {
			cache, spill int64
		}{
			"roomy":   {64 << 20, 0},
			"tight":   {400_000, 0},
			"nothing": {0, 0},
			"spilled": {64 << 20, 90_000},
		} {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				reads := 15
				if o.cache == 0 {
					reads = 5
				}
				blob := &blobAt{b: c.blob}
				z := open(t, blob, seekOf(t, c.blob, 100_000), o.cache, LazyOptions{SpillOver: o.spill})
				if !z.Verified() {
					t.Error("not verified")
				}
				readRandomly(t, z, c.raw, 6, reads)
			})
		}
	}
}

func TestRaw(t *testing.T) {
	raw := text(3<<20+123, 8)
	blob := &blobAt{b: raw}
	z, err := OpenRaw(blob, spancache.New(64<<20), LazyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	if z.Verified() {
		t.Error("verified")
	}
	readRandomly(t, z, raw, 8, 100)
	if got := blob.bytes.Load(); got > int64(len(raw)) {
		t.Errorf("fetched %d bytes of %d", got, len(raw))
	}
}

func TestZinfo(t *testing.T) {
	for _, c := range blobCases(t, 800_000) {
		if c.kind != Gzip {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			zr := zinfo.NewReader(bytes.NewReader(c.blob), zinfo.Options{SpanSize: 100_000})
			if _, err := io.Copy(io.Discard, zr); err != nil {
				t.Fatal(err)
			}
			x, err := zr.Index()
			if err != nil {
				t.Fatal(err)
			}
			x.Size, x.BlobSize = -1, -1 // as from a file
			z, err := OpenZinfo(context.Background(), &blobAt{b: c.blob}, x, spancache.New(64<<20), LazyOptions{SpillDir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			defer z.Close()
			readRandomly(t, z, c.raw, 4, 20)
		})
	}
	t.Run("another blob", func(t *testing.T) {
		x := &zinfo.Index{Points: []zinfo.Point{{In: 10}, {In: 5000, Out: 100_000}}, Size: -1, BlobSize: -1}
		_, err := OpenZinfo(context.Background(), &blobAt{b: make([]byte, 4000)}, x, spancache.New(0), LazyOptions{})
		if !errors.Is(err, fault.ErrIntegrity) {
			t.Error(err)
		}
	})
}

// lazyCases are layers with several spans.
func lazyCases(t testing.TB) []blobCase {
	lazyOnce.Do(func() {
		raw := text(3<<20, 42)
		lazyBlobs = []blobCase{
			{"plain", Plain, raw, raw},
			{"gzip", Gzip, raw, gzipped(t, raw)},
			{"gzip members", Gzip, raw, members(t, raw, 60000)},
			{"zstd frames", Zstd, raw, frames(t, raw, 500_000)},
		}
	})
	return lazyBlobs
}

var (
	lazyOnce  sync.Once
	lazyBlobs []blobCase
)

// One bit is flipped in the middle of the blob: the span that it is in fails,
// however often it is read, and its neighbours do not. When the blob is right
// again, all is well.
func TestFlippedBit(t *testing.T) {
	for _, c := range lazyCases(t) {
		for _, spilled := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/spilled=%v", c.name, spilled), func(t *testing.T) {
				l := seekOf(t, c.blob, 1<<20)
				var o LazyOptions
				if spilled {
					o.SpillOver = 400_000
				}
				blob := &blobAt{b: bytes.Clone(c.blob)}
				z := open(t, blob, l, 64<<20, o)
				at := int64(len(c.blob) / 2)
				blob.b[at] ^= 0x10
				bad := 0
				p := make([]byte, 1000)
				for off := int64(0); off < z.Size(); {
					start, end := z.Span(off)
					in, inEnd, _, _ := z.units.span(z.units.find(off))
					hit := at >= in && at < inEnd
					for range 2 {
						n, err := z.ReadAtContext(context.Background(), p, end-1000)
						switch {
						case hit && !errors.Is(err, fault.ErrIntegrity):
							t.Errorf("the span at %d: %v", start, err)
						case hit && !strings.Contains(err.Error(), string(l.Descriptor.Digest)):
							t.Errorf("the error does not name the layer: %v", err)
						case !hit && (err != nil || !bytes.Equal(p[:n], c.raw[end-1000:end])):
							t.Errorf("the span at %d, which is not concerned: %v", start, err)
						}
					}
					if hit {
						bad++
					}
					off = end
				}
				if bad != 1 {
					t.Fatalf("%d spans concerned", bad)
				}
				if s := z.Stats(); s.Retries != 2 {
					t.Errorf("%d retries for 2 failed reads", s.Retries)
				}
				blob.b[at] ^= 0x10
				if !spilled {
					readRandomly(t, z, c.raw, 2, 10)
				}
				whole := make([]byte, len(c.raw))
				if _, err := z.ReadAtContext(context.Background(), whole, 0); err != nil || !bytes.Equal(whole, c.raw) {
					t.Errorf("healed: %v", err)
				}
			})
		}
	}
}

// A flip that only the first fetch sees is healed by the second one.
func TestRetry(t *testing.T) {
	for _, c := range lazyCases(t) {
		for _, spill := range []int64{0, 400_000} {
			l := seekOf(t, c.blob, 1<<20)
			blob := &blobAt{b: c.blob}
			var seen sync.Map
			blob.hook = func(_ context.Context, p []byte, off int64) error {
				if _, old := seen.LoadOrStore(off, true); !old {
					p[len(p)/2] ^= 1
				}
				return nil
			}
			z := open(t, blob, l, 64<<20, LazyOptions{SpillOver: spill})
			p := make([]byte, 5000)
			for off := int64(0); off < z.Size(); off += 700_000 {
				n, err := z.ReadAtContext(context.Background(), p, off)
				if err != nil && err != io.EOF || !bytes.Equal(p[:n], c.raw[off:][:n]) {
					t.Errorf("%s at %d: %v", c.name, off, err)
				}
			}
			if z.Stats().Retries == 0 {
				t.Errorf("%s: no retry", c.name)
			}
		}
	}
}

// A fetch that fails is an error, once, and is not remembered.
func TestFetchFails(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range append(lazyCases(t), blobCase{"zstd", Zstd, text(6<<20, 43), zstded(t, text(6<<20, 43))}) {
		for _, spill := range []int64{0, 400_000} {
			step := int64(1_700_000)
			if c.name == "zstd" {
				if spill == 0 {
					continue // a single span
				}
				step = 5_500_000 // the start, and what is not fetched with it
			}
			var fail atomic.Bool
			blob := &blobAt{b: c.blob, hook: func(context.Context, []byte, int64) error {
				if fail.Load() {
					return broken
				}
				return nil
			}}
			z := open(t, blob, seekOf(t, c.blob, 1<<20), 64<<20, LazyOptions{SpillOver: spill})
			p := make([]byte, 5000)
			for off := int64(0); off < z.Size(); off += step {
				fail.Store(true)
				if _, err := z.ReadAtContext(context.Background(), p, off); !errors.Is(err, broken) {
					t.Errorf("%s at %d: %v", c.name, off, err)
				}
				fail.Store(false)
				n, err := z.ReadAtContext(context.Background(), p, off)
				if err != nil && err != io.EOF || !bytes.Equal(p[:n], c.raw[off:][:n]) {
					t.Errorf("%s at %d, again: %v", c.name, off, err)
				}
			}
		}
	}
}

// A small read fetches one span's bytes, and spans side by side come with one
// read of the blob. Nothing is fetched twice.
func TestFetchesLittle(t *testing.T) {
	for _, c := range lazyCases(t) {
		blob := &blobAt{b: c.blob}
		z := open(t, blob, seekOf(t, c.blob, 1<<20), 64<<20, LazyOptions{})
		if blob.reads.Load() != 0 {
			t.Errorf("%s: Open reads", c.name)
		}
		p := make([]byte, 1024)
		z.ReadAtContext(context.Background(), p, 2<<20)
		in, inEnd, start, end := z.units.span(z.units.find(2 << 20))
		if blob.reads.Load() != 1 || blob.bytes.Load() != inEnd-in {
			t.Errorf("%s: %d reads, %d bytes for a span of %d", c.name, blob.reads.Load(), blob.bytes.Load(), inEnd-in)
		}
		p = make([]byte, len(c.raw))
		z.ReadAtContext(context.Background(), p, 0)
		want := int64(1)
		if start > 0 {
			want++
		}
		if end < z.Size() {
			want++
		}
		if blob.reads.Load() != want {
			t.Errorf("%s: %d reads for everything, not %d", c.name, blob.reads.Load(), want)
		}
		if over := blob.bytes.Load() - int64(len(c.blob)); over > 4 {
			t.Errorf("%s: %d bytes too many", c.name, over)
		}
		z.ReadAtContext(context.Background(), p, 0)
		if blob.reads.Load() != want {
			t.Errorf("%s: reads what it has", c.name)
		}
	}
}

// Only as much of a spilled span is fetched as is asked for.
func TestSpillIsLazy(t *testing.T) {
	raw := make([]byte, 8<<20)
	for i := range raw {
		raw[i] = byte(rand.Uint32() & 0xf)
	}
	c := zstded(t, raw, zstd.WithEncoderLevel(zstd.SpeedFastest))
	blob := &blobAt{b: c}
	z := open(t, blob, seekOf(t, c, 0), 64<<20, LazyOptions{SpillOver: 1 << 20})
	p := make([]byte, 1000)
	if _, err := z.ReadAtContext(context.Background(), p, 5000); err != nil || !bytes.Equal(p, raw[5000:6000]) {
		t.Fatal(err)
	}
	if got := blob.bytes.Load(); got > 1<<20 {
		t.Errorf("fetched %d bytes of %d", got, len(c))
	}
	readRandomly(t, z, raw, 4, 20)
	if got := blob.bytes.Load(); got != int64(len(c)) {
		t.Errorf("fetched %d bytes of %d", got, len(c))
	}
}

func TestOpenRefuses(t *testing.T) {
	raw := text(1<<20, 3)
	l := seekOf(t, raw, 0)
	if _, err := Open(&blobAt{b: raw[1:]}, l, spancache.New(0), LazyOptions{}); !errors.Is(err, fault.ErrIntegrity) {
		t.Errorf("a blob of another size: %v", err)
	}
	l.Spans[0].Digests = nil
	if _, err := Open(&blobAt{b: raw}, l, spancache.New(0), LazyOptions{}); !errors.Is(err, fault.ErrCorrupt) {
		t.Errorf("no digests: %v", err)
	}
}

// The digests are right and the sizes are lies: an error, and no wrong bytes.
func TestLyingSection(t *testing.T) {
	raw := text(3<<20, 42)
	for _, c := range []blobCase{{"gzip", Gzip, raw, gzipped(t, raw)}, {"zstd", Zstd, raw, frames(t, raw, 500_000)}} {
		for _, by := range []int64{-1000, 1000} {
			for _, spill := range []int64{0, 400_000} {
				l := seekOf(t, c.blob, 1<<20)
				l.Size += by
				z := open(t, &blobAt{b: c.blob}, l, 64<<20, LazyOptions{SpillOver: spill})
				_, err := z.ReadAtContext(context.Background(), make([]byte, 100), l.Size-100)
				if !errors.Is(err, fault.ErrCorrupt) && !(spill > 0 && by < 0) {
					t.Errorf("%s, size off by %d, spill over %d: %v", c.name, by, spill, err)
				}
			}
		}
	}
}

// Who gives up gets an error at once, whatever the blob does.
func TestLazyCancel(t *testing.T) {
	for _, spill := range []int64{0, 400_000} {
		raw := text(3<<20, 42)
		c := zstded(t, raw)
		hang := make(chan struct{})
		blob := &blobAt{b: c, hook: func(ctx context.Context, _ []byte, _ int64) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-hang:
				return nil
			}
		}}
		z := open(t, blob, seekOf(t, c, 0), 64<<20, LazyOptions{SpillOver: spill})
		ctx, cancel := context.WithCancel(context.Background())
		errs := make(chan error)
		go func() {
			_, err := z.ReadAtContext(ctx, make([]byte, 100), 1000)
			errs <- err
		}()
		cancel()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		close(hang)
		p := make([]byte, 100)
		if _, err := z.ReadAtContext(context.Background(), p, 1000); err != nil || !bytes.Equal(p, raw[1000:1100]) {
			t.Errorf("the next one: %v", err)
		}
		z.Close()
		if _, err := z.ReadAtContext(context.Background(), p, 2<<20); spill > 0 && err == nil {
			t.Error("a closed layer reads spilled data")
		}
	}
}

func TestWarm(t *testing.T) {
	raw := text(3<<20, 42)
	blob := &blobAt{b: raw}
	z := open(t, blob, seekOf(t, raw, 0), 64<<20, LazyOptions{})
	if err := z.Warm(context.Background(), 1<<20+5, 1<<20); err != nil {
		t.Fatal(err)
	}
	if blob.reads.Load() != 1 || blob.bytes.Load() != 2<<20 {
		t.Errorf("%d reads, %d bytes", blob.reads.Load(), blob.bytes.Load())
	}
	p := make([]byte, 2<<20)
	if _, err := z.ReadAtContext(context.Background(), p, 1<<20); err != nil || !bytes.Equal(p, raw[1<<20:]) {
		t.Error(err)
	}
	if blob.reads.Load() != 1 {
		t.Error("read again")
	}
}
