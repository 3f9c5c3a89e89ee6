// Package disk makes one read-only address space of what is to be served: a
// local image, an index image with its layers behind it, or a layer that is an
// EROFS image itself.
//
// What does not fit together is refused when it is opened, as far as that can
// be told without fetching the layers: a disk in the wrong order would mount,
// and give wrong data.
package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/blockmap"
	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/layer"
	"github.com/layerpipe/layerpipe/pkg/nbd"
	"github.com/layerpipe/layerpipe/pkg/source"
	"github.com/layerpipe/layerpipe/pkg/spancache"
)

// Options is for everything that lies behind a cache.
type Options struct {
	Cache    *spancache.Cache // must not be nil
	SpillDir string           // for decoded spans that are too large for memory; "": os.TempDir()
	// Probe reads the first span of each layer when it is opened, to see that
	// it is the right one. Meant for files; over a network it costs time that
	// the first read would not need.
	Probe bool
	// Store keeps what was fetched of the layers; nil: nothing does.
	Store layer.Store
	// ReadAhead is as in layer.LazyOptions.
	ReadAhead int64
	// Bandwidth bounds what Fill fetches, in bytes a second; 0 is no bound.
	Bandwidth int64
	// OnUse, if not nil, hears of each span that is read for the first time. It
	// must not block, and is called by many goroutines at once.
	OnUse func(Range)
	// OnWhole, if not nil, hears whether a layer that could not be verified as
	// it was read has proved right, once all of it was cached.
	OnWhole func(d digest.Digest, err error)

	gate *layer.Gate // of all layers of a disk
}

// lazy makes a layer's options. d is what is known of its digest.
func (o *Options) lazy(name string, d digest.Digest) layer.LazyOptions {
	if o.gate == nil {
		o.gate = &layer.Gate{Bandwidth: o.Bandwidth}
	}
	lo := layer.LazyOptions{Name: name, SpillDir: o.SpillDir, Digest: d, Store: o.Store, Gate: o.gate, ReadAhead: o.ReadAhead}
	if use := o.OnUse; use != nil {
		lo.OnUse = func(off, n int64) { use(Range{d, off, n}) }
	}
	if whole := o.OnWhole; whole != nil {
		lo.OnWhole = func(err error) { whole(d, err) }
	}
	return lo
}

// An Opener gives random access to the blob of an index's layer i, of which d
// says what it must be.
type Opener func(ctx context.Context, i int, d ocispec.Descriptor) (source.BlobReader, error)

// A Disk is what is served: an nbd.Device.
type Disk struct {
	blockmap.ReaderAtContext
	layers  []*layer.Lazy
	digests []digest.Digest // of the layers' blobs, where known
	closers []io.Closer
}

var (
	_ nbd.ReadyDevice  = (*Disk)(nil)
	_ nbd.ExtentDevice = (*Disk)(nil)
)

// ReadReady fills p if that needs no waiting, and reports whether it did.
func (d *Disk) ReadReady(p []byte, off int64) bool {
	r, ok := d.ReaderAtContext.(blockmap.Ready)
	return ok && r.ReadReady(p, off)
}

// Extents tells the holes of a local image; of layers nothing is known before
// they are read.
func (d *Disk) Extents(_ context.Context, off, length int64, limit int) ([]nbd.Extent, error) {
	if f, ok := d.ReaderAtContext.(*file); ok {
		return f.extents(off, length, limit)
	}
	return []nbd.Extent{{Length: length}}, nil
}

// Verified reports whether every byte that comes from a layer is verified
// against a digest before it is given out. That is so for a local image, which
// has no layers.
func (d *Disk) Verified() bool {
	for _, l := range d.layers {
		if !l.Verified() {
			return false
		}
	}
	return true
}

// Layers is how many layers are read lazily.
func (d *Disk) Layers() int { return len(d.layers) }

// Kept counts the spans of all layers, and those that the store seems to have.
func (d *Disk) Kept() (have, all int) {
	for _, l := range d.layers {
		h, a := l.Kept()
		have, all = have+h, all+a
	}
	return have, all
}

// Stats sums up the layers' counters.
func (d *Disk) Stats() layer.LazyStats {
	var sum layer.LazyStats
	for _, l := range d.layers {
		sum.Add(l.Stats())
	}
	return sum
}

// Close closes the layers and the files. No read may be under way.
func (d *Disk) Close() error {
	var err error
	for i := len(d.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, d.closers[i].Close())
	}
	return err
}

func (d *Disk) add(l *layer.Lazy, dg digest.Digest) {
	d.layers = append(d.layers, l)
	d.digests = append(d.digests, dg)
	d.closers = append(d.closers, l)
}

// file is a local file as a ReaderAtContext.
type file struct {
	*os.File
	fd      uintptr
	size    int64
	unready atomic.Bool // the filesystem cannot tell what is in memory
}

func (f *file) Size() int64 { return f.size }

func (f *file) ReadAtContext(_ context.Context, p []byte, off int64) (int, error) {
	return f.ReadAt(p, off)
}

// openFile opens a regular file or a block device.
func openFile(name string) (*file, error) {
	f, err := os.Open(name)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%w: %w", err, fault.ErrNotFound)
		}
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && st.IsDir() {
		err = fault.Usagef("%s is a directory", name)
	}
	var size int64
	if err == nil {
		size, err = f.Seek(0, io.SeekEnd) // a device has no size in Stat
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &file{File: f, fd: f.Fd(), size: size}, nil
}

// OpenImage opens a local EROFS image, which has to be complete: an index
// without its layers is refused.
func OpenImage(name string) (*Disk, error) {
	f, err := openFile(name)
	if err != nil {
		return nil, err
	}
	if err := checkImage(f, f.size); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &Disk{ReaderAtContext: f, closers: []io.Closer{f}}, nil
}

// checkImage looks at an image's superblock and device table. size is the
// image's.
func checkImage(r io.ReaderAt, size int64) error {
	img, err := erofs.Open(io.NewSectionReader(r, 0, size))
	if err != nil {
		return err
	}
	bs := img.BlockSize()
	devices := img.Devices()
	if n := int64(devices[0].Blocks); n > size/bs {
		return fmt.Errorf("the image has %d blocks of %d bytes, the file only %d bytes: %w", n, bs, size, io.ErrUnexpectedEOF)
	}
	for i, d := range devices[1:] {
		if d.Uniaddr == 0 || d.Uniaddr > uint64(size/bs) || d.Blocks > uint64(size/bs)-d.Uniaddr {
			return fault.Usagef("the data of device %d is not in the image: it is an index, to be served with its layers", i+1)
		}
	}
	return nil
}

// What media types of layers that are EROFS images look like.
const (
	nativePrefix = "application/vnd.erofs"
	nativeSuffix = ".erofs"
)

// IsNative reports whether a media type says that a layer is an EROFS image.
func IsNative(mediaType string) bool {
	return len(mediaType) >= len(nativePrefix) && mediaType[:len(nativePrefix)] == nativePrefix ||
		len(mediaType) > len(nativeSuffix) && mediaType[len(mediaType)-len(nativeSuffix):] == nativeSuffix
}

// OpenNative serves a layer that is an EROFS image. It has no digests to
// verify parts of it by: only its size and its superblock are checked. blob is
// closed with the disk, or if there is an error.
func OpenNative(ctx context.Context, blob source.BlobReader, d ocispec.Descriptor, o Options) (_ *Disk, err error) {
	disk := &Disk{closers: []io.Closer{blob}}
	defer func() {
		if err != nil {
			disk.Close()
		}
	}()
	if !IsNative(d.MediaType) {
		return nil, fmt.Errorf("layer %s is no EROFS image, its media type is %q: make an index of the image, tar2erofs -i: %w", d.Digest, d.MediaType, fault.ErrUnsupported)
	}
	if d.Size > 0 && blob.Size() != d.Size {
		return nil, fmt.Errorf("layer %s: the blob has %d bytes, not %d: %w", d.Digest, blob.Size(), d.Size, fault.ErrIntegrity)
	}
	l, err := layer.OpenRaw(blob, o.Cache, o.lazy(d.Digest.String(), d.Digest))
	if err != nil {
		return nil, err
	}
	disk.add(l, d.Digest)
	disk.ReaderAtContext = l
	if err := checkImage(readerAt{ctx, l}, l.Size()); err != nil {
		return nil, fmt.Errorf("layer %s: %w", d.Digest, err)
	}
	return disk, nil
}

// readerAt reads with one context.
type readerAt struct {
	ctx context.Context
	r   blockmap.ReaderAtContext
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	return r.r.ReadAtContext(r.ctx, p, off)
}
