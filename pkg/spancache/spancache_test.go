package spancache

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func key(n int64) Key { return Key{Span: n} }

// value is what key n is filled with, 1000 bytes.
func value(n int64) []byte {
	return bytes.Repeat(binary.LittleEndian.AppendUint64(nil, uint64(n)), 125)
}

func fillWith(n int64) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) { return value(n), nil }
}

func never(t *testing.T) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) {
		t.Error("filled what should be there")
		return nil, nil
	}
}

func get(t *testing.T, c *Cache, n int64, fill func(context.Context) ([]byte, error)) {
	t.Helper()
	b, err := c.Get(context.Background(), key(n), fill)
	if err != nil || !bytes.Equal(b, value(n)) {
		t.Fatalf("key %d: %d bytes, %v", n, len(b), err)
	}
}

func TestEvictsLeastRecent(t *testing.T) {
	c := New(3 * 1400)
	for n := range int64(3) {
		get(t, c, n, fillWith(n))
	}
	get(t, c, 0, never(t))
	get(t, c, 3, fillWith(3)) // 1 has to go
	for _, n := range []int64{0, 2, 3} {
		get(t, c, n, never(t))
	}
	if c.Contains(key(1)) {
		t.Error("key 1 is still there")
	}
	s := c.Stats()
	want := Stats{Hits: 4, Misses: 4, Evicted: 1, Entries: 3, Bytes: s.Bytes, Filled: 4000}
	if s != want || s.Bytes > c.Max() || s.Bytes < 3000 {
		t.Errorf("got %+v, want %+v", s, want)
	}
}

// What is larger than the bound is served and not kept, and drives nothing out.
func TestTooLarge(t *testing.T) {
	c := New(2000)
	get(t, c, 1, fillWith(1))
	b, err := c.Get(context.Background(), key(2), func(context.Context) ([]byte, error) { return make([]byte, 5000), nil })
	if err != nil || len(b) != 5000 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if c.Contains(key(2)) || !c.Contains(key(1)) {
		t.Error("the large buffer was kept")
	}
	c = New(0)
	get(t, c, 1, fillWith(1))
	get(t, c, 1, fillWith(1))
	if s := c.Stats(); s.Bytes != 0 || s.Misses != 2 {
		t.Errorf("%+v", s)
	}
}

func TestErrorsAreNotKept(t *testing.T) {
	c := New(1 << 20)
	bad := errors.New("bad")
	_, err := c.Get(context.Background(), key(1), func(context.Context) ([]byte, error) { return nil, bad })
	if err != bad {
		t.Fatal(err)
	}
	get(t, c, 1, fillWith(1))
	if s := c.Stats(); s.Failed != 1 {
		t.Errorf("%+v", s)
	}
}

// Many ask at once: one fill. All but one give up: the fill goes on.
func TestSingleFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(1 << 20)
		var fills atomic.Int32
		release := make(chan struct{})
		fill := func(ctx context.Context) ([]byte, error) {
			fills.Add(1)
			select {
			case <-release:
				return value(1), nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		first, giveUp := context.WithCancel(context.Background())
		var gone, served atomic.Int32
		for i := range 10 {
			ctx := first
			if i == 9 {
				ctx = context.Background()
			}
			go func() {
				b, err := c.Get(ctx, key(1), fill)
				switch {
				case errors.Is(err, context.Canceled):
					gone.Add(1)
				case err == nil && bytes.Equal(b, value(1)):
					served.Add(1)
				}
			}()
			synctest.Wait() // the first to ask is one that gives up
		}
		giveUp()
		synctest.Wait()
		if gone.Load() != 9 {
			t.Errorf("%d gave up", gone.Load())
		}
		close(release)
		synctest.Wait()
		if fills.Load() != 1 || served.Load() != 1 {
			t.Errorf("%d fills, %d served", fills.Load(), served.Load())
		}
	})
}

// Nobody waits any more: the fill is cancelled, and who comes then is not
// given its error, not even while it has not ended.
func TestAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(1 << 20)
		ctx, giveUp := context.WithCancel(context.Background())
		release := make(chan struct{})
		go c.Get(ctx, key(1), func(ctx context.Context) ([]byte, error) {
			<-ctx.Done()
			<-release // slow to notice
			return nil, ctx.Err()
		})
		synctest.Wait()
		giveUp()
		synctest.Wait()
		get(t, c, 1, fillWith(1))
		close(release)
		synctest.Wait()
		get(t, c, 1, never(t))
	})
}

func TestCancelledBefore(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := New(0).Get(ctx, key(1), never(t)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// One fill for what is missing, and each key has an outcome of its own.
func TestGetAll(t *testing.T) {
	c := New(1 << 20)
	get(t, c, 2, fillWith(2))
	bad := errors.New("bad")
	keys := []Key{key(0), key(1), key(2), key(3), key(4)}
	_, err := c.GetAll(context.Background(), keys, func(_ context.Context, missing []int, _ <-chan struct{}, put func(int, []byte, error)) {
		if len(missing) != 4 {
			t.Errorf("missing %v", missing)
		}
		for _, i := range missing {
			switch i {
			case 3:
				put(i, nil, bad)
			case 4: // forgotten
			default:
				put(i, value(int64(i)), nil)
			}
		}
	})
	if err != bad {
		t.Fatal(err)
	}
	get(t, c, 0, never(t))
	get(t, c, 1, never(t))
	get(t, c, 3, fillWith(3))
	if _, err := c.GetAll(context.Background(), keys, func(context.Context, []int, <-chan struct{}, func(int, []byte, error)) {}); err != errNotFilled {
		t.Errorf("a key that was forgotten: %v", err)
	}
}

// Under -race: random keys, some callers impatient, a cache that is too small.
func TestConcurrent(t *testing.T) {
	c := New(20 * 1300)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 0))
			for range 2000 {
				ctx, cancel := context.WithCancel(context.Background())
				first := r.Int64N(60)
				keys := make([]Key, 1+r.IntN(3))
				for i := range keys {
					keys[i] = key(first + int64(i))
				}
				if r.IntN(4) == 0 {
					go cancel()
				}
				bufs, err := c.GetAll(ctx, keys, func(ctx context.Context, missing []int, _ <-chan struct{}, put func(int, []byte, error)) {
					for _, i := range missing {
						put(i, value(keys[i].Span), ctx.Err())
					}
				})
				cancel()
				if err != nil {
					if !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
					continue
				}
				for i, b := range bufs {
					if !bytes.Equal(b, value(keys[i].Span)) {
						t.Errorf("key %d: wrong bytes", keys[i].Span)
					}
				}
			}
		})
	}
	wg.Wait()
	if s := c.Stats(); s.Bytes > c.Max() {
		t.Errorf("%+v", s)
	}
	if len(c.flights) != 0 {
		t.Errorf("%d fills are still under way", len(c.flights))
	}
}

// TestPrefetch: what is being made ahead becomes urgent when somebody waits for
// it, and is not made twice; what is there already is not made at all.
func TestPrefetch(t *testing.T) {
	c := New(1 << 20)
	ctx := context.Background()
	if _, err := c.Get(ctx, key(0), func(context.Context) ([]byte, error) { return []byte{0}, nil }); err != nil {
		t.Fatal(err)
	}
	keys := []Key{key(0), key(1), key(2)}
	filling := make(chan struct{})
	ended := make(chan error)
	go func() {
		ended <- c.Prefetch(ctx, keys, func(_ context.Context, missing []int, urgent <-chan struct{}, put func(int, []byte, error)) {
			if len(missing) != 2 || missing[0] != 1 {
				t.Errorf("missing %v", missing)
			}
			select {
			case <-urgent:
				t.Error("urgent at once")
			default:
			}
			close(filling)
			<-urgent
			put(1, []byte{1}, nil)
			put(2, []byte{2}, nil)
		})
	}()
	<-filling
	// Another one ahead makes nothing urgent, and has nothing to do.
	if err := c.Prefetch(ctx, keys, func(context.Context, []int, <-chan struct{}, func(int, []byte, error)) {
		t.Error("made twice")
	}); err != nil {
		t.Error(err)
	}
	bufs, err := c.GetAll(ctx, keys[1:], func(context.Context, []int, <-chan struct{}, func(int, []byte, error)) {
		t.Error("made twice")
	})
	if err != nil || bufs[0][0] != 1 || bufs[1][0] != 2 {
		t.Error(bufs, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	// For GetAll it is urgent from the start.
	c.GetAll(ctx, []Key{key(9)}, func(_ context.Context, _ []int, urgent <-chan struct{}, put func(int, []byte, error)) {
		<-urgent
		put(0, nil, nil)
	})
	// An error is told, and not kept.
	bad := errors.New("bad")
	if err := c.Prefetch(ctx, []Key{key(5)}, func(_ context.Context, _ []int, _ <-chan struct{}, put func(int, []byte, error)) {
		put(0, nil, bad)
	}); err != bad || c.Contains(key(5)) {
		t.Error(err)
	}
}

// TestPrefetchGivenUp: when who wanted it goes, and nobody else has come, the
// fill is cancelled; if somebody has, it is not.
func TestPrefetchGivenUp(t *testing.T) {
	for _, joined := range []bool{false, true} {
		c := New(1 << 20)
		ctx, cancel := context.WithCancel(context.Background())
		started, finish := make(chan struct{}), make(chan struct{})
		go c.Prefetch(ctx, []Key{key(1)}, func(ctx context.Context, _ []int, _ <-chan struct{}, put func(int, []byte, error)) {
			close(started)
			select {
			case <-ctx.Done():
				put(0, nil, ctx.Err())
			case <-finish:
				put(0, []byte{1}, nil)
			}
		})
		<-started
		got := make(chan error, 1)
		if joined {
			go func() {
				_, err := c.Get(context.Background(), key(1), never(t))
				got <- err
			}()
			for c.Stats().Shared == 0 {
				runtime.Gosched()
			}
		}
		cancel()
		if joined {
			close(finish)
			if err := <-got; err != nil {
				t.Error(err)
			}
			continue
		}
		for c.Contains(key(1)) {
			runtime.Gosched()
		}
	}
}

func TestRemove(t *testing.T) {
	c := New(1 << 20)
	c.Get(context.Background(), key(1), func(context.Context) ([]byte, error) { return []byte{1}, nil })
	if b, ok := c.Peek(key(1)); !ok || b[0] != 1 {
		t.Error("not there")
	}
	c.Remove(key(1))
	c.Remove(key(2))
	if _, ok := c.Peek(key(1)); ok || c.Stats().Bytes != 0 {
		t.Error("still there")
	}
}
