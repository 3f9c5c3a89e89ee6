package layer

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"hash"
	"sync"
	"sync/atomic"

	"github.com/layerpipe/layerpipe/pkg/seek"
)

// A collector makes a seek.Layer while the decoder runs. Where a span ends is
// known only once the decoder has been there, so the hashing of pieces lags
// behind it: the collector holds the input's blocks until the decoder says
// that no span starts in them any more. A decoder says so as it goes, also in
// the midst of a span of any length, hence what is held is bounded by what the
// decoder has read ahead.
//
// All methods do nothing if no seek.Layer is asked for.
type collector struct {
	s    *stream
	kind seek.Kind

	held  []heldBlock
	pos   int64 // in the blob, of the first byte held
	begun bool  // the first span has started
	spans []seek.Span

	onBlock func() // called for every block of input, before the decoder sees it

	jobs chan pieceJob
	done chan struct{}

	size int64 // bytes of output

	tooMany atomic.Pointer[error] // there are more windows than a section may have

	// The hashing goroutine's.
	piece   hash.Hash
	pieceN  int
	last    byte // the last byte hashed
	digests [][][32]byte
	windows []seek.Window
	budget  *seek.WindowBudget
}

type heldBlock struct {
	b    *block
	data []byte
}

// A pieceJob is bytes to be hashed, the start of a span, or the last span's
// window.
type pieceJob struct {
	heldBlock
	span   bool
	shared bool // the span starts with the last byte of the one before
	window *[seek.WindowSize]byte
}

var seekKinds = map[Kind]seek.Kind{Plain: seek.Plain, Gzip: seek.Gzip, Zstd: seek.Zstd}

func newCollector(s *stream, in *input) *collector {
	kind, ok := seekKinds[s.kind]
	if !s.o.Seek || !ok {
		return nil
	}
	c := &collector{
		s:     s,
		kind:  kind,
		jobs:  make(chan pieceJob, 2*queueLen),
		done:  make(chan struct{}),
		piece: sha256.New(),

		budget: cmp.Or(s.o.Windows, new(seek.WindowBudget)),
	}
	in.lend = c.hold
	if in.cur != nil { // what was sniffed at
		c.hold(in.cur)
	}
	s.stages.Go(c.hash)
	return c
}

// hold keeps a block of the input until it is decided about.
func (c *collector) hold(b *block) {
	if c.onBlock != nil {
		c.onBlock()
	}
	b.retain()
	c.held = append(c.held, heldBlock{b, b.data()})
}

// start begins the first span of a layer without checkpoints at offset at.
func (c *collector) start(at int64) error {
	return c.span(seek.Span{In: at})
}

// span begins a span. Spans come in order.
func (c *collector) span(sp seek.Span) error {
	if c == nil {
		return nil
	}
	if err := c.tooMany.Load(); err != nil {
		return *err
	}
	from := sp.In
	if !c.begun {
		from = sp.Start()
	}
	if from < c.pos {
		return fmt.Errorf("span at %d was found too late, at %d: a bug", sp.In, c.pos)
	}
	c.handOver(from)
	c.begun = true
	c.spans = append(c.spans, sp)
	c.jobs <- pieceJob{span: true, shared: sp.Bits > 0 && len(c.spans) > 1}
	return nil
}

// windows are reused: there is one for each span.
var windows = sync.Pool{New: func() any { return new([seek.WindowSize]byte) }}

// window sets the window of the last span; w came from windows, and goes there
// when it is packed.
func (c *collector) window(w *[seek.WindowSize]byte) { c.jobs <- pieceJob{window: w} }

// minHandOver keeps the jobs from becoming many, in bytes.
const minHandOver = 32 << 10

// decoded says that the next span will not start before offset in, and that
// out bytes have been decoded.
func (c *collector) decoded(in, out int64) {
	if c == nil {
		return
	}
	c.size = out
	// Not for every few bytes; but nothing is worth more than a block.
	if in-c.pos >= minHandOver {
		c.handOver(in)
	}
}

// handOver gives the bytes before offset to to the hasher. Those before the
// first span, such as a gzip header, are not needed and not hashed.
func (c *collector) handOver(to int64) {
	for len(c.held) > 0 && c.pos < to {
		h := c.held[0]
		n := min(to-c.pos, int64(len(h.data)))
		part := h.data[:n]
		whole := n == int64(len(h.data))
		if whole {
			c.held[0] = heldBlock{}
			c.held = c.held[1:]
		} else {
			c.held[0].data = h.data[n:]
		}
		c.pos += n
		if !c.begun {
			if whole {
				h.b.release()
			}
			continue
		}
		if !whole {
			h.b.retain()
		}
		c.jobs <- pieceJob{heldBlock: heldBlock{h.b, part}}
	}
}

// finish ends the last span and waits for the hasher. It must be called, also
// after an error, and returns nil then.
func (c *collector) finish(err error) *seek.Layer {
	if c == nil {
		return nil
	}
	if err == nil {
		c.handOver(1<<63 - 1)
	}
	for _, h := range c.held {
		h.b.release()
	}
	close(c.jobs)
	<-c.done
	if err != nil {
		return nil
	}
	if c.kind == seek.Plain && c.size == 0 {
		c.spans = nil
	}
	for i := range c.spans {
		c.spans[i].Digests, c.spans[i].Window = c.digests[i], c.windows[i]
	}
	return &seek.Layer{Kind: c.kind, Size: c.size, Spans: c.spans}
}

// hash is the goroutine that computes the digests of pieces, and packs windows.
// It depends on nobody, so that sending to jobs never waits for long.
func (c *collector) hash() {
	defer close(c.done)
	for j := range c.jobs {
		switch {
		case j.span:
			c.endPiece()
			c.digests = append(c.digests, nil)
			c.windows = append(c.windows, seek.Window{})
			if j.shared {
				c.write([]byte{c.last})
			}
		case j.window != nil:
			w := seek.PackWindow(j.window[:])
			c.windows[len(c.windows)-1] = w
			windows.Put(j.window)
			if err := c.budget.Spend(w); err != nil {
				c.tooMany.CompareAndSwap(nil, &err)
			}
		default:
			c.write(j.data)
			j.b.release()
		}
	}
	c.endPiece()
}

func (c *collector) write(p []byte) {
	for len(p) > 0 {
		n := min(len(p), seek.PieceSize-c.pieceN)
		c.piece.Write(p[:n])
		c.last = p[n-1]
		p = p[n:]
		if c.pieceN += n; c.pieceN == seek.PieceSize {
			c.endPiece()
		}
	}
}

func (c *collector) endPiece() {
	if c.pieceN == 0 {
		return
	}
	i := len(c.digests) - 1
	c.digests[i] = append(c.digests[i], [32]byte(c.piece.Sum(nil)))
	c.piece.Reset()
	c.pieceN = 0
}
