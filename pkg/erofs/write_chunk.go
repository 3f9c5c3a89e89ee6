package erofs

import (
	"errors"
	"fmt"
	"io"
	"math/bits"

	"github.com/layerpipe/layerpipe/pkg/erofs/ondisk"
	"github.com/layerpipe/layerpipe/pkg/fault"
	"github.com/layerpipe/layerpipe/pkg/rootfs"
	"github.com/layerpipe/layerpipe/pkg/tarstream"
)

// hole is the block address of a chunk that is all zeros and nowhere stored.
const hole = 0xffffffff

const (
	maxChunkBits = 31 // chunk size / block size, log2
	// maxChunks bounds the chunk table of one file: 8 bytes each, and they
	// must be read to read the file.
	maxChunks = 1 << 23
)

// A chunkLayout says where the chunks of a chunk-based inode are.
type chunkLayout struct {
	bits    uint8   // log2(chunk size / block size)
	indexes bool    // entries carry a device; else they are block addresses alone
	device  uint16  // of every chunk that is not a hole
	blocks  []int64 // block address of each chunk, or -1; nil: the chunks lie one behind the other,
	start   int64   // from this block on,
	count   int64   // so many
}

func (m *chunkLayout) len() int64 {
	if m.blocks == nil {
		return m.count
	}
	return int64(len(m.blocks))
}

func (m *chunkLayout) at(c int64) int64 {
	if m.blocks == nil {
		return m.start + c<<m.bits
	}
	return m.blocks[c]
}

// entrySize is the size of an entry of the chunk table, in bytes.
func (m *chunkLayout) entrySize() int64 {
	if m.indexes {
		return ondisk.ChunkIndexSize
	}
	return ondisk.BlockMapEntrySize
}

// tableSize is the chunk table's size in bytes.
func (m *chunkLayout) tableSize() int64 { return m.len() * m.entrySize() }

func (m *chunkLayout) format() uint32 {
	if m.indexes {
		return uint32(m.bits) | ondisk.ChunkIndexes
	}
	return uint32(m.bits)
}

func (m *chunkLayout) append(dst []byte) []byte {
	for c := range m.len() {
		b := m.at(c)
		lo, dev := uint32(b), m.device
		if b < 0 {
			lo, dev = hole, 0
		}
		if m.indexes {
			c := ondisk.ChunkIndex{DeviceID: dev, StartblkLo: lo}
			dst = c.Append(dst)
		} else {
			dst = append(dst, byte(lo), byte(lo>>8), byte(lo>>16), byte(lo>>24))
		}
	}
	return dst
}

// chunks is how many chunks of 1<<shift bytes size has.
func chunks(size int64, shift uint8) int64 {
	return (size + 1<<shift - 1) >> shift
}

// contiguous maps a file whose stored bytes are one run on a device: the
// biggest chunks there are, so that one entry does for nearly every file.
func (w *Writer) contiguous(i *rootfs.Inode) chunkLayout {
	m := chunkLayout{indexes: true, device: i.Device, start: i.Offset >> w.bits}
	if n := chunks(i.Size, w.bits); n > 1 {
		m.bits = min(uint8(bits.Len64(uint64(n-1))), maxChunkBits)
	}
	m.count = chunks(i.Size, w.bits+m.bits)
	return m
}

// Map reports whether a file can be read from where its stored bytes lie on an
// extra device, that is, whether its runs are aligned to blocks there and in the
// file, and that is worth it: fine chunks of a huge file can take more room than
// its few bytes. If not, Add must store it in the image.
func (w *Writer) Map(i *rootfs.Inode) (bool, error) {
	runs, sparse := i.Sparse()
	if !sparse {
		return i.Offset&(w.bs-1) == 0, nil
	}
	m, ok := w.sparseOnDevice(i, runs)
	if !ok {
		return false, nil
	}
	if _, cost, err := w.sparseInImage(i.Size, runs); err != nil || m.tableSize() > cost {
		return false, nil // Add says what is wrong
	}
	return true, w.spend(m.tableSize(), runs)
}

// sparseOnDevice maps a sparse file onto stored runs that lie back to back.
func (w *Writer) sparseOnDevice(i *rootfs.Inode, runs []tarstream.Extent) (*chunkLayout, bool) {
	// A chunk is contiguous on the device, or a hole, if every run begins and
	// ends at a multiple of its size; the last run may end with the file.
	all := uint64(0)
	pos := i.Offset
	for _, x := range runs {
		if pos&(w.bs-1) != 0 {
			return nil, false
		}
		all |= uint64(x.Offset)
		if x.Offset+x.Length != i.Size {
			all |= uint64(x.Length)
		}
		pos += x.Length
	}
	shift := w.bits + maxChunkBits
	if all != 0 {
		shift = min(uint8(bits.TrailingZeros64(all)), shift)
	}
	if shift < w.bits || chunks(i.Size, shift) > maxChunks {
		return nil, false
	}
	m := &chunkLayout{indexes: true, device: i.Device, bits: shift - w.bits}
	m.blocks = make([]int64, chunks(i.Size, shift))
	for c := range m.blocks {
		m.blocks[c] = -1
	}
	pos = i.Offset
	for _, x := range runs {
		for off := int64(0); off < x.Length; off += 1 << shift {
			m.blocks[(x.Offset+off)>>shift] = (pos + off) >> w.bits
		}
		pos += x.Length
	}
	return m, true
}

// sparseInImage maps a sparse file whose touched chunks are stored one after
// the other from block 0 on, with the chunk size that takes the least room,
// and returns how many bytes that is.
func (w *Writer) sparseInImage(size int64, extents []tarstream.Extent) (_ *chunkLayout, cost int64, err error) {
	best := uint8(0)
	cost = -1
	for b := uint8(0); b <= maxChunkBits && w.bits+b < 62; b++ {
		shift := w.bits + b
		n := chunks(size, shift)
		if n > maxChunks {
			continue
		}
		c := n*ondisk.BlockMapEntrySize + touched(extents, shift)<<shift
		if cost < 0 || c < cost {
			best, cost = b, c
		}
		if n <= 1 {
			break
		}
	}
	// Few chunks of a huge file cost little (a 1 TiB lastlog some megabytes);
	// where they do not, somebody wants us to fill the disk.
	if cost < 0 || cost-2*storedBytes(extents) > maxSparseFile {
		return nil, 0, fmt.Errorf("sparse file of %d bytes with %d runs: %w", size, len(extents), fault.ErrUnsupported)
	}
	shift := w.bits + best
	m := &chunkLayout{bits: best, blocks: make([]int64, chunks(size, shift))}
	for c := range m.blocks {
		m.blocks[c] = -1
	}
	next := int64(0)
	for _, x := range extents {
		if x.Length == 0 {
			continue
		}
		for c := x.Offset >> shift; c <= (x.Offset+x.Length-1)>>shift; c++ {
			if m.blocks[c] < 0 {
				m.blocks[c] = next
				next += 1 << best
			}
		}
	}
	return m, cost, nil
}

// What sparse files may take in the image beyond twice what they store, in
// bytes: one of them, and all together; and how many runs all may have, of 16
// bytes of memory each. A header of 512 bytes can ask for megabytes of table.
const (
	maxSparseFile  = 256 << 20
	maxSparseTotal = 512 << 20
	maxSparseRuns  = 1 << 24
)

// spend notes what a sparse file takes, and refuses it when all take too much.
func (w *Writer) spend(cost int64, runs []tarstream.Extent) error {
	w.sparse += max(0, cost-2*storedBytes(runs))
	w.runs += int64(len(runs))
	switch {
	case w.sparse > maxSparseTotal:
		return fmt.Errorf("sparse files take more than %d MiB beside their data: %w", maxSparseTotal>>20, fault.ErrUnsupported)
	case w.runs > maxSparseRuns:
		return fmt.Errorf("sparse files of more than %d runs: %w", maxSparseRuns, fault.ErrUnsupported)
	}
	return nil
}

func storedBytes(extents []tarstream.Extent) (n int64) {
	for _, x := range extents {
		n += x.Length
	}
	return n
}

// touched counts the chunks that extents, which are ascending, lie in.
func touched(extents []tarstream.Extent, shift uint8) (n int64) {
	last := int64(-1)
	for _, x := range extents {
		if x.Length == 0 {
			continue
		}
		from, to := x.Offset>>shift, (x.Offset+x.Length-1)>>shift
		n += to - from + 1
		if from == last {
			n--
		}
		last = to
	}
	return n
}

// addSparse stores a sparse file's touched chunks; what lies between its runs
// stays a hole of the image file.
func (w *Writer) addSparse(i *rootfs.Inode, runs []tarstream.Extent, next func() ([]byte, error)) error {
	m, cost, err := w.sparseInImage(i.Size, runs)
	if err != nil {
		return err
	}
	if err := w.spend(cost, runs); err != nil {
		return err
	}
	base := w.data.off
	var p []byte
	for _, x := range runs {
		for x.Length > 0 {
			if len(p) == 0 {
				if p, err = next(); err == io.EOF {
					return io.ErrUnexpectedEOF
				} else if err != nil {
					return err
				}
			}
			// Up to the chunk's end, behind which the next one may not follow.
			shift := w.bits + m.bits
			in := x.Offset & (1<<shift - 1)
			n := min(int64(len(p)), x.Length, 1<<shift-in)
			at := base + m.blocks[x.Offset>>shift]<<w.bits + in
			if at != w.data.off {
				if err := w.data.seek(at); err != nil {
					return err
				}
			}
			if err := w.data.write(p[:n]); err != nil {
				return err
			}
			p, x.Offset, x.Length = p[n:], x.Offset+n, x.Length-n
		}
	}
	if len(p) > 0 {
		return errors.New("erofs: more data than the inode's extents")
	}
	if _, err := next(); err != io.EOF {
		return errors.Join(errors.New("erofs: more data than the inode's extents"), err)
	}
	if n := m.storedBlocks(i.Size, w.bits); n > 0 {
		i.Offset = base
		return w.data.seek(base + n<<w.bits)
	}
	return nil
}

// storedBlocks is how many blocks the chunks of a file in the image take.
func (m *chunkLayout) storedBlocks(size int64, blockBits uint8) (n int64) {
	for c, b := range m.blocks {
		if b >= 0 {
			n += m.chunkBlocks(c, size, blockBits)
		}
	}
	return n
}

// chunkBlocks is how many blocks a chunk takes: the file's last one ends with
// the file.
func (m *chunkLayout) chunkBlocks(c int, size int64, blockBits uint8) int64 {
	left := size - int64(c)<<(blockBits+m.bits)
	return min(1<<m.bits, (left+1<<blockBits-1)>>blockBits)
}
