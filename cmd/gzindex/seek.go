package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"

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

// openSeek gives the data of a blob. It is read in sequence, a part at a time:
// the cache is for the span at hand.
func openSeek(blob *fileBlob, l *seek.Layer) (*layer.Lazy, error) {
	return layer.Open(blob, l, spancache.New(largeSpan), layer.LazyOptions{})
}

// verifySeek checks all that a seek section says of a blob, as many spans at
// once as there are workers: the blob's digest and those of the pieces, the
// spans' sizes, and that each decodes to the right bytes. The latter is known
// of gzip by its checksums, put together over the spans (see zinfo.Verify), and
// of zstd because a frame depends on nothing else.
func verifySeek(ctx context.Context, blob *fileBlob, l *seek.Layer, workers int, progress func(int64)) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return verifyDigest(ctx, blob, l.Descriptor.Digest) })
	if l.Kind == seek.Gzip {
		g.Go(func() error { return verifyPieces(ctx, blob, l) })
		g.Go(func() error {
			_, err := zinfoOf(l).Verify(ctx, blob, workers, progress)
			return err
		})
		return g.Wait()
	}
	lazy, err := openSeek(blob, l)
	if err != nil {
		return err
	}
	defer lazy.Close()
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

// zinfoOf is a gzip layer's checkpoints as package zinfo has them.
func zinfoOf(l *seek.Layer) *zinfo.Index {
	x := &zinfo.Index{Size: l.Size, BlobSize: l.Descriptor.Size}
	for _, s := range l.Spans {
		x.Points = append(x.Points, zinfo.Point{In: s.In, Out: s.Out, Bits: s.Bits})
	}
	x.Unpack = func(i int, window []byte) { l.Spans[i].Window.Unpack(window) }
	return x
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
func verifyPieces(ctx context.Context, blob *fileBlob, l *seek.Layer) error {
	buf := make([]byte, seek.PieceSize)
	for i := range l.Spans {
		in, end, _, _ := l.Range(i)
		for _, want := range l.Spans[i].Digests {
			p := buf[:min(end-in, seek.PieceSize)]
			if n, err := blob.ReadAtContext(ctx, p, in); n < len(p) {
				return err
			}
			if sha256.Sum256(p) != want {
				return fmt.Errorf("span %d: bytes %d to %d do not match their digest: %w", i, in, in+int64(len(p)), fault.ErrIntegrity)
			}
			in += int64(len(p))
		}
	}
	return nil
}
