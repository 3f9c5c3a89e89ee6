package layer

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/layerpipe/layerpipe/pkg/seek"
	"github.com/layerpipe/layerpipe/pkg/spancache"
)

// long is a layer that is long enough to read ahead in.
var long = sync.OnceValue(func() []byte { return bytes.Repeat(text(1<<20, 9)[:1<<20-7], 40) })

// slowBlob takes a little time for each read, so that reading ahead has some.
func slowBlob(raw []byte) *blobAt {
	return &blobAt{b: raw, hook: func(context.Context, []byte, int64) error {
		time.Sleep(time.Millisecond)
		return nil
	}}
}

// walk reads [from, to) in steps.
func walk(t *testing.T, z *Lazy, raw []byte, from, to, step int64) {
	p := make([]byte, step)
	for off := from; off < to; off += step {
		q := p[:min(step, to-off)]
		if z.ReadReady(q, off) {
			// as the server does
		} else if _, err := z.ReadAtContext(context.Background(), q, off); err != nil {
			t.Error(err)
			return
		}
		if !bytes.Equal(q, raw[off:][:len(q)]) {
			t.Errorf("wrong bytes at %d", off)
			return
		}
	}
}

// TestReadAhead: who reads on is read ahead for, nothing is fetched twice, and
// neighbours come together.
func TestReadAhead(t *testing.T) {
	raw := long()
	size := int64(len(raw))
	l := seekOf(t, raw, 0)
	for name, c := range map[string]struct {
		cache int64
		walk  func(z *Lazy)
	}{
		"one": {256 << 20, func(z *Lazy) { walk(t, z, raw, 0, size, 100_000) }},
		"with gaps": {256 << 20, func(z *Lazy) {
			for off := int64(0); off < size-500_000; off += 500_000 {
				walk(t, z, raw, off, off+450_000, 90_000)
			}
		}},
		"two at once, and one that jumps": {256 << 20, func(z *Lazy) {
			var wg sync.WaitGroup
			wg.Go(func() { walk(t, z, raw, 0, size/2, 64<<10) })
			wg.Go(func() { walk(t, z, raw, size/2, size, 64<<10) })
			wg.Go(func() {
				r := rand.New(rand.NewPCG(1, 1))
				for range 50 {
					off := r.Int64N(size - 5000)
					walk(t, z, raw, off, off+5000, 5000)
				}
			})
			wg.Wait()
		}},
		"overtaking": {256 << 20, func(z *Lazy) {
			for off := int64(0); off+400_000 <= size; off += 400_000 {
				walk(t, z, raw, off+200_000, off+400_000, 100_000)
				walk(t, z, raw, off, off+200_000, 100_000)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			blob := slowBlob(raw)
			z := open(t, blob, l, c.cache, LazyOptions{})
			c.walk(z)
			z.Close()
			s := z.Stats()
			if s.AheadFetches == 0 || s.AheadFetched < size/4 {
				t.Errorf("read ahead: %d fetches, %d bytes of %d", s.AheadFetches, s.AheadFetched, size)
			}
			if blob.bytes.Load() > size {
				t.Errorf("%d bytes of %d", blob.bytes.Load(), size)
			}
			if s.Fetches >= size/seek.PieceSize {
				t.Errorf("%d fetches for %d pieces", s.Fetches, size/seek.PieceSize)
			}
		})
	}
}

// TestNoReadAhead: what is no long sequence gets what it asked for, no more.
func TestNoReadAhead(t *testing.T) {
	raw := long()
	size := int64(len(raw))
	for name, f := range map[string]func(z *Lazy){
		"random": func(z *Lazy) {
			r := rand.New(rand.NewPCG(2, 1))
			for range 2000 {
				off := r.Int64N(size - 4096)
				walk(t, z, raw, off, off+4096, 4096)
			}
		},
		"files here and there": func(z *Lazy) {
			for off := int64(0); off < size-4<<20; off += 7 << 20 {
				walk(t, z, raw, off, off+3<<20, 50_000)
			}
		},
		"the same again": func(z *Lazy) {
			for range 20 {
				walk(t, z, raw, 1<<20, 2<<20, 100_000)
			}
		},
		"backwards": func(z *Lazy) {
			for off := size - 1000_000; off >= 0; off -= 100_000 {
				walk(t, z, raw, off, off+100_000, 100_000)
			}
		},
	} {
		z := open(t, slowBlob(raw), seekOf(t, raw, 0), 256<<20, LazyOptions{})
		f(z)
		z.Close()
		if s := z.Stats(); s.AheadFetches != 0 {
			t.Errorf("%s: %d fetches ahead, %d bytes", name, s.AheadFetches, s.AheadFetched)
		}
	}
	z := open(t, slowBlob(raw), seekOf(t, raw, 0), 256<<20, LazyOptions{ReadAhead: -1})
	walk(t, z, raw, 0, size, 100_000)
	if s := z.Stats(); s.AheadFetches != 0 {
		t.Errorf("switched off: %d fetches ahead", s.AheadFetches)
	}
}

// TestReadAheadShrinks: where memory is so short that what was read ahead is
// dropped before its time, the window gets smaller.
func TestReadAheadShrinks(t *testing.T) {
	raw := long()
	z := open(t, slowBlob(raw), seekOf(t, raw, 0), 64<<20, LazyOptions{ReadAhead: 4 << 20})
	at := int64(minRun)
	walk(t, z, raw, 0, at, 64<<10)
	limit := func() int64 {
		z.sequences.mu.Lock()
		defer z.sequences.mu.Unlock()
		if len(z.sequences.list) != 1 {
			t.Fatalf("%d sequences", len(z.sequences.list))
		}
		return z.sequences.list[0].limit
	}
	if limit() != 4<<20 {
		t.Errorf("a window of %d at first", limit())
	}
	for want := int64(2 << 20); want >= 256<<10; want /= 2 {
		for flying := 1; flying > 0; time.Sleep(time.Millisecond) {
			z.sequences.mu.Lock()
			flying = z.sequences.flying
			z.sequences.mu.Unlock()
		}
		for i := range z.units.count() {
			z.cache.Remove(z.spanKey(i))
		}
		walk(t, z, raw, at, at+1000, 1000)
		at += 1000
		if limit() != want {
			t.Fatalf("a window of %d, want %d", limit(), want)
		}
	}
}

// A tapBlob lets its bytes come only as they are let in.
type tapBlob struct {
	raw     []byte
	tap     chan struct{} // for 64 KiB each
	open    atomic.Bool   // no tap any more
	fetched atomic.Int64
	cut     atomic.Int64
}

func (b *tapBlob) Size() int64 { return int64(len(b.raw)) }

func (b *tapBlob) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	return b.ReadAtProgress(ctx, p, off, func(int) {})
}

func (b *tapBlob) ReadAtProgress(ctx context.Context, p []byte, off int64, arrived func(int)) (int, error) {
	n := 0
	for n < len(p) {
		if !b.open.Load() {
			select {
			case <-b.tap:
			case <-ctx.Done():
				b.cut.Add(1)
				return n, ctx.Err()
			}
		}
		k := copy(p[n:min(n+64<<10, len(p))], b.raw[off+int64(n):])
		n += k
		b.fetched.Add(int64(k))
		arrived(n)
	}
	return n, nil
}

// TestGiveWay: a read that is waited for cuts off what is fetched ahead, which
// goes on where it was: no byte is fetched twice.
func TestGiveWay(t *testing.T) {
	raw := long()[:8<<20]
	blob := &tapBlob{raw: raw, tap: make(chan struct{})}
	z, err := Open(blob, seekOf(t, raw, 0), spancache.New(64<<20), LazyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	ended := make(chan error, 1)
	go func() { ended <- z.Ahead(context.Background(), 0, 4<<20, true) }()
	for range 10 {
		blob.tap <- struct{}{}
	}
	p := make([]byte, 1000)
	read := make(chan error, 1)
	go func() {
		_, err := z.ReadAtContext(context.Background(), p, 6<<20)
		read <- err
	}()
	for blob.cut.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	for range 16 { // nobody else takes of it
		blob.tap <- struct{}{}
	}
	if err := <-read; err != nil || !bytes.Equal(p, raw[6<<20:][:1000]) {
		t.Errorf("%v, or wrong bytes", err)
	}
	// One who waits for what is fetched ahead does not wait for all of it.
	go func() {
		_, err := z.ReadAtContext(context.Background(), p, 100)
		read <- err
	}()
	for range 6 {
		blob.tap <- struct{}{}
	}
	if err := <-read; err != nil || !bytes.Equal(p, raw[100:1100]) {
		t.Errorf("%v, or wrong bytes", err)
	}
	blob.open.Store(true)
	close(blob.tap)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := blob.fetched.Load(); n != 5<<20 {
		t.Errorf("fetched %d bytes for %d", n, 5<<20)
	}
	if !bytes.Equal(z.all(t), raw) {
		t.Error("wrong bytes")
	}
}
