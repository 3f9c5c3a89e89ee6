package nbd

import (
	"context"
	"math/bits"
	"sync"
)

// headRoom is left in front of a buffer's data for the longest reply header
// (structured with an offset: 28, extended with an offset: 40), so that header
// and data leave in one piece.
const headRoom = 64

// Buffers come in powers of two, so that a few pools serve all lengths.
const (
	minBufferShift = 12
	maxBufferShift = 25 // MaxRead
)

var bufferPools [maxBufferShift - minBufferShift + 1]sync.Pool

// A buffer is room for one reply.
type buffer struct {
	b     []byte
	class int
}

// bufferClass is the pool whose buffers hold n bytes of data; n <= MaxRead.
func bufferClass(n int) int {
	if n <= 1<<minBufferShift {
		return 0
	}
	return bits.Len(uint(n-1)) - minBufferShift
}

// bufferSize is the data that buffers of a class hold.
func bufferSize(class int) int64 { return 1 << (class + minBufferShift) }

func getBuffer(class int) *buffer {
	if b, ok := bufferPools[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{make([]byte, headRoom+bufferSize(class)), class}
}

func (b *buffer) put() { bufferPools[b.class].Put(b) }

// A budget is a number of bytes that many may take from and must give back.
// Who waits is served in order of arrival, so that large requests are not
// starved by small ones.
type budget struct {
	mu      sync.Mutex
	free    int64
	waiters []*waiter
}

type waiter struct {
	n     int64
	ready chan struct{}
}

// try takes n bytes if they are free and nobody waits.
func (b *budget) try(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiters) > 0 || b.free < n {
		return false
	}
	b.free -= n
	return true
}

// take waits until n bytes are free. n must not be more than the budget.
func (b *budget) take(ctx context.Context, n int64) error {
	b.mu.Lock()
	if len(b.waiters) == 0 && b.free >= n {
		b.free -= n
		b.mu.Unlock()
		return nil
	}
	w := &waiter{n, make(chan struct{})}
	b.waiters = append(b.waiters, w)
	b.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, v := range b.waiters {
		if v == w {
			b.waiters = append(b.waiters[:i], b.waiters[i+1:]...)
			b.wake() // those behind may fit
			return ctx.Err()
		}
	}
	// It became ours at the same moment: give it back.
	b.free += n
	b.wake()
	return ctx.Err()
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	b.free += n
	b.wake()
	b.mu.Unlock()
}

func (b *budget) wake() {
	for len(b.waiters) > 0 && b.waiters[0].n <= b.free {
		b.free -= b.waiters[0].n
		close(b.waiters[0].ready)
		b.waiters = b.waiters[1:]
	}
}
