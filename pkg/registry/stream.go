package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// A stream is a blob on its way: resumed where it breaks, verified as a whole.
type stream struct {
	*ociimage.Verifier
	r *resumer
}

// newStream opens a blob, so that what is wrong with the request shows before
// anything depends on the blob.
func newStream(ctx context.Context, d ocispec.Descriptor, from []*origin) (*stream, error) {
	r, err := newResumer(ctx, d, from, 0)
	if err != nil {
		return nil, err
	}
	d.Size = r.size
	return &stream{ociimage.NewVerifier(r, d), r}, nil
}

// Close gives the connection back if the blob was read to its end, and up
// otherwise.
func (s *stream) Close() error {
	s.r.drop()
	return nil
}

// A resumer reads a blob over connections that break, and from the next origin
// where the last one left it when that one fails for good.
type resumer struct {
	ctx   context.Context
	o     *origin
	more  []*origin // to be tried after o
	what  string
	size  int64         // -1: not known
	off   int64         // of the next byte
	body  io.ReadCloser // nil: to be opened
	broke error         // why there is no body
	ended bool          // nothing follows
	whole bool          // the next request is for all of it: a range was answered wrongly
	retry retrier
}

// newResumer opens a blob at an offset. There is at least one origin.
func newResumer(ctx context.Context, d ocispec.Descriptor, from []*origin, off int64) (*resumer, error) {
	r := &resumer{ctx: ctx, o: from[0], more: from[1:], size: d.Size, off: off, what: "blob " + d.Digest.String(), retry: retrier{c: from[0].c}}
	if d.Size <= 0 {
		r.size = -1
	}
	return r, r.connect()
}

func (r *resumer) drop() {
	if r.body != nil {
		r.body.Close()
		r.body = nil
	}
}

// connect opens a body at the offset, over and over while that makes sense.
func (r *resumer) connect() error {
	for {
		err := r.broke
		if r.broke = nil; err == nil {
			if err = r.open(); err == nil {
				r.o.c.gave()
				return nil
			}
		}
		if err := r.retry.again(r.ctx, err); err != nil {
			if r.ctx.Err() != nil || len(r.more) == 0 {
				return err
			}
			r.o.c.failed(err, r.more[0].c)
			r.o, r.more = r.more[0], r.more[1:]
			r.retry = retrier{c: r.o.c}
		}
	}
}

// open sends one request for what is left or, where ranges do not work, for
// all.
func (r *resumer) open() error {
	var header http.Header
	switch {
	case r.off == 0 || r.whole:
	case r.size > 0:
		header = rangeHeader(r.off, r.size)
	default:
		header = http.Header{"Range": {fmt.Sprintf("bytes=%d-", r.off)}}
	}
	r.whole = false
	resp, err := r.o.get(r.ctx, header, r.what)
	if header != nil && refusesRange(err) {
		resp, err = r.o.get(r.ctx, nil, r.what)
	}
	if err != nil {
		return err
	}
	if err := r.accept(resp); err != nil {
		resp.Body.Close()
		_, r.whole = errors.AsType[rangeError](err)
		return err
	}
	r.body = resp.Body
	return nil
}

// accept checks an answer before any of it is used, and brings it to the
// offset.
func (r *resumer) accept(resp *http.Response) error {
	if resp.StatusCode == http.StatusPartialContent {
		if r.off == 0 {
			return finalError{fmt.Errorf("%s: a part of it in answer to a request for the whole: %w", r.what, fault.ErrIntegrity)}
		}
		end := r.size
		if end < 0 {
			end = 1 << 60
		}
		_, err := checkRange(resp, r.off, end, r.size, r.what)
		return err
	}
	if n := resp.ContentLength; n >= 0 {
		if r.size >= 0 && n != r.size {
			return fmt.Errorf("%s: the registry has %d bytes, want %d: %w", r.what, n, r.size, fault.ErrIntegrity)
		}
		r.size = n
	}
	// The server does not know ranges: what we have goes by once more. It was
	// hashed before; should it differ now, the digest of the whole still tells.
	if n, err := io.CopyN(io.Discard, resp.Body, r.off); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("%s: broke at byte %d: %w", r.what, n, r.o.c.secrets.scrub(err))
	}
	return nil
}

func (r *resumer) Read(p []byte) (int, error) {
	for {
		if r.ended {
			return 0, io.EOF
		}
		if r.body == nil {
			if err := r.connect(); err != nil {
				return 0, err
			}
		}
		n, err := r.body.Read(p)
		r.off += int64(n)
		if n > 0 {
			r.retry.progress()
		}
		if err != nil {
			r.drop()
			// Once all is there it does not matter how the connection ended.
			if r.size >= 0 && r.off >= r.size || r.size < 0 && err == io.EOF {
				r.ended = true
			} else {
				if err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				r.broke = fmt.Errorf("%s: broke at byte %d: %w", r.what, r.off, r.o.c.secrets.scrub(err))
			}
		}
		if n > 0 {
			return n, nil
		}
	}
}
