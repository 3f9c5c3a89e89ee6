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

// A BlobAt reads a blob in a registry at any offset, by one request for each
// read. It is safe for many readers at once. What it gives is not verified.
type BlobAt struct {
	r    *Repository
	from []*origin // the best one first
	what string
	size int64
}

// BlobAt opens a blob for random access. Nothing is sent, except to find out a
// size of 0 or less, or where a foreign layer is.
func (r *Repository) BlobAt(ctx context.Context, d ocispec.Descriptor) (*BlobAt, error) {
	if err := checkBlob(d); err != nil {
		return nil, err
	}
	from, err := r.origins(d.Digest)
	if err != nil {
		return nil, r.named(err)
	}
	b := &BlobAt{r: r, size: d.Size, what: "blob " + d.Digest.String(), from: from}
	if d.Size > 0 && !ociimage.IsForeign(d.MediaType) {
		return b, nil
	}
	err = b.probe(ctx)
	if errors.Is(err, fault.ErrNotFound) && ociimage.IsForeign(d.MediaType) {
		for _, s := range d.URLs[:min(len(d.URLs), maxForeign)] {
			u, err2 := parseForeign(s)
			if err2 != nil {
				continue
			}
			b.from = []*origin{{c: r.own(), u: u, foreign: true}}
			if err = b.probe(ctx); err == nil {
				break
			}
		}
	}
	if err != nil {
		return nil, r.named(err)
	}
	return b, nil
}

// Size is the blob's size in bytes.
func (b *BlobAt) Size() int64 { return b.size }

// Close ends nothing that other blobs of the repository use.
func (b *BlobAt) Close() error { return nil }

// probe asks for one byte, to learn what the range of it is a part of.
func (b *BlobAt) probe(ctx context.Context) error {
	a := attempts{from: b.from}
	for {
		err := b.probeOnce(ctx, a.origin())
		if err == nil {
			a.origin().c.gave()
			return nil
		}
		if err := a.again(ctx, err); err != nil {
			return err
		}
	}
}

// attempts goes through the origins of a blob, those that failed lately last,
// with each as often as that makes sense.
type attempts struct {
	from  []*origin
	i     int
	retry retrier
}

func (a *attempts) origin() *origin {
	if a.retry.c == nil {
		if len(a.from) > 1 {
			a.from = rested(a.from)
		}
		a.retry.c = a.from[0].c
	}
	return a.from[a.i]
}

func (a *attempts) again(ctx context.Context, err error) error {
	err = a.retry.again(ctx, err)
	if err == nil || ctx.Err() != nil || a.i+1 == len(a.from) {
		return err
	}
	a.i++
	a.from[a.i-1].c.failed(err, a.from[a.i].c)
	a.retry = retrier{c: a.from[a.i].c}
	return nil
}

func (b *BlobAt) probeOnce(ctx context.Context, o *origin) error {
	resp, err := b.request(ctx, o, 0, 1)
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
	return b.ReadAtProgress(ctx, p, off, nil)
}

// ReadAtProgress is ReadAtContext for who can use the start of p before the
// rest is there: arrived, unless it is nil, is told how much of p is good, after
// each read of the connection, by the calling goroutine.
func (b *BlobAt) ReadAtProgress(ctx context.Context, p []byte, off int64, arrived func(n int)) (int, error) {
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
	a := attempts{from: b.from}
	for done < len(p) {
		n, err := b.read(ctx, a.origin(), p[done:], off+int64(done), func(n int) {
			if arrived != nil {
				arrived(done + n)
			}
		})
		done += n
		if n > 0 {
			a.retry.progress()
			a.origin().c.gave()
		}
		if err != nil {
			if err := a.again(ctx, err); err != nil {
				return done, err
			}
		}
	}
	return done, atEnd
}

// read sends one request and reads its answer, which may be shorter than p, but
// is not empty unless there is an error.
func (b *BlobAt) read(ctx context.Context, o *origin, p []byte, off int64, arrived func(n int)) (int, error) {
	end := off + int64(len(p))
	resp, err := b.request(ctx, o, off, end)
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
	n := 0
	for n < len(p) && err == nil {
		var k int
		k, err = resp.Body.Read(p[n:])
		if n += k; k > 0 {
			arrived(n)
		}
	}
	if n < len(p) {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return n, fmt.Errorf("%s: broke at byte %d: %w", b.what, off+int64(n), o.c.secrets.scrub(err))
	}
	if resp.ContentLength < 0 {
		// A connection is used again only if the end of a chunked body was seen.
		io.CopyN(io.Discard, resp.Body, 1)
	}
	return n, nil
}

// request asks for [off, end): where the registry last sent us, if it did, and
// else, or if that address is good no more, at the registry.
func (b *BlobAt) request(ctx context.Context, o *origin, off, end int64) (*http.Response, error) {
	header := rangeHeader(off, end)
	if u := o.location.Load(); u != nil {
		resp, err := (&origin{c: o.c, u: u, foreign: true}).get(ctx, header, b.what)
		if err == nil || ctx.Err() != nil {
			return resp, err
		}
		o.location.CompareAndSwap(u, nil)
		// A refusal means that the address has expired. Other failures are
		// counted and waited for as any.
		if se, ok := errors.AsType[*statusError](err); !ok || se.status >= 500 || o.c.retryable(err) {
			return nil, err
		}
	}
	resp, err := o.get(ctx, header, b.what)
	if refusesRange(err) {
		return nil, finalError{fmt.Errorf("%w: no ranges: %w", err, fault.ErrUnsupported)}
	}
	if err != nil {
		return nil, err
	}
	if final := resp.Request.URL; o.left(final) {
		o.location.Store(final)
	}
	return resp, nil
}

// Suspect says that bytes which were read are not what they should be. Where
// there is another place to ask, the one that gave them is asked last for a
// while.
func (b *BlobAt) Suspect(err error) {
	if list := rested(b.from); len(list) > 1 {
		list[0].c.failed(err, list[1].c)
	}
}
