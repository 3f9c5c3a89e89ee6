package layer

import (
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/seek"
)

// zstdMaxWindow bounds the decoder's memory, in bytes. It is what zstd(1)
// refuses to exceed, too, unless told to.
const zstdMaxWindow = 128 << 20

func newZstdDecoder(o ...zstd.DOption) (*zstd.Decoder, error) {
	return zstd.NewReader(nil, append([]zstd.DOption{
		// A decoder with goroutines of its own would read ahead, and starting
		// them for each of many small frames costs more than it brings.
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(zstdMaxWindow),
	}, o...)...)
}

// zstdError says where decoding the frame at start failed.
func zstdError(start int64, err error) error {
	switch {
	case err == nil || err == io.EOF:
		return err
	case errors.Is(err, fault.ErrCorrupt), errors.Is(err, fault.ErrIntegrity):
		return err
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return fmt.Errorf("zstd frame at %d needs a window of more than %d MiB: %w", start, zstdMaxWindow>>20, fault.ErrUnsupported)
	case errors.Is(err, zstd.ErrUnknownDictionary):
		return fmt.Errorf("zstd frame at %d needs a dictionary: %w", start, fault.ErrUnsupported)
	case errors.Is(err, zstd.ErrCRCMismatch):
		return fmt.Errorf("zstd frame at %d: checksum does not match: %w", start, fault.ErrIntegrity)
	}
	return fmt.Errorf("zstd frame at %d: %v: %w", start, err, fault.ErrCorrupt)
}

// A zstdReader decodes frame by frame, so that it knows where each begins, in
// the blob and in the output. Small frames make a span together.
type zstdReader struct {
	s      *stream
	c      *collector
	frames frameReader
	dec    *zstd.Decoder
	open   bool // within a frame

	out       int64 // bytes decoded
	frameOut  int64 // where in the output the frame started
	spanOut   int64 // and the span
	undecided bool  // whether the frame starts a span
	err       error // of onBlock
}

func (s *stream) unzstd(in *input, c *collector) error {
	dec, err := newZstdDecoder()
	if err != nil {
		return err
	}
	defer dec.Close()
	if err := c.start(0); err != nil {
		return err
	}
	z := &zstdReader{s: s, c: c, frames: frameReader{in: in}, dec: dec}
	if c != nil {
		c.onBlock = z.onBlock
	}
	return s.pump(z)
}

// onBlock lets go of input while there is no output: for as long as frames are
// skipped, or are empty.
func (z *zstdReader) onBlock() {
	if !z.open {
		z.c.decoded(z.frames.before, z.out)
	} else if z.err == nil {
		z.err = z.collect()
	}
}

func (z *zstdReader) Read(p []byte) (int, error) {
	for {
		if !z.open {
			if err := z.frames.next(); err != nil {
				return 0, err
			}
			if err := z.dec.Reset(&z.frames); err != nil {
				return 0, zstdError(z.frames.start, err)
			}
			z.open, z.undecided, z.frameOut = true, true, z.out
		}
		n, err := z.dec.Read(p)
		z.out += int64(n)
		if err != nil && err != io.EOF {
			return n, zstdError(z.frames.start, err)
		}
		if err == io.EOF {
			z.open = false
		}
		if z.err == nil {
			z.err = z.collect()
		}
		if z.err != nil {
			return n, z.err
		}
		if n > 0 {
			return n, nil
		}
	}
}

// collect decides whether the frame starts a span, as soon as that is known:
// it does if it would make the span before it too large.
func (z *zstdReader) collect() error {
	span := z.s.o.SpanSize
	if z.undecided {
		size := max(z.out-z.frameOut, z.frames.content)
		switch before := z.frameOut - z.spanOut; {
		case before == 0:
			z.undecided = false
		case size > span-before || z.frames.in.off-z.frames.start > span:
			// The compressed size counts as well, so that the frame's bytes
			// need not be held for longer, whatever comes out of them.
			z.undecided = false
			z.spanOut = z.frameOut
			if err := z.c.span(seek.Span{In: z.frames.start, Out: z.frameOut}); err != nil {
				return err
			}
		case !z.open:
			z.undecided = false
		}
	}
	if z.undecided {
		z.c.decoded(z.frames.start, z.out)
	} else {
		z.c.decoded(z.frames.in.off, z.out)
	}
	return nil
}
