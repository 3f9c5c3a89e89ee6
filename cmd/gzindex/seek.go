package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"sort"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/layer"
	"github.com/layerpipe/layerpipe/pkg/seek"
	"github.com/layerpipe/layerpipe/pkg/spancache"
	"github.com/layerpipe/layerpipe/pkg/zinfo"
)

// fileBlob is a file as package layer wants it.
type fileBlob struct {
	*os.File
	size int64
}

func (b *fileBlob) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	return b.ReadAt(p, off)
}

func (b *fileBlob) Size() int64 { return b.size }

// open gives the data of a blob, for one who reads in sequence and knows where
// he wants to end: unlike package layer, which decodes whole spans and keeps
// them, it decodes no further than that, and goes on where the last read ended.
func (x *index) open(ctx context.Context, blob *fileBlob) (readAtCloser, error) {
	l := x.layer
	if l == nil {
		return unowned{zinfo.NewReaderAt(blob, x.zinfo)}, nil
	}
	verified := &verifiedBlob{blob: blob, l: l}
	switch l.Kind {
	case seek.Plain:
		return unowned{verified}, nil
	case seek.Gzip:
		points, err := layer.Zinfo(l, 0)
		return unowned{zinfo.NewReaderAt(verified, points)}, err
	}
	lazy, err := layer.Open(blob, l, spancache.New(largeSpan), layer.LazyOptions{})
	return &lazyReader{lazy, ctx}, err
}

type readAtCloser interface {
	io.ReaderAt
	io.Closer
}

// unowned is a reader of a blob that somebody else closes.
type unowned struct{ io.ReaderAt }

func (unowned) Close() error { return nil }

// lazyReader gives a layer.Lazy the context of the command.
type lazyReader struct {
	*layer.Lazy
	ctx context.Context
}

func (r *lazyReader) ReadAt(p []byte, off int64) (int, error) {
	return r.ReadAtContext(r.ctx, p, off)
}

// A verifiedBlob reads a blob whose pieces it compares with their digests
// before it gives any of their bytes. It keeps the last piece.
type verifiedBlob struct {
	blob  io.ReaderAt
	l     *seek.Layer
	piece []byte
	at    int64 // offset of the piece in the blob
}

func (v *verifiedBlob) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		if at := off + int64(n); at < v.at || at >= v.at+int64(len(v.piece)) {
			if at >= v.l.Descriptor.Size {
				return n, io.EOF
			}
			if err := v.load(at); err != nil {
				return n, err
			}
		}
		n += copy(p[n:], v.piece[off+int64(n)-v.at:])
	}
	return n, nil
}

// load reads the piece that the byte at offset at is in.
func (v *verifiedBlob) load(at int64) error {
	// Where spans share a byte, it is the later one's, who begins with it.
	i := sort.Search(len(v.l.Spans), func(i int) bool { return v.l.Spans[i].Start() > at }) - 1
	if i < 0 {
		return fault.Usagef("offset %d is in no span", at)
	}
	in, end, _, _ := v.l.Range(i)
	k := (at - in) / seek.PieceSize
	in += k * seek.PieceSize
	if v.piece == nil {
		v.piece = make([]byte, 0, seek.PieceSize)
	}
	v.at, v.piece = in, v.piece[:min(end-in, seek.PieceSize)]
	err := readPiece(v.blob, v.l, i, int(k), v.piece, in)
	if err != nil {
		v.piece = v.piece[:0]
	}
	return err
}

// readPiece reads piece k of span i, at offset in, into p and verifies it.
func readPiece(blob io.ReaderAt, l *seek.Layer, i, k int, p []byte, in int64) error {
	if n, err := blob.ReadAt(p, in); n < len(p) {
		return err
	}
	if sha256.Sum256(p) != l.Spans[i].Digests[k] {
		return fmt.Errorf("span %d: bytes %d to %d do not match their digest: %w", i, in, in+int64(len(p)), fault.ErrIntegrity)
	}
	return nil
}

// verifySeek checks all that a seek section says of a blob, as many spans at
// once as there are workers: the blob's digest and those of the pieces, the
// spans' sizes, and that each decodes to the right bytes. The latter is known
// of gzip by its checksums, put together over the spans (see zinfo.Verify), and
// of zstd because a frame depends on nothing else.
//
// A digest that does not match says more than what comes of decoding such
// bytes, so that is the error to give where there are both.
func verifySeek(ctx context.Context, blob *fileBlob, l *seek.Layer, workers int, progress func(int64)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var pieces, spans, whole error
	var wg sync.WaitGroup
	wg.Go(func() { whole = verifyDigest(ctx, blob, l.Descriptor.Digest) })
	if points, err := layer.Zinfo(l, 0); err == nil {
		wg.Go(func() {
			if pieces = verifyPieces(ctx, blob, l); pieces != nil {
				cancel()
			}
		})
		_, spans = points.Verify(ctx, blob, workers, progress)
	} else if spans = verifySpans(ctx, blob, l, workers, progress); spans != nil {
		cancel()
	}
	wg.Wait()
	return cmp.Or(pieces, spans, whole)
}

// verifySpans reads all of a layer, whose pieces are verified on the way.
func verifySpans(ctx context.Context, blob *fileBlob, l *seek.Layer, workers int, progress func(int64)) error {
	lazy, err := layer.Open(blob, l, spancache.New(largeSpan), layer.LazyOptions{})
	if err != nil {
		return err
	}
	defer lazy.Close()
	g, ctx := errgroup.WithContext(ctx)
	spans := make(chan int)
	g.Go(func() error {
		defer close(spans)
		for i := range l.Spans {
			select {
			case spans <- i:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			buf := make([]byte, seek.PieceSize)
			for i := range spans {
				in, inEnd, out, end := l.Range(i)
				for ; out < end; out += int64(len(buf)) {
					if _, err := lazy.ReadAtContext(ctx, buf[:min(int64(len(buf)), end-out)], out); err != nil {
						return err
					}
				}
				progress(inEnd - in)
			}
			return nil
		})
	}
	return g.Wait()
}

// verifyDigest compares the whole blob with its digest.
func verifyDigest(ctx context.Context, blob *fileBlob, want digest.Digest) error {
	h := want.Algorithm().Hash()
	buf := make([]byte, 1<<18)
	for off := int64(0); off < blob.size; {
		n, err := blob.ReadAtContext(ctx, buf[:min(int64(len(buf)), blob.size-off)], off)
		if err != nil && (n == 0 || err != io.EOF) {
			return err
		}
		h.Write(buf[:n])
		off += int64(n)
	}
	if got := digest.NewDigest(want.Algorithm(), h); got != want {
		return fmt.Errorf("got %s, want %s: %w", got, want, fault.ErrIntegrity)
	}
	return nil
}

// verifyPieces compares the digests of the spans' pieces.
func verifyPieces(ctx context.Context, blob io.ReaderAt, l *seek.Layer) error {
	buf := make([]byte, seek.PieceSize)
	for i := range l.Spans {
		in, end, _, _ := l.Range(i)
		for k := range l.Spans[i].Digests {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			p := buf[:min(end-in, seek.PieceSize)]
			if err := readPiece(blob, l, i, k, p, in); err != nil {
				return err
			}
			in += int64(len(p))
		}
	}
	return nil
}
