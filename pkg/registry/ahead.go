package registry

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/ociimage"
)

// A piece is what one request of an Ahead asks for: large enough to make the
// round trip before it not matter, where that fits into the memory for all.
const (
	aheadMemory = 16 << 20
	maxPiece    = 4 << 20
	minPiece    = 64 << 10
)

// An Ahead downloads blobs that will be asked for in a known order, over
// several connections: pieces of the current blob, and of those behind it,
// arrive in memory while the current one is read. There are half as many pieces
// more in memory as there are connections; together with the connections' buffers
// they take 16 MiB, up to 64 connections and somewhat beyond.
type Ahead struct {
	r      *Repository
	piece  int64 // bytes
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	window chan struct{} // a place for each piece in memory
	free   chan []byte   // buffers to use again
	todo   chan *piece
	blobs  []*plannedBlob // from the next one on
}

// plannedBlob is a blob, and those of its pieces that are on their way or
// waited for.
type plannedBlob struct {
	d      ocispec.Descriptor
	at     *BlobAt
	mu     sync.Mutex
	pieces map[int64]*piece // by their offset
}

// piece is a part of a blob. What has arrived of it is read while the rest is
// on its way.
type piece struct {
	blob    *plannedBlob
	off     int64
	size    int64 // set before its download starts
	data    []byte
	arrived atomic.Int64  // bytes of data that are good
	more    chan struct{} // more have arrived; it has room for one, which stands for all
	err     error
	done    chan struct{} // closed when all is there, or it has failed
}

// piece is the one at off, for whoever comes first: its reader or its
// download.
func (b *plannedBlob) piece(off int64) *piece {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.pieces[off]
	if p == nil {
		p = &piece{blob: b, off: off, more: make(chan struct{}, 1), done: make(chan struct{})}
		b.pieces[off] = p
	}
	return p
}

func (b *plannedBlob) forget(p *piece) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.pieces, p.off)
}

// errClosed is why pieces that nobody waits for any more are given up.
var errClosed = errors.New("download closed")

// Ahead starts to download blobs in the order of the list, over so many
// connections. A digest that is listed twice is expected once.
func (r *Repository) Ahead(ctx context.Context, list []ocispec.Descriptor, connections int) *Ahead {
	ctx, cancel := context.WithCancelCause(ctx)
	// While the connections fill their pieces, half as many wait for those that
	// come before them.
	window := connections + (connections+1)/2
	a := &Ahead{
		r: r, cancel: cancel,
		piece:  min(maxPiece, max(minPiece, (aheadMemory-int64(connections)*readBuffer)/int64(window))),
		window: make(chan struct{}, window),
		free:   make(chan []byte, window),
		todo:   make(chan *piece),
	}
	seen := make(map[digest.Digest]bool)
	for _, d := range list {
		if seen[d.Digest] || d.Size <= 0 || ociimage.IsForeign(d.MediaType) {
			continue
		}
		seen[d.Digest] = true
		// Not an error yet: Blob will say what is wrong.
		if at, err := r.BlobAt(ctx, d); err == nil {
			a.blobs = append(a.blobs, &plannedBlob{d: d, at: at, pieces: make(map[int64]*piece)})
		}
	}
	blobs := a.blobs
	a.wg.Go(func() {
		defer close(a.todo)
		// The first pieces grow from small to full: connections that share a line
		// would otherwise all end theirs at once, over and over, and leave the
		// line idle while all of them ask for the next.
		n := int64(1)
		for _, b := range blobs {
			for off := int64(0); off < b.d.Size; n++ {
				select {
				case a.window <- struct{}{}:
				case <-ctx.Done():
					return
				}
				p := b.piece(off)
				p.size = min(a.piece, max(minPiece, a.piece*n/int64(connections)), b.d.Size-off)
				off += p.size
				a.todo <- p // a worker always takes it
			}
		}
	})
	for range connections {
		a.wg.Go(func() {
			for p := range a.todo {
				a.fetch(ctx, p)
			}
		})
	}
	return a
}

// fetch gets one piece.
func (a *Ahead) fetch(ctx context.Context, p *piece) {
	defer close(p.done)
	var buf []byte
	select {
	case buf = <-a.free:
	default:
	}
	if int64(cap(buf)) < p.size {
		// Of the full size, to be of use for others.
		buf = make([]byte, min(a.piece, p.blob.d.Size))
	}
	p.data = buf[:p.size]
	_, p.err = p.blob.at.ReadAtProgress(ctx, p.data, p.off, func(n int) {
		p.arrived.Store(int64(n))
		select {
		case p.more <- struct{}{}:
		default:
		}
	})
}

// release gives a piece's place and buffer to the next one.
func (a *Ahead) release(p *piece) {
	p.blob.forget(p)
	if int64(cap(p.data)) == a.piece {
		select {
		case a.free <- p.data:
		default:
		}
	}
	<-a.window
}

// stop ends what is on its way; the blobs that follow get streams.
func (a *Ahead) stop() {
	a.blobs = nil
	a.cancel(errClosed)
}

// Close ends all downloads.
func (a *Ahead) Close() error {
	a.stop()
	a.wg.Wait()
	return nil
}

// Blob opens the next blob of the list, verified as Repository.Blob has it; of
// any other blob it opens a stream of its own. A blob must be closed before the
// next one is opened.
func (a *Ahead) Blob(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	if len(a.blobs) == 0 || a.blobs[0].d.Digest != d.Digest || a.blobs[0].d.Size != d.Size {
		return a.r.Blob(ctx, d)
	}
	b := &aheadBlob{ctx: ctx, a: a, blob: a.blobs[0]}
	a.blobs = a.blobs[1:]
	// What is wrong with the blob should show before anything depends on it.
	if err := b.wait(); err != nil {
		b.Close()
		return nil, err
	}
	b.v = ociimage.NewVerifier(readerFunc(b.read), d)
	return b, nil
}

// aheadBlob reads a blob out of its pieces.
type aheadBlob struct {
	ctx   context.Context
	a     *Ahead
	blob  *plannedBlob
	v     *ociimage.Verifier
	off   int64    // of the next byte
	cur   *piece   // the one that the next byte is in; nil: to be found
	rest  []byte   // of cur, what has arrived and was not read yet
	plain *resumer // the registry has no ranges, or wrong ones: a stream instead
}

func (b *aheadBlob) Read(p []byte) (int, error) { return b.v.Read(p) }

// wait waits until something of the current piece is there.
func (b *aheadBlob) wait() (err error) {
	if b.cur == nil {
		b.cur = b.blob.piece(b.off)
	}
	p := b.cur
	for {
		ended := false
		select {
		case <-p.more:
		case <-p.done:
			ended = true
		case <-b.ctx.Done():
			return context.Cause(b.ctx)
		}
		if from, to := b.off-p.off, p.arrived.Load(); from < to {
			b.rest = p.data[from:to]
			return nil
		}
		if !ended {
			continue
		}
		if _, mixedUp := errors.AsType[rangeError](p.err); mixedUp || errors.Is(p.err, fault.ErrUnsupported) {
			b.a.stop()
			b.blob.at.from[0].c.verbose("%v; going on over one connection", p.err)
			b.plain, err = newResumer(b.ctx, b.blob.d, rested(b.blob.at.from), b.off)
			return err
		}
		return p.err
	}
}

func (b *aheadBlob) read(p []byte) (int, error) {
	if len(b.rest) == 0 && b.plain == nil {
		if b.off == b.blob.d.Size {
			return 0, io.EOF
		}
		if err := b.wait(); err != nil {
			return 0, err
		}
	}
	if b.plain != nil {
		return b.plain.Read(p)
	}
	n := copy(p, b.rest)
	b.off += int64(n)
	b.rest = b.rest[n:]
	if b.off == b.cur.off+b.cur.size {
		b.a.release(b.cur)
		b.cur = nil
	}
	return n, nil
}

// Close gives up what was not read of the blob, and with it what is on its way
// already.
func (b *aheadBlob) Close() error {
	if b.plain != nil {
		b.plain.drop()
	} else if b.off < b.blob.d.Size {
		b.a.stop()
	}
	return nil
}

// readerFunc is a Read without a type around it.
type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
