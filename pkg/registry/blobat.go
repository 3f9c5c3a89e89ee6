package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// A BlobAt reads a blob in a registry at any offset, by one request for each
// read. It is safe for many readers at once. What it gives is not verified.
type BlobAt struct {
	r    *Repository
	o    *origin
	what string
	size int64
	// location is where the registry last redirected us. Most keep blobs
	// elsewhere, and would otherwise be asked twice for each read.
	location atomic.Pointer[url.URL]
}

// BlobAt opens a blob for random access. Nothing is sent, except to find out a
// size of 0 or less, or where a foreign layer is.
func (r *Repository) BlobAt(ctx context.Context, d ocispec.Descriptor) (*BlobAt, error) {
	if err := checkBlob(d); err != nil {
		return nil, err
	}
	b := &BlobAt{
		r: r, size: d.Size, what: "blob " + d.Digest.String(),
		o: &origin{c: r.c, u: r.c.url("blobs", d.Digest.String())},
	}
	if d.Size > 0 && !ociimage.IsForeign(d.MediaType) {
		return b, nil
	}
	err := b.probe(ctx)
	if errors.Is(err, fault.ErrNotFound) && ociimage.IsForeign(d.MediaType) {
		for _, s := range d.URLs[:min(len(d.URLs), maxForeign)] {
			u, err2 := parseForeign(s)
			if err2 != nil {
				continue
			}
			b.o = &origin{c: r.c, u: u, foreign: true}
			if err = b.probe(ctx); err == nil {
				break
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.name, err)
	}
	return b, nil
}

// Size is the blob's size in bytes.
func (b *BlobAt) Size() int64 { return b.size }

// Close ends nothing that other blobs of the repository use.
func (b *BlobAt) Close() error { return nil }

// probe asks for one byte, to learn what the range of it is a part of.
func (b *BlobAt) probe(ctx context.Context) error {
	retry := retrier{c: b.r.c}
	for {
		err := b.probeOnce(ctx)
		if err == nil {
			return nil
		}
		if err := retry.again(ctx, err); err != nil {
			return err
		}
	}
}

func (b *BlobAt) probeOnce(ctx context.Context) error {
	resp, err := b.request(ctx, 0, 1)
	if err != nil {
		return err
	}
	defer discard(resp)
	if resp.StatusCode != http.StatusPartialContent {
		return b.noRanges()
	}
	cr, err := checkRange(resp, 0, 1, b.size, b.what)
	if err != nil {
		return err
	}
	if cr.total < 0 {
		return finalError{fmt.Errorf("%s: the registry does not tell its size: %w", b.what, fault.ErrUnsupported)}
	}
	b.size = cr.total
	return nil
}

func (b *BlobAt) noRanges() error {
	return finalError{fmt.Errorf("%s: the registry does not support ranges: %w", b.what, fault.ErrUnsupported)}
}

// ReadAtContext fills p from off, or returns an error: io.EOF with what there
// is before the end of the blob. What breaks is tried again where it broke.
func (b *BlobAt) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fault.Usagef("%s: read at %d", b.what, off)
	}
	if off >= b.size {
		return 0, io.EOF
	}
	var atEnd error
	if rest := b.size - off; int64(len(p)) > rest {
		p, atEnd = p[:rest], io.EOF
	}
	select {
	case b.r.slots <- struct{}{}:
		defer func() { <-b.r.slots }()
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	done := 0
	retry := retrier{c: b.r.c}
	for done < len(p) {
		n, err := b.read(ctx, p[done:], off+int64(done))
		done += n
		if n > 0 {
			retry.progress()
		}
		if err != nil {
			if err := retry.again(ctx, err); err != nil {
				return done, err
			}
		}
	}
	return done, atEnd
}

// read sends one request and reads its answer, which may be shorter than p, but
// is not empty unless there is an error.
func (b *BlobAt) read(ctx context.Context, p []byte, off int64) (int, error) {
	end := off + int64(len(p))
	resp, err := b.request(ctx, off, end)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusPartialContent:
		cr, err := checkRange(resp, off, end, b.size, b.what)
		if err != nil {
			return 0, err
		}
		p = p[:cr.end-cr.start]
	case off == 0 && end == b.size && (resp.ContentLength == b.size || resp.ContentLength < 0):
		// All was asked for, and all is given.
	default:
		return 0, b.noRanges()
	}
	n, err := io.ReadFull(resp.Body, p)
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return n, fmt.Errorf("%s: broke at byte %d: %w", b.what, off+int64(n), b.r.c.secrets.scrub(err))
	}
	if resp.ContentLength < 0 {
		// A connection is used again only if the end of a chunked body was seen.
		io.CopyN(io.Discard, resp.Body, 1)
	}
	return n, nil
}

// request asks for [off, end): where the registry last sent us, if it did, and
// else, or if that address is good no more, at the registry.
func (b *BlobAt) request(ctx context.Context, off, end int64) (*http.Response, error) {
	header := rangeHeader(off, end)
	if u := b.location.Load(); u != nil {
		resp, err := (&origin{c: b.r.c, u: u, foreign: true}).get(ctx, header, b.what)
		if err == nil || ctx.Err() != nil {
			return resp, err
		}
		b.location.CompareAndSwap(u, nil)
		// A refusal means that the address has expired. Other failures are
		// counted and waited for as any.
		if se, ok := errors.AsType[*statusError](err); !ok || se.status >= 500 || b.r.c.retryable(err) {
			return nil, err
		}
	}
	resp, err := b.o.get(ctx, header, b.what)
	if err != nil {
		return nil, err
	}
	if final := resp.Request.URL; !sameOrigin(final, b.o.u) {
		b.location.Store(final)
	}
	return resp, nil
}
