package layer

import (
	"io"
	"sync"
	"sync/atomic"
)

const (
	// blockSize is what travels between the goroutines at a time: large enough
	// that handing it over costs nothing, small enough that a dozen of them do
	// not matter.
	blockSize = 256 << 10
	// headroom is free space before each block's data. What Peek wants to see
	// in one piece but lies in two is joined by copying the end of the first
	// block in front of the second, so a block is never copied as a whole.
	headroom = 64 << 10
)

// A block is a buffer that several goroutines read at once. The last one to
// release it gives it back to the pool.
type block struct {
	refs atomic.Int32
	skip int64 // bytes before the data that nobody wanted
	n    int
	buf  [headroom + blockSize]byte
}

var blocks = sync.Pool{New: func() any { return new(block) }}

// newBlock returns an empty block with one reference.
func newBlock() *block {
	b := blocks.Get().(*block)
	b.skip, b.n = 0, 0
	b.refs.Store(1)
	return b
}

func (b *block) retain() { b.refs.Add(1) }

func (b *block) release() {
	if b.refs.Add(-1) == 0 {
		blocks.Put(b)
	}
}

// data is what the block holds.
func (b *block) data() []byte { return b.buf[headroom : headroom+b.n] }

// free is where more can be put.
func (b *block) free() []byte { return b.buf[headroom+b.n:] }

// fill reads until the block is full or r gives an error. io.ReadFull would not
// do: its io.ErrUnexpectedEOF for a short last block could as well be r's own.
func (b *block) fill(r io.Reader) error {
	return b.fillUntil(r, func() bool { return false })
}

// fillUntil is fill that asks between two reads whether to stop early.
func (b *block) fillUntil(r io.Reader, stop func() bool) error {
	for idle := 0; len(b.free()) > 0 && !stop(); {
		n, err := r.Read(b.free())
		b.n += n
		if err != nil {
			return err
		}
		if idle++; n > 0 {
			idle = 0
		} else if idle == 100 {
			return io.ErrNoProgress
		}
	}
	return nil
}
