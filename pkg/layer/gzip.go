package layer

import (
	"github.com/layerpipe/layerpipe/pkg/inflate"
	"github.com/layerpipe/layerpipe/pkg/seek"
)

// A gunzipper decodes a gzip layer and takes checkpoints as it goes, by the
// rule of pkg/zinfo. It does so itself, with the decoder's hook, because the
// collector must hear of a span's start before more input is read, and because
// each window can be packed as soon as it is known what of it is used.
type gunzipper struct {
	z *inflate.Reader
	c *collector

	spanSize int64
	first    inflate.Boundary          // the first checkpoint, until output has begun
	began    bool                      // output has begun
	lastOut  int64                     // of the last checkpoint
	window   *[inflate.WindowSize]byte // of the last checkpoint, if it has one
	trace    inflate.Trace
	err      error // of the hook
}

func (s *stream) gunzip(in *input, c *collector) error {
	z := inflate.NewReader(in)
	if c == nil {
		return s.pump(z)
	}
	// A trace of what a window is used for takes up to WindowSize bytes, and
	// there is one at a time.
	g := &gunzipper{z: z, c: c, spanSize: max(s.o.SpanSize, inflate.WindowSize)}
	z.OnBoundary(g.boundary)
	if err := s.pump(g); err != nil {
		return err
	}
	if err := g.begin(); err != nil {
		return err
	}
	g.endWindow()
	c.decoded(z.InputOffset(), z.OutputOffset())
	return nil
}

// step is how much is decoded at a time: little enough that it soon shows when
// the Reader's caller does not want what comes, and that the collector hears
// often of what need not be held any more.
const step = 64 << 10

// Read implements io.Reader.
func (g *gunzipper) Read(p []byte) (int, error) {
	n, err := g.z.Read(p[:min(len(p), step)])
	return n, g.progress(int64(n), err)
}

// Discard implements discarder.
func (g *gunzipper) Discard(n int64) (done int64, err error) {
	for done < n && err == nil {
		var k int64
		k, err = g.z.Discard(min(n-done, step))
		err = g.progress(k, err)
		done += k
	}
	return done, err
}

// progress tells the collector of n more bytes, and returns what is wrong, if
// not with the decoder then with the hook.
func (g *gunzipper) progress(n int64, err error) error {
	if n > 0 && g.err == nil {
		if g.err = g.begin(); g.err == nil {
			g.c.decoded(g.z.InputOffset(), g.z.OutputOffset())
		}
	}
	if g.err != nil {
		return g.err
	}
	return err
}

// boundary is the decoder's hook.
func (g *gunzipper) boundary(b inflate.Boundary) {
	if g.err != nil {
		return
	}
	if b.Out == 0 {
		// Empty members or blocks in front of everything: the last one's end
		// is the one checkpoint for offset 0, and what precedes it is not
		// needed at all.
		g.first = b
		first := g.point(b)
		g.c.decoded(first.Start(), 0)
		return
	}
	if g.err = g.begin(); g.err != nil {
		return
	}
	if b.Out-g.lastOut <= g.spanSize {
		// However many blocks without output there are, they are not held.
		g.c.decoded(b.In, b.Out)
		return
	}
	g.endWindow()
	g.lastOut = b.Out
	if g.err = g.c.span(g.point(b)); g.err != nil || b.Member {
		return
	}
	g.window = windows.Get().(*[seek.WindowSize]byte)
	g.z.Window(g.window[:])
	g.z.StartTrace(&g.trace)
}

func (g *gunzipper) point(b inflate.Boundary) seek.Span {
	return seek.Span{In: b.In, Out: b.Out, Bits: b.Bits}
}

// begin adds the first checkpoint.
func (g *gunzipper) begin() error {
	if g.began {
		return nil
	}
	g.began = true
	return g.c.span(g.point(g.first))
}

// endWindow finishes the last checkpoint's window: by the time there is
// another, or the end, it is known what was used of it.
func (g *gunzipper) endWindow() {
	if g.window != nil && g.trace.Apply(g.window[:]) {
		g.c.window(g.window)
	}
	g.window = nil
}
