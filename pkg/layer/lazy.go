package layer

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/seek"
	"github.com/layerpipe/layerpipe/pkg/spancache"
	"github.com/layerpipe/layerpipe/pkg/zinfo"
)

// A ReaderAtContext is random access to a blob, or to what is in it.
// ReadAtContext fills p or returns an error, with io.EOF as io.ReaderAt has it.
// It may be called by many at once.
type ReaderAtContext interface {
	ReadAtContext(ctx context.Context, p []byte, off int64) (n int, err error)
	Size() int64 // bytes
}

// LazyOptions is for Open, OpenZinfo and OpenRaw.
type LazyOptions struct {
	// Name is what errors call the layer. "" is its digest, where that is
	// known.
	Name string
	// SpillDir is where spans that are too large for memory are decoded to. ""
	// is os.TempDir().
	SpillDir string
	// SpillOver is the size in bytes above which a span goes to a file. 0 is
	// 64 MiB, or what the cache can hold if that is less (but 16 MiB at least).
	SpillOver int64
	// Digest is the blob's, where Open does not know it from a section. It
	// stands for the blob in the Store, and is checked once all of the blob is
	// cached.
	Digest digest.Digest
	// Store keeps what was fetched of the blob; nil: nothing does.
	Store Store
	// Gate is what this layer shares with others that come over the same
	// network. nil: one of its own.
	Gate *Gate
	// ReadAhead bounds how many bytes of the layer are fetched before they are
	// asked for, for each sequence of reads: half of what the cache can hold at
	// most. 0 is 32 MiB, or a quarter of what it can hold if that is less; below
	// 0 there is no reading ahead.
	ReadAhead int64
	// OnUse, if not nil, hears of each span that is read for the first time,
	// as a range of the layer. It must not block.
	OnUse func(off, n int64)
	// OnWhole, if not nil, hears whether a layer without digests has proved
	// right now that all of it is cached. If not, reads of it fail from then on.
	OnWhole func(err error)
}

const (
	defaultSpillOver = 64 << 20
	minSpillOver     = 16 << 20
	// maxBatch bounds what one step of a read holds of decoded data, in bytes,
	// and maxFetch what one read of the blob asks for: enough for a large read
	// to be one request, and not so much that the first byte waits for it.
	maxBatch = 32 << 20
	maxFetch = 16 << 20
)

// A Lazy reads a layer at any offset while the blob lies elsewhere. What it
// fetches is verified before it is used, where there are digests for it; what
// it decoded it keeps in a cache.
type Lazy struct {
	blob  ReaderAtContext
	cache *spancache.Cache
	opt   LazyOptions
	key   [32]byte
	size  int64
	units units

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	spills struct {
		sync.Mutex
		m    map[int]*spill
		jobs sync.WaitGroup
	}
	window    int64 // the most that is read ahead, in bytes; 0: nothing
	sequences sequences
	whole     whole
	used      []atomic.Uint64 // a bit for each unit, if OnUse is set

	stats lazyStats
}

var _ ReaderAtContext = (*Lazy)(nil)

// Open gives the layer that l describes and that lies in blob. Every byte of
// the blob is verified against l's digests before use. A blob of another size
// than l's is refused with fault.ErrIntegrity.
func Open(blob ReaderAtContext, l *seek.Layer, c *spancache.Cache, o LazyOptions) (*Lazy, error) {
	if o.Name == "" {
		o.Name = l.Descriptor.Digest.String()
	}
	if err := l.Validate(); err != nil {
		return nil, fmt.Errorf("layer %s: %w", o.Name, err)
	}
	if blob.Size() != l.Descriptor.Size {
		return nil, fmt.Errorf("layer %s: the blob has %d bytes, not %d: %w", o.Name, blob.Size(), l.Descriptor.Size, fault.ErrIntegrity)
	}
	var u units
	switch l.Kind {
	case seek.Gzip:
		u = &gzipUnits{l: l}
	case seek.Zstd:
		u = &zstdUnits{l: l}
	default:
		u = &plainUnits{size: l.Size, unit: seek.PieceSize}
		if l.Size > 0 {
			u.(*plainUnits).sums = l.Spans[0].Digests
		}
	}
	o.Digest = l.Descriptor.Digest
	return newLazy(blob, l.Size, u, layoutKey(l), c, o), nil
}

// OpenZinfo gives a gzip layer by a checkpoint file. Nothing is verified but
// what gzip's own checksums cover, which is members that lie within one span.
//
// Where x does not say how large the layer is, as when it comes from a file,
// the last span is decoded to find out.
func OpenZinfo(ctx context.Context, blob ReaderAtContext, x *zinfo.Index, c *spancache.Cache, o LazyOptions) (*Lazy, error) {
	l := &seek.Layer{Kind: seek.Gzip, Size: x.Size, Spans: make([]seek.Span, len(x.Points))}
	l.Descriptor.Size = blob.Size()
	if o.Name == "" {
		o.Name = "with a zinfo"
	}
	if x.BlobSize >= 0 && x.BlobSize != blob.Size() {
		return nil, fmt.Errorf("layer %s: the zinfo is for a blob of %d bytes, not %d: %w", o.Name, x.BlobSize, blob.Size(), fault.ErrIntegrity)
	}
	if len(x.Points) == 0 || x.Points[len(x.Points)-1].In >= blob.Size() {
		return nil, fmt.Errorf("layer %s: the zinfo is not of this blob of %d bytes: %w", o.Name, blob.Size(), fault.ErrIntegrity)
	}
	var window [seek.WindowSize]byte
	for i, p := range x.Points {
		if err := x.ReadWindow(i, window[:]); err != nil {
			return nil, fmt.Errorf("layer %s: %w", o.Name, err)
		}
		l.Spans[i] = seek.Span{In: p.In, Out: p.Out, Bits: p.Bits, Window: seek.PackWindow(window[:])}
	}
	u := &gzipUnits{l: l}
	lz := newLazy(blob, l.Size, u, uniqueKey(), c, o)
	if l.Size < 0 {
		n, err := lz.measure(ctx, u)
		if err != nil {
			return nil, fmt.Errorf("layer %s: size: %w", o.Name, err)
		}
		l.Size, lz.size = n, n
	}
	lz.whole.start(lz)
	return lz, nil
}

// OpenRaw gives the blob as it is, in blocks that the cache keeps. Nothing is
// verified.
func OpenRaw(blob ReaderAtContext, c *spancache.Cache, o LazyOptions) (*Lazy, error) {
	if o.Name == "" {
		o.Name = "blob"
	}
	l := newLazy(blob, blob.Size(), &plainUnits{size: blob.Size(), unit: rawBlock}, uniqueKey(), c, o)
	l.whole.start(l)
	return l, nil
}

// rawBlock is what a raw blob is fetched in, in bytes. There are no digests to
// ask for more, and a filesystem's reads are small.
const rawBlock = 256 << 10

func newLazy(blob ReaderAtContext, size int64, u units, key [32]byte, c *spancache.Cache, o LazyOptions) *Lazy {
	if o.SpillOver <= 0 {
		o.SpillOver = min(defaultSpillOver, max(c.Max(), minSpillOver))
	}
	if o.Gate == nil {
		o.Gate = new(Gate)
	}
	if o.Digest == "" {
		o.Store = nil // there is no name for what it would keep
	}
	l := &Lazy{blob: blob, cache: c, opt: o, key: key, size: size, units: u}
	switch l.window = min(o.ReadAhead, c.Max()/2); {
	case o.ReadAhead < 0:
		l.window = 0
	case o.ReadAhead == 0:
		l.window = min(maxWindow, c.Max()/4)
	}
	if o.OnUse != nil {
		l.used = make([]atomic.Uint64, u.count()/64+1)
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.spills.m = make(map[int]*spill)
	return l
}

// layoutKey stands for the blob's digest and for where its spans are, so that
// different sections for one blob do not mix in a cache.
func layoutKey(l *seek.Layer) [32]byte {
	h := sha256.New()
	var b [17]byte
	fmt.Fprintf(h, "%s %s %d\n", l.Kind, l.Descriptor.Digest, l.Size)
	for i := range l.Spans {
		s := &l.Spans[i]
		binary.LittleEndian.PutUint64(b[:], uint64(s.In))
		binary.LittleEndian.PutUint64(b[8:], uint64(s.Out))
		b[16] = s.Bits
		h.Write(b[:])
	}
	return [32]byte(h.Sum(nil))
}

var lastKey atomic.Uint64

// uniqueKey is for what no digest stands for: it is shared with nothing.
func uniqueKey() (k [32]byte) {
	binary.LittleEndian.PutUint64(k[:], lastKey.Add(1))
	return k
}

// Size is the uncompressed size in bytes.
func (l *Lazy) Size() int64 { return l.size }

// Verified reports whether the blob's bytes are verified before use.
func (l *Lazy) Verified() bool {
	return l.size == 0 || l.units.digests(0) != nil
}

// Stored reports whether what is fetched goes to a store.
func (l *Lazy) Stored() bool { return l.opt.Store != nil }

// Close stops work in the background and removes what was spilled. Reads that
// go on meanwhile may fail.
func (l *Lazy) Close() error {
	l.cancel()
	l.sequences.mu.Lock()
	l.sequences.closed = true
	l.sequences.mu.Unlock()
	l.sequences.jobs.Wait()
	l.spills.jobs.Wait()
	l.spills.Lock()
	defer l.spills.Unlock()
	for i, s := range l.spills.m {
		s.close()
		delete(l.spills.m, i)
	}
	return nil
}

// Span returns the range of uncompressed bytes that is fetched and decoded as a
// whole for the sake of the byte at off.
func (l *Lazy) Span(off int64) (start, end int64) {
	if off < 0 || off >= l.size {
		return off, off
	}
	_, _, start, end = l.units.span(l.units.find(off))
	return start, end
}

// Warm puts the spans of n bytes at off into the cache.
func (l *Lazy) Warm(ctx context.Context, off, n int64) error {
	end := min(off+n, l.size)
	for off = max(off, 0); off < end; {
		k, err := l.step(ctx, nil, off, end-off)
		if err != nil {
			return err
		}
		off += k
	}
	return nil
}

// ReadAtContext implements ReaderAtContext. What cannot be verified or decoded
// is an error that names the layer, the span and the place, and wraps
// fault.ErrIntegrity or fault.ErrCorrupt.
func (l *Lazy) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fault.Usagef("layer %s: a read at a negative offset, %d", l.opt.Name, off)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if off >= l.size {
		return 0, io.EOF
	}
	if err := l.whole.err(); err != nil {
		return 0, err
	}
	l.note(off, min(int64(len(p)), l.size-off))
	want := p[:min(int64(len(p)), l.size-off)]
	for n := 0; n < len(want); {
		k, err := l.step(ctx, want[n:], off+int64(n), int64(len(want)-n))
		n += int(k)
		if err != nil {
			return n, err
		}
	}
	if len(want) < len(p) {
		return len(want), io.EOF
	}
	return len(want), nil
}

// step reads up to n bytes at off, from one span or from several that are
// fetched together. Without a p it only sees to it that they are in the cache.
func (l *Lazy) step(ctx context.Context, p []byte, off, n int64) (int64, error) {
	first := l.units.find(off)
	_, _, out, outEnd := l.units.span(first)
	if l.spillable(first) {
		n = min(n, outEnd-off)
		if p == nil {
			return n, nil // a span that is decoded once is not worth it before
		}
		k, err := l.spill(first).readAt(ctx, p[:n], off-out)
		return int64(k), err
	}
	if off+n <= outEnd { // by far the most frequent case
		if b, ok := l.cache.Lookup(l.spanKey(first)); ok {
			copy(p, b[off-out:])
			return n, nil
		}
	}
	// What is further away is left to the next step.
	last, end := first, outEnd
	for end < off+n {
		_, _, _, e := l.units.span(last + 1)
		if e-out > maxBatch || l.spillable(last+1) {
			break
		}
		last, end = last+1, e
	}
	n = min(n, end-off)
	if p != nil {
		p = p[:n]
	}
	keys := make([]spancache.Key, last-first+1)
	for i := range keys {
		keys[i] = l.spanKey(first + i)
	}
	bufs, err := l.cache.GetAll(ctx, keys, func(ctx context.Context, missing []int, _ <-chan struct{}, put func(int, []byte, error)) {
		l.fill(ctx, demand{urgency: now}, first, missing, put)
	})
	if err != nil {
		return 0, err
	}
	for i, at := 0, off-out; len(p) > 0; i, at = i+1, 0 {
		p = p[copy(p, bufs[i][at:]):]
	}
	return n, nil
}

func (l *Lazy) spanKey(i int) spancache.Key {
	return spancache.Key{Layer: l.key, Span: int64(i)}
}

// spillable reports whether a unit is too large for memory, decoded or not.
func (l *Lazy) spillable(i int) bool {
	in, inEnd, out, outEnd := l.units.span(i)
	return max(outEnd-out, inEnd-in) > l.opt.SpillOver
}
