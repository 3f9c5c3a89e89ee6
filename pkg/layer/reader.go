// Package layer knows what the bytes of an image's layer are: it decompresses
// and verifies a blob that streams by (Reader), and reads at any offset in one
// that lies elsewhere (Lazy).
package layer

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/seek"
)

// Options for NewReader. The zero value decompresses without verifying more
// than the format's own checksums.
type Options struct {
	// Descriptor, if not nil, is what the blob must be: the whole of it must
	// match the digest, and the size if that is above 0.
	Descriptor *ocispec.Descriptor
	// Seek collects what is needed to read at offsets later, see Reader.Seek.
	Seek bool
	// SpanSize is the least number of uncompressed bytes between two
	// checkpoints. 0 means 4 MiB.
	SpanSize int64
	// Windows counts the windows of a section that several layers make
	// together, one Reader after the other. nil: this is the only layer.
	Windows *seek.WindowBudget
}

// DefaultSpanSize is Options.SpanSize's default, in bytes.
const DefaultSpanSize = 4 << 20

// MaxPeek is the most that Peek can show, in bytes.
const MaxPeek = headroom

// A Reader gives the uncompressed bytes of a layer. io.EOF means that the whole
// blob was read and is what it should be; until then what was read is not to
// be trusted for more than to be thrown away again.
//
// Reading the input, hashing, and decompressing each have a goroutine of their
// own, so that they overlap with each other and with the caller. A Reader is
// for one goroutine at a time; Close stops the others.
type Reader struct {
	s   *stream
	cur *block
	buf []byte // of cur, or of its headroom and cur, what was not read yet
	end int64  // in the layer, of what cur holds
	err error  // sticky
}

// NewReader starts to read r, and detects what it is: a plain tar, or one
// compressed with gzip, zstd or xz. Cancelling ctx makes the Reader fail.
//
// r is read to its end, from another goroutine. If the Reader is closed or
// fails earlier, a Read of r that is under way is not waited for.
func NewReader(ctx context.Context, r io.Reader, o Options) *Reader {
	return &Reader{s: newStream(ctx, r, o)}
}

// next makes the next block the current one, with what is left of the current
// one joined to its front. It reports false at the end or after an error.
func (r *Reader) next() bool {
	if r.err != nil {
		return false
	}
	b, ok := <-r.s.out
	if !ok {
		r.err = r.s.err
		return false
	}
	rest := len(r.buf)
	if rest > 0 {
		copy(b.buf[headroom-rest:], r.buf)
	}
	if r.cur != nil {
		r.cur.release()
	}
	r.cur = b
	r.end += b.skip + int64(b.n)
	r.buf = b.buf[headroom-rest : headroom+b.n]
	return true
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.buf) == 0 {
		if !r.next() {
			return 0, r.err
		}
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

// WriteTo implements io.WriterTo, without copying.
func (r *Reader) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		for len(r.buf) == 0 {
			if !r.next() {
				if r.err == io.EOF {
					return total, nil
				}
				return total, r.err
			}
		}
		n, err := w.Write(r.buf)
		r.buf = r.buf[n:]
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
}

// Peek returns the next n bytes without reading them: at most MaxPeek, or
// Buffered if that is more. The slice is valid until the next call. Near the
// end, or after an error, it returns what there is together with the error.
func (r *Reader) Peek(n int) ([]byte, error) {
	if n < 0 || n > max(MaxPeek, len(r.buf)) {
		return nil, fault.Usagef("peek at %d bytes, of at most %d", n, MaxPeek)
	}
	for len(r.buf) < n {
		if !r.next() {
			return r.buf, r.err
		}
	}
	return r.buf[:n], nil
}

// Buffered returns how many bytes can be had without waiting or copying.
func (r *Reader) Buffered() int { return len(r.buf) }

// Discard skips n bytes. If it skips fewer, the error says why.
func (r *Reader) Discard(n int64) (int64, error) {
	if n < 0 {
		return 0, fault.Usagef("a discard of a negative number of bytes, %d", n)
	}
	left := n
	for {
		k := min(left, int64(len(r.buf)))
		r.buf = r.buf[k:]
		if left -= k; left == 0 {
			return n, nil
		}
		r.s.unwanted.Store(r.end + left)
		if !r.next() {
			return n - left, r.err
		}
		left -= r.cur.skip // which is part of what was unwanted
	}
}

var errClosed = errors.New("layer is closed")

// Close stops the goroutines. It may be called at any time, more than once.
func (r *Reader) Close() error {
	r.s.stop()
	if r.err == nil {
		r.err = errClosed
	}
	r.buf = nil
	if r.cur != nil {
		r.cur.release()
		r.cur = nil
	}
	return nil
}

// Kind waits until the kind is known. If reading fails before, it is Plain.
func (r *Reader) Kind() Kind {
	<-r.s.sniffed
	return r.s.kind
}

// done says what went wrong if the end has not been reached.
func (r *Reader) done() error {
	switch {
	case r.err == io.EOF:
		return nil
	case r.err != nil:
		return r.err
	}
	return fault.Usagef("layer is not read to its end")
}

// Digest returns the blob's digest, and "" before io.EOF. It is of the
// descriptor's algorithm if there is one, else SHA-256.
func (r *Reader) Digest() digest.Digest {
	if r.done() != nil {
		return ""
	}
	return r.s.digest
}

// BlobSize returns the number of compressed bytes, and 0 before io.EOF.
func (r *Reader) BlobSize() int64 {
	if r.done() != nil {
		return 0
	}
	return r.s.size
}

// Seek returns what Options.Seek asked for, once Read has returned io.EOF. For
// xz, which cannot be read at an offset, that is fault.ErrUnsupported.
func (r *Reader) Seek() (*seek.Layer, error) {
	switch err := r.done(); {
	case err != nil:
		return nil, err
	case !r.s.o.Seek:
		return nil, fault.Usagef("seek data was not asked for")
	case r.s.kind == Xz:
		return nil, fmt.Errorf("layer %s: an xz layer cannot be read at an offset (recompress it with gzip or zstd): %w", r.s.digest, fault.ErrUnsupported)
	}
	return r.s.seek, nil
}
