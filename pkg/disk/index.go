package disk

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerpipe/layerpipe/pkg/blockmap"
	"github.com/layerpipe/layerpipe/pkg/erofs"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/layer"
	"github.com/layerpipe/layerpipe/pkg/seek"
	"github.com/layerpipe/layerpipe/pkg/source"
	"github.com/layerpipe/layerpipe/pkg/zinfo"
)

// An Index is an index image: the metadata of a filesystem whose files' data
// lies in layers.
type Index struct {
	// Section says how to read and verify the layers; nil where there is none,
	// as in mkfs.erofs's indexes.
	Section *seek.Section

	f       *file
	name    string
	block   int64 // block size in bytes
	devices []erofs.Device
}

// OpenIndex opens an index image and checks that it is consistent: its
// superblock, its size, and its device table against its seek section.
func OpenIndex(name string) (*Index, error) {
	f, err := openFile(name)
	if err != nil {
		return nil, err
	}
	x := &Index{f: f, name: name}
	if err := x.check(); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return x, nil
}

// Close is for an Index that was not joined with its layers.
func (x *Index) Close() error { return x.f.Close() }

func (x *Index) check() error {
	img, err := erofs.Open(io.NewSectionReader(x.f, 0, x.f.size))
	if err != nil {
		return err
	}
	x.block, x.devices = img.BlockSize(), img.Devices()
	// Layers begin where the primary device ends: a byte more or less would
	// shift all of them.
	if primary := x.devices[0]; primary.Blocks != uint64(x.f.size/x.block) || x.f.size%x.block != 0 {
		return fmt.Errorf("the file has %d bytes, its superblock says %d blocks of %d: %w", x.f.size, primary.Blocks, x.block, fault.ErrCorrupt)
	}
	x.devices = x.devices[1:]
	x.Section, err = seek.Read(x.f, x.f.size)
	if len(x.devices) == 0 && errors.Is(err, fault.ErrNotFound) {
		return fault.Usagef("no index: the image has no devices besides itself, and is served as it is")
	}
	if errors.Is(err, fault.ErrNotFound) {
		x.Section, err = nil, nil
		return x.checkForeign()
	}
	if err != nil {
		return err
	}
	return x.checkSection()
}

// checkSection holds the device table against the seek section.
func (x *Index) checkSection() error {
	if len(x.devices) != len(x.Section.Layers) {
		return fmt.Errorf("%d devices, but %d layers in the seek section: %w", len(x.devices), len(x.Section.Layers), fault.ErrCorrupt)
	}
	end := uint64(x.f.size / x.block)
	for i, d := range x.devices {
		l := &x.Section.Layers[i]
		if want := l.Tag(); d.Tag != want {
			return fmt.Errorf("device %d is for %.64q, the seek section's layer %d is %s: %w", i+1, d.Tag, i, want, fault.ErrCorrupt)
		}
		if blocks := x.blocks(l.Size); d.Uniaddr != end || d.Blocks != blocks {
			return fmt.Errorf("device %d has blocks %d+%d, where layer %d needs %d+%d: %w", i+1, d.Uniaddr, d.Blocks, i, end, blocks, fault.ErrCorrupt)
		}
		end += d.Blocks
	}
	return nil
}

// checkForeign does what can be done without a seek section.
func (x *Index) checkForeign() error {
	if n := len(x.devices); n != 1 {
		return fmt.Errorf("an index of %d layers without a seek section: %w", n, fault.ErrUnsupported)
	}
	if d := x.devices[0]; d.Uniaddr != uint64(x.f.size/x.block) {
		return fmt.Errorf("the layer's place is block %d, the index ends at %d: %w", d.Uniaddr, x.f.size/x.block, fault.ErrUnsupported)
	}
	return nil
}

// blocks is how many blocks size bytes need.
func (x *Index) blocks(size int64) uint64 {
	return uint64(size/x.block) + uint64((size%x.block+x.block-1)/x.block)
}

// Probe asks a source for the highest layer, the one that other images are
// least likely to share, and its size: what would make every read fail (another
// repository, no credentials) should show before anybody mounts.
func (x *Index) Probe(ctx context.Context, s source.Source) error {
	n := len(x.Section.Layers) - 1
	if n < 0 {
		return nil
	}
	want := x.Section.Layers[n].Descriptor
	d := want
	d.Size = -1 // to be found out
	blob, err := s.BlobAt(ctx, d)
	if err != nil {
		return fmt.Errorf("layer %d: %w", n, err)
	}
	defer blob.Close()
	if blob.Size() != want.Size {
		return fmt.Errorf("layer %d: %s has %d bytes there, not %d: %w", n, want.Digest, blob.Size(), want.Size, fault.ErrIntegrity)
	}
	return nil
}

// Join makes the disk: the index, then each of its section's layers.
func (x *Index) Join(ctx context.Context, open Opener, o Options) (_ *Disk, err error) {
	d := &Disk{closers: []io.Closer{x.f}}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	for i := range x.Section.Layers {
		l := &x.Section.Layers[i]
		blob, err := open(ctx, i, l.Descriptor)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		d.closers = append(d.closers, blob)
		lazy, err := layer.Open(blob, l, o.Cache, o.lazy(fmt.Sprintf("%d (%s)", i, l.Descriptor.Digest), l.Descriptor.Digest))
		if err != nil {
			return nil, err
		}
		d.add(lazy, l.Descriptor.Digest)
		if o.Probe {
			if err := lazy.Warm(ctx, 0, 1); err != nil {
				return nil, err
			}
		}
	}
	return d, x.join(d)
}

// join lays out the index and d's layers.
func (x *Index) join(d *Disk) error {
	segs := []blockmap.Segment{{Source: x.f, Size: x.f.size}}
	for _, l := range d.layers {
		segs = append(segs, blockmap.Segment{Source: l, Size: int64(x.blocks(l.Size())) * x.block})
	}
	m, err := blockmap.New(segs)
	d.ReaderAtContext = m
	return err
}

// JoinForeign makes the disk of an index without a seek section and the one
// layer that it is for. z has the checkpoints of a gzip layer; a plain one
// needs none. What is read of the layer is not verified but for gzip's own
// checksums. name is what errors call the layer. blob is closed with the disk, or
// if there is an error.
func (x *Index) JoinForeign(ctx context.Context, name string, blob source.BlobReader, desc ocispec.Descriptor, z *zinfo.Index, o Options) (*Disk, error) {
	return x.joinOne(name, blob, desc, func() (*layer.Lazy, error) {
		return openForeign(ctx, name, blob, desc.Digest, z, o)
	})
}

// JoinSeek is JoinForeign with seek data for the layer, of any kind, that comes
// from somewhere else. What is read of the layer is verified.
func (x *Index) JoinSeek(ctx context.Context, name string, blob source.BlobReader, desc ocispec.Descriptor, l *seek.Layer, o Options) (*Disk, error) {
	return x.joinOne(name, blob, desc, func() (*layer.Lazy, error) {
		lazy, err := layer.Open(blob, l, o.Cache, o.lazy(name, desc.Digest))
		if err != nil || !o.Probe {
			return lazy, err
		}
		if err = lazy.Warm(ctx, 0, 1); err != nil {
			lazy.Close()
		}
		return lazy, err
	})
}

func (x *Index) joinOne(name string, blob source.BlobReader, desc ocispec.Descriptor, open func() (*layer.Lazy, error)) (_ *Disk, err error) {
	d := &Disk{closers: []io.Closer{x.f, blob}}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	slot := x.devices[0]
	if want := desc.Digest; len(slot.Tag) == 64 && want != "" && slot.Tag != want.Encoded() {
		return nil, fmt.Errorf("%s is for layer %s, not %s: %w", x.name, slot.Tag, want.Encoded(), fault.ErrIntegrity)
	}
	if desc.Size > 0 && blob.Size() != desc.Size {
		return nil, fmt.Errorf("layer %s: the blob has %d bytes, not %d: %w", name, blob.Size(), desc.Size, fault.ErrIntegrity)
	}
	lazy, err := open()
	if err != nil {
		return nil, err
	}
	d.add(lazy, desc.Digest)
	// A reader that stops at the archive's end marker does not count what
	// follows it.
	if got := x.blocks(lazy.Size()); got < slot.Blocks {
		return nil, fmt.Errorf("%s is for a layer of %d blocks, this one has %d: %w", x.name, slot.Blocks, got, fault.ErrIntegrity)
	}
	return d, x.join(d)
}

func openForeign(ctx context.Context, name string, blob source.BlobReader, d digest.Digest, z *zinfo.Index, o Options) (*layer.Lazy, error) {
	head := make([]byte, min(layer.SniffSize, blob.Size()))
	if _, err := blob.ReadAtContext(ctx, head, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("layer %s: %w", name, err)
	}
	switch kind := layer.Sniff(head); {
	case kind == layer.Gzip && z == nil:
		return nil, fault.Usagef("layer %s is compressed, and the index has no seek section: a zinfo file is needed", name)
	case kind == layer.Gzip:
		return layer.OpenZinfo(ctx, blob, z, o.Cache, o.lazy(name, d))
	case kind == layer.Plain && z == nil:
		return layer.OpenRaw(blob, o.Cache, o.lazy(name, d))
	case kind == layer.Plain:
		return nil, fault.Usagef("layer %s is not compressed: a zinfo file is not for it", name)
	default:
		return nil, fmt.Errorf("layer %s: %v without a seek section: %w", name, kind, fault.ErrUnsupported)
	}
}
