package erofs

import (
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/rootfs"
)

// Storage is a file to write an image into; *os.File is one.
type Storage interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
}

// DefaultBlockSize is the block size of a whole image in bytes: the page size
// of most machines, and all that kernels before 6.4 read.
const DefaultBlockSize = 4096

// IndexBlockSize is the block size of an index image: tar aligns to it.
const IndexBlockSize = 512

// WriterOptions says how an image is made. The zero value makes a whole image
// of 4096-byte blocks.
type WriterOptions struct {
	BlockSize int  // bytes, a power of two from 512 to 65536; 0: DefaultBlockSize
	Devices   int  // extra devices: room is left for their slots
	NoInline  bool // never put a file's last bytes behind its inode
	// XattrPrefixes are beginnings of attributes' names ("user.mime.") that are
	// stored once for all; Linux 6.4 and later read them.
	XattrPrefixes []string
}

// A DeviceSpec is an extra device that inodes refer to by its number, from 1.
type DeviceSpec struct {
	Tag  string // at most 64 bytes; for a layer, its blob's sha256 in hex
	Size int64  // bytes
}

// Final is what is known of an image only when all of its files are.
type Final struct {
	UUID    [16]byte
	Label   string       // at most 16 bytes
	Devices []DeviceSpec // as many as WriterOptions.Devices
	// BuildTime is when the image was made, in seconds since 1970. Nil: the
	// most frequent mtime.
	BuildTime *int64
	// Trailer makes what is to stand behind the metadata, given the device's
	// size so far; its length is padded to a block. Nil: nothing.
	Trailer func(size int64) ([]byte, error)
}

// WriteStats tells what became of an image, in bytes.
type WriteStats struct {
	Inodes   int64
	Size     int64 // of the image
	Metadata int64 // inodes, inline tails, directories, xattrs
	Moved    int64 // of data, into holes that replaced files left
}

// A Writer makes an EROFS image in one pass over its files' contents: Add puts
// each to its final place, and Finish writes the metadata behind them.
//
//	superblock, device table, first inodes | file data | directory blocks | shared xattrs, inodes with tails | trailer
//
// What does not fill a block waits in a second file and ends up beside the
// inode.
type Writer struct {
	opts     WriterOptions
	bits     uint8 // log2 of the block size
	bs       int64 // block size
	out      Storage
	data     appender // files' whole blocks
	tails    appender
	scratch  Storage
	first    int64 // offset of the data area
	prefixes []ondisk.LongPrefix
	sparse   int64 // bytes that sparse files take beside their data
	runs     int64 // of all sparse files
}

// NewWriter starts an image in out; tails is a temporary file that the caller
// deletes afterwards. Both must be empty.
func NewWriter(out, tails Storage, o WriterOptions) (*Writer, error) {
	if o.BlockSize == 0 {
		o.BlockSize = DefaultBlockSize
	}
	w := &Writer{opts: o, bs: int64(o.BlockSize), bits: uint8(bits.TrailingZeros(uint(o.BlockSize))), out: out, scratch: tails}
	if o.BlockSize != 1<<w.bits || w.bits < ondisk.MinBlockBits || w.bits > ondisk.MaxBlockBits {
		return nil, fault.Usagef("block size %d: a power of two from 512 to 65536 is needed", o.BlockSize)
	}
	if o.Devices < 0 || o.Devices > 1<<16-1 {
		return nil, fmt.Errorf("%d devices: %w", o.Devices, fault.ErrUnsupported)
	}
	var err error
	if w.prefixes, err = parsePrefixes(o.XattrPrefixes); err != nil {
		return nil, err
	}
	w.first = w.roundUp(w.headEnd())
	w.data = appender{f: out, off: w.first}
	w.tails = appender{f: tails}
	return w, nil
}

// prefixOffset is where the table of long xattr prefixes is: it must lie low,
// since its offset has 32 bits, in units of 4 bytes.
func (w *Writer) prefixOffset() int {
	return ondisk.SuperOffset + ondisk.SuperBlockSize + ondisk.DeviceSlotSize*w.opts.Devices
}

// headEnd is where superblock, device table and long prefixes end.
func (w *Writer) headEnd() int64 {
	return int64(w.prefixOffset() + len(appendPrefixes(nil, w.prefixes)))
}

func (w *Writer) roundUp(n int64) int64 { return (n + w.bs - 1) &^ (w.bs - 1) }

// BlockSize is the image's block size in bytes.
func (w *Writer) BlockSize() int { return int(w.bs) }

// Add stores a regular file's contents. next gives the stored bytes run by
// run, then io.EOF; they must be as many as the inode's size says, or as its
// extents do. The inode's Offset, Tail and Device are set.
func (w *Writer) Add(i *rootfs.Inode, next func() ([]byte, error)) error {
	i.Device, i.Offset, i.Tail = 0, -1, noTail
	if runs, ok := i.Sparse(); ok {
		return w.addSparse(i, runs, next)
	}
	whole := i.Size
	if tail := i.Size & (w.bs - 1); w.inlines(i, tail) {
		whole -= tail
	}
	if whole > 0 {
		i.Offset = w.data.off
	}
	if whole < i.Size {
		if err := w.tails.pad(tailUnit); err != nil {
			return err
		}
		i.Tail = uint32(w.tails.off/tailUnit) + 1
	}
	var done int64
	for {
		p, err := next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if int64(len(p)) > i.Size-done {
			return errors.New("erofs: more data than the inode's size")
		}
		n := min(int64(len(p)), max(whole-done, 0))
		if err := w.data.write(p[:n]); err != nil {
			return err
		}
		if err := w.tails.write(p[n:]); err != nil {
			return err
		}
		done += int64(len(p))
	}
	if done != i.Size {
		return io.ErrUnexpectedEOF
	}
	return w.data.pad(w.bs)
}

// An inode's Tail is the offset of its tail in the second file, in units, plus
// one: it has 32 bits, since there are so many inodes. Should that file ever
// get larger than they can tell, tails go to whole blocks.
const (
	tailUnit = 32
	noTail   = 0
	maxTails = tailUnit * (math.MaxUint32 - 2)
)

func tailOffset(i *rootfs.Inode) int64 { return int64(i.Tail-1) * tailUnit }

// inlines decides whether the last tail bytes of a file go beside its inode:
// they do if they are sure to fit, whichever form the inode will take.
func (w *Writer) inlines(i *rootfs.Inode, tail int64) bool {
	return tail > 0 && !w.opts.NoInline && w.tails.off < maxTails && ondisk.InodeExtendedSize+xattrBound(i.Xattrs)+tail <= w.bs
}

// An appender writes to the end of a file, small pieces gathered.
type appender struct {
	f   Storage
	off int64 // of the next byte
	buf []byte
}

const appendBuffer = 256 << 10

func (a *appender) write(p []byte) error {
	direct := len(p) >= appendBuffer/2
	if direct || len(a.buf)+len(p) > appendBuffer {
		if err := a.flush(); err != nil {
			return err
		}
	}
	if direct {
		if _, err := a.f.WriteAt(p, a.off); err != nil {
			return err
		}
	} else {
		if a.buf == nil {
			a.buf = make([]byte, 0, appendBuffer)
		}
		a.buf = append(a.buf, p...)
	}
	a.off += int64(len(p))
	return nil
}

// pad goes on to a multiple of align with zeros.
func (a *appender) pad(align int64) error {
	n := -a.off & (align - 1)
	if n == 0 {
		return nil
	}
	if len(a.buf)+int(n) > appendBuffer || len(a.buf) == 0 {
		return a.seek(a.off + n)
	}
	a.buf = append(a.buf, make([]byte, n)...)
	a.off += n
	return nil
}

// seek leaves a hole, which reads as zeros: the file was empty.
func (a *appender) seek(off int64) error {
	err := a.flush()
	a.off = off
	return err
}

func (a *appender) flush() error {
	if len(a.buf) == 0 {
		return nil
	}
	_, err := a.f.WriteAt(a.buf, a.off-int64(len(a.buf)))
	a.buf = a.buf[:0]
	return err
}
