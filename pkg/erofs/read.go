// Package erofs reads and writes EROFS images.
//
// Reading: Open gives an FS, which is an io/fs file system with symbolic
// links, and more through its inodes' numbers (nids): attributes, extended
// attributes, extents. All the layouts and compression algorithms of Linux
// 6.18 are read. An image is taken to be hostile: whatever it holds, a call
// ends, in bounded memory, with a result or an error that says which inode and
// which offset is at fault.
package erofs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/inflate"
)

// FS is an EROFS image opened for reading. All methods may be called from
// several goroutines at once.
type FS struct {
	sb       ondisk.SuperBlock
	blkBits  uint8
	devices  []device // the primary device and the extra ones
	byAddr   []int    // indexes of the extra devices that have an address, in its order
	meta     *metaSpace
	metabox  *metaSpace // nil without METABOX
	packed   *fileData  // nil without fragments
	prefixes []string   // long xattr name prefixes
	cache    extentCache
	zstds    sync.Pool // of *zstd.Decoder
	inputs   sync.Pool // of *[]byte: encoded extents
	inflates sync.Pool // of *inflate.Reader
	lzmas    sync.Pool // of *lzmaDecoder
	opts     options
}

var (
	_ fs.ReadDirFS  = (*FS)(nil)
	_ fs.ReadFileFS = (*FS)(nil)
	_ fs.ReadLinkFS = (*FS)(nil)
	_ fs.StatFS     = (*FS)(nil)
)

// An Option changes how Open reads an image.
type Option func(*options)

type options struct {
	devices    []io.ReaderAt
	noChecksum bool
}

// WithDevices gives the extra devices of an image in the order of its device
// table. A nil stands for one that is not at hand: the image opens, and
// reading data that lies there fails with ErrNoDevice. Without this option an
// image that is longer than its primary device is taken to hold the extra ones
// behind it, each at its place in the one address space.
func WithDevices(devices ...io.ReaderAt) Option {
	return func(o *options) { o.devices = devices }
}

// WithoutChecksum opens an image even if its superblock's checksum is wrong.
func WithoutChecksum() Option {
	return func(o *options) { o.noChecksum = true }
}

// ErrNoDevice is the error of reading data that lies on a device that was not
// given.
var ErrNoDevice = fmt.Errorf("device is not at hand: %w", fault.ErrNotFound)

// Open opens the image in r. If r has a method Size() int64, as an
// io.SectionReader, or is a regular file, its size is known and used.
//
// Errors are fault.ErrCorrupt, fault.ErrIntegrity for a wrong checksum, and
// fault.ErrUnsupported for features that are not known.
func Open(r io.ReaderAt, opts ...Option) (*FS, error) {
	f := &FS{}
	for _, o := range opts {
		o(&f.opts)
	}
	size := sizeOf(r)
	if err := f.readSuper(r); err != nil {
		return nil, err
	}
	f.inputs.New = func() any { return new([]byte) }
	f.inflates.New = func() any { return new(inflate.Reader) }
	f.lzmas.New = func() any { return new(lzmaDecoder) }
	f.zstds.New = func() any {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(ondisk.PclusterMaxDSize), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			panic(err) // the options are ours
		}
		return d
	}
	f.meta = newMetaSpace(r, "")
	if err := f.readDevices(r, size); err != nil {
		return nil, err
	}
	if err := f.readSpecial(); err != nil {
		return nil, err
	}
	if err := f.readPrefixes(); err != nil {
		return nil, err
	}
	if ino, err := f.inode(f.sb.RootNid()); err != nil {
		return nil, fmt.Errorf("root directory: %w", err)
	} else if !ino.isDir() {
		return nil, fmt.Errorf("root directory: %w", ino.corrupt(ino.Offset, "mode %#o is not a directory's", ino.Mode))
	}
	return f, nil
}

// readSuper reads and validates the superblock.
func (f *FS) readSuper(r io.ReaderAt) error {
	b := make([]byte, ondisk.SuperBlockMaxSize)
	// An image is at least a block that holds the superblock.
	if err := readFull(r, b, ondisk.SuperOffset); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return superErr("the file is too short for an EROFS image: %w", fault.ErrCorrupt)
		}
		return superErr("%w", err)
	}
	f.sb.Decode(b)
	sb := &f.sb
	if sb.Magic != ondisk.Magic {
		return superErr("magic number %#08x: not an EROFS image: %w", sb.Magic, fault.ErrCorrupt)
	}
	if sb.BlkSzBits < ondisk.MinBlockBits || sb.BlkSzBits > ondisk.MaxBlockBits {
		return superErr("block size 2^%d: %w", sb.BlkSzBits, fault.ErrUnsupported)
	}
	f.blkBits = sb.BlkSzBits
	if sb.FeatureCompat&ondisk.CompatSBChecksum != 0 && !f.opts.noChecksum {
		if err := f.verifySuper(r); err != nil {
			return err
		}
	}
	if unknown := sb.FeatureIncompat &^ ondisk.IncompatAll; unknown != 0 {
		return superErr("incompatible features %#x: %w", unknown, fault.ErrUnsupported)
	}
	if sb.Size() > ondisk.SuperBlockLimit {
		return superErr("%d extension slots: %w", sb.ExtSlots, fault.ErrUnsupported)
	}
	if sb.DirBlkBits != 0 {
		return superErr("directory blocks of another size: %w", fault.ErrUnsupported)
	}
	if f.has(ondisk.IncompatMetabox) {
		if sb.ExtSlots == 0 {
			return superErr("no room for the metabox inode's number: %w", fault.ErrCorrupt)
		}
		if sb.MetaboxNid&ondisk.NidMetabox != 0 {
			return superErr("the metabox inode lies in the metabox: %w", fault.ErrCorrupt)
		}
	}
	return nil
}

// verifySuper compares the superblock's checksum.
func (f *FS) verifySuper(r io.ReaderAt) error {
	b := make([]byte, ondisk.ChecksumLen(f.blkBits))
	if err := readFull(r, b, ondisk.SuperOffset); err != nil {
		return superErr("its block: %w", corruptShort(err))
	}
	if got := ondisk.Checksum(b); got != f.sb.Checksum {
		return superErr("checksum %08x, recorded %08x: %w", got, f.sb.Checksum, fault.ErrIntegrity)
	}
	return nil
}

// readSpecial opens the inodes that hold parts of others: first the metabox,
// in which the packed inode may lie.
func (f *FS) readSpecial() error {
	if f.has(ondisk.IncompatMetabox) {
		ino, err := f.inode(f.sb.MetaboxNid)
		if err != nil {
			return fmt.Errorf("metabox: %w", err)
		}
		data, err := f.special(ino)
		if err != nil {
			return fmt.Errorf("metabox: %w", err)
		}
		f.metabox = newMetaSpace(data, "metabox ")
	}
	if f.has(ondisk.IncompatFragments) && f.sb.PackedNid != 0 {
		ino, err := f.inode(f.sb.PackedNid)
		if err != nil {
			return fmt.Errorf("packed inode: %w", err)
		}
		if f.packed, err = f.special(ino); err != nil {
			return fmt.Errorf("packed inode: %w", err)
		}
	}
	return nil
}

// special opens an inode that other files' contents depend on. It must not
// depend on fragments itself, which could make a circle.
func (f *FS) special(ino *inode) (*fileData, error) {
	if ino.Mode&ondisk.ModeTypeMask != ondisk.ModeRegular {
		return nil, ino.corrupt(ino.Offset, "mode %#o is not a regular file's", ino.Mode)
	}
	ino.noFragments = true
	return f.data(ino)
}

// SuperBlock is the image's superblock.
func (f *FS) SuperBlock() ondisk.SuperBlock { return f.sb }

// RootNid is the root directory's number.
func (f *FS) RootNid() uint64 { return f.sb.RootNid() }

// BlockSize is the image's block size in bytes.
func (f *FS) BlockSize() int64 { return 1 << f.blkBits }

// Label is the volume's name.
func (f *FS) Label() string {
	return cString(f.sb.VolumeName[:])
}

// XattrPrefixes are the image's long xattr name prefixes, complete.
func (f *FS) XattrPrefixes() []string { return append([]string(nil), f.prefixes...) }

func (f *FS) has(incompat uint32) bool { return f.sb.FeatureIncompat&incompat != 0 }

// blockMask is the block size less one.
func (f *FS) blockMask() int64 { return 1<<f.blkBits - 1 }

func superErr(format string, args ...any) error {
	return fmt.Errorf("superblock, offset %#x: "+format, append([]any{ondisk.SuperOffset}, args...)...)
}

// readFull reads len(p) bytes at off; fewer are io.ErrUnexpectedEOF.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// sizeOf is the size of what r reads, or -1 if that cannot be known.
func sizeOf(r io.ReaderAt) int64 {
	switch v := r.(type) {
	case interface{ Size() int64 }:
		return v.Size()
	case interface{ Stat() (fs.FileInfo, error) }:
		if st, err := v.Stat(); err == nil && st.Mode().IsRegular() {
			return st.Size()
		}
	}
	return -1
}

// cString is b up to its first NUL.
func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
