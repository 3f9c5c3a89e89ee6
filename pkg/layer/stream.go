package layer

import (
	"context"
	"crypto/sha256"
	_ "crypto/sha512" // for descriptors with such digests
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/seek"
)

// queueLen is how many blocks may wait between two goroutines.
const queueLen = 4

// A stream is the machinery of a Reader:
//
//	             +-> hash (whole blob)
//	input -> read +
//	             +-> decode -> out -> the Reader's caller
//	                   |
//	                   +-> hash (pieces of spans, if asked for)
//
// Each stage is a goroutine, each arrow a channel of blocks. All of them end
// when ctx does.
type stream struct {
	o      Options
	ctx    context.Context
	cancel context.CancelFunc
	stages sync.WaitGroup // those that cannot hang in the input's Read

	in     chan *block // read -> decode
	hashed chan *block // read -> hash
	inErr  error       // why read stopped; nil at the end. Set before in is closed.

	sum    hash.Hash
	sumEnd chan struct{} // closed when sum is complete

	out chan *block
	// unwanted is up to where in the layer the Reader's caller has discarded
	// everything: what is not decoded yet of that needs no block.
	unwanted atomic.Int64
	err      error // why decode stopped; io.EOF if all is well. Set before out is closed.

	sniffed chan struct{}
	kind    Kind

	// Set before err.
	digest digest.Digest
	size   int64
	seek   *seek.Layer
}

func newStream(ctx context.Context, r io.Reader, o Options) *stream {
	if o.SpanSize <= 0 {
		o.SpanSize = DefaultSpanSize
	}
	s := &stream{
		o:       o,
		in:      make(chan *block, queueLen),
		hashed:  make(chan *block, queueLen),
		sum:     sha256.New(),
		sumEnd:  make(chan struct{}),
		out:     make(chan *block, queueLen),
		sniffed: make(chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancel(ctx)
	if d := o.Descriptor; d != nil {
		if err := d.Digest.Validate(); err != nil {
			s.err = s.wrap(fmt.Errorf("digest %q: %v: %w", d.Digest, err, fault.ErrUnsupported))
			close(s.sniffed)
			close(s.out)
			s.cancel()
			return s
		}
		s.sum = d.Digest.Algorithm().Hash()
	}
	go s.read(r)
	s.stages.Go(s.hash)
	s.stages.Go(s.decode)
	return s
}

func (s *stream) stop() {
	s.cancel()
	s.stages.Wait()
}

// wrap names the layer in an error, where it has a name.
func (s *stream) wrap(err error) error {
	if s.o.Descriptor == nil {
		return err
	}
	return fmt.Errorf("layer %s: %w", s.o.Descriptor.Digest, err)
}

// read cuts the input into blocks and hands each to the hasher and the
// decoder.
func (s *stream) read(r io.Reader) {
	defer close(s.in)
	defer close(s.hashed)
	var total int64
	for {
		b := newBlock()
		err := b.fill(r)
		total += int64(b.n)
		if d := s.o.Descriptor; d != nil && d.Size > 0 && total > d.Size {
			s.inErr = fmt.Errorf("more than the %d bytes that it should have: %w", d.Size, fault.ErrIntegrity)
			return
		}
		if b.n > 0 {
			b.retain()
			if !s.send(s.hashed, b) || !s.send(s.in, b) {
				s.inErr = context.Cause(s.ctx)
				return
			}
		}
		switch err {
		case nil:
		case io.EOF:
			s.size = total
			return
		default:
			s.inErr = err
			return
		}
	}
}

// send reports false if ctx ended first.
func (s *stream) send(c chan<- *block, b *block) bool {
	select {
	case c <- b:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// receive reports false if ctx ended first, or c is closed.
func (s *stream) receive(c <-chan *block) (*block, bool) {
	if s.ctx.Err() != nil {
		return nil, false // rather than now and then, if c has something
	}
	select {
	case b, ok := <-c:
		return b, ok
	case <-s.ctx.Done():
		return nil, false
	}
}

func (s *stream) hash() {
	defer close(s.sumEnd)
	for {
		b, ok := s.receive(s.hashed)
		if !ok {
			return
		}
		s.sum.Write(b.data())
		b.release()
	}
}

// decode is the stage that turns blob bytes into layer bytes, and that judges
// the whole in the end.
func (s *stream) decode() {
	defer s.cancel()
	defer close(s.out)
	in := &input{s: s}
	err := s.decompress(in)
	err = s.judge(in, err)
	if err == nil {
		err = io.EOF
	} else {
		err = s.wrap(err)
	}
	s.err = err
}

func (s *stream) decompress(in *input) error {
	first, err := in.peek()
	s.kind = Sniff(first)
	close(s.sniffed)
	if err != nil && err != io.EOF {
		return err
	}
	c := newCollector(s, in)
	switch s.kind {
	case Gzip:
		err = s.gunzip(in, c)
	case Zstd:
		err = s.unzstd(in, c)
	case Xz:
		err = s.unxz(in)
	default:
		err = s.pass(in, c)
	}
	l := c.finish(err)
	if err != nil {
		return err
	}
	// A decoder that stops early would leave bytes that nobody looked at.
	if _, err := in.peek(); err != io.EOF {
		if err == nil {
			err = fmt.Errorf("offset %d: garbage after the end of the %v data: %w", in.off, s.kind, fault.ErrCorrupt)
		}
		return err
	}
	s.seek = l
	return nil
}

// judge decides what the outcome is, given the decoder's error.
func (s *stream) judge(in *input, err error) error {
	if in.failed() {
		// Whatever the decoder made of it, this is the cause.
		return in.err
	}
	d := s.o.Descriptor
	if err != nil && d == nil {
		return err
	}
	// A blob that does not decode either came as it was published or was
	// damaged on its way. The digest tells: so read on, to the size at most.
	if err := in.drain(); err != nil {
		return err
	}
	<-s.sumEnd
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	if d == nil {
		s.digest = digest.NewDigest(digest.SHA256, s.sum)
	} else {
		s.digest = digest.NewDigest(d.Digest.Algorithm(), s.sum)
		if d.Size > 0 && s.size != d.Size {
			return fmt.Errorf("got %d bytes, not %d: %w", s.size, d.Size, fault.ErrIntegrity)
		}
		if s.digest != d.Digest {
			return fmt.Errorf("got %s: %w", s.digest, fault.ErrIntegrity)
		}
	}
	if s.seek != nil {
		s.seek.Descriptor = s.descriptor()
	}
	return err
}

// descriptor is that of the options, or one made up from what was read.
func (s *stream) descriptor() ocispec.Descriptor {
	var d ocispec.Descriptor
	if s.o.Descriptor != nil {
		d = *s.o.Descriptor
	} else {
		d.MediaType = s.kind.MediaType()
	}
	d.Digest, d.Size = s.digest, s.size
	return d
}

// pass hands a plain layer through: its blocks go out as they came in.
func (s *stream) pass(in *input, c *collector) error {
	if err := c.start(0); err != nil {
		return err
	}
	for {
		b, err := in.take()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		c.decoded(in.off, in.off)
		if !s.send(s.out, b) {
			return context.Cause(s.ctx)
		}
	}
}

// A discarder is a decoder that skips output faster than it reads it out.
type discarder interface {
	// Discard skips n bytes; fewer only with an error.
	Discard(n int64) (int64, error)
}

// pump hands on what a decoder gives, but for what nobody wants. An index needs
// the headers alone: most of a layer need not travel to another processor.
func (s *stream) pump(r io.Reader) error {
	d, _ := r.(discarder)
	off := int64(0) // in the layer, of what comes next
	for {
		b := newBlock()
		var err error
		if n := s.unwanted.Load() - off; n > 0 && d != nil {
			b.skip, err = d.Discard(n)
			off += b.skip
		}
		if err == nil {
			err = b.fillUntil(r, func() bool { return d != nil && s.unwanted.Load() > off+int64(b.n) })
			off += int64(b.n)
		}
		if b.n == 0 && b.skip == 0 {
			b.release()
		} else if !s.send(s.out, b) {
			return context.Cause(s.ctx)
		}
		switch err {
		case nil:
		case io.EOF:
			return nil
		default:
			return err
		}
	}
}
